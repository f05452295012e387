"""One kill of each command, by the short form of `benchmarks.kills`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and waits for them as Linux does"),
    pytest.mark.skipif(not (REPOSITORY / "benchmarks").is_dir(), reason="benchmarks are not part of the package"),
    pytest.mark.timeout(900),
]


def test_every_command_once(tmp_path: Path) -> None:
    report = tmp_path / "kills.json"
    command = [sys.executable, "-m", "benchmarks.kills", "--short", "--report", str(report)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    found = json.loads(report.read_text()) if report.exists() else {"problems": ended.stderr}
    assert found["problems"] == []
    assert found["strokes_lost"] == 0
    assert found["kills"] == len(found["by_command"]) > 15
