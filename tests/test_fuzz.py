"""Inputs that failed once, and some new ones for each target, by the short form of `benchmarks.fuzz`."""

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


def test_damaged_and_odd_inputs(tmp_path: Path) -> None:
    report = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "benchmarks.fuzz", "--corpus", "--count", "16", "--report", str(report)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    found = json.loads(report.read_text()) if report.exists() else {"failures": ended.stderr}
    assert found["failures"] == {}
    assert found["inputs"] > 40
    assert found["refused"] > 10
