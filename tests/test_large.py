"""Memory does not grow with the volume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MOST_MB = 3000


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
def test_the_loop_on_200_gigabytes_stays_under_three(tmp_path: Path) -> None:
    script = Path(__file__).with_name("virtual_volume.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "116:124"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < MOST_MB
