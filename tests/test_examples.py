"""Every script in examples/ that needs no window runs from end to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = [
    path
    for path in sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.py"))
    # those with a window: tests/gui/test_capture.py
    if "\nimport napari\n" not in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", script, tmp_path],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert any(tmp_path.iterdir())
