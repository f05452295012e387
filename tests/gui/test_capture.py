"""examples/capture_propagation.py runs, and its pictures show something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "capture_propagation.py"
STEPS = ("1-open", "2-select", "3-paint", "4-running", "5-review", "6-confidence")


@pytest.mark.timeout(600)  # a whole session in another process
def test_pictures_of_every_step_in_both_themes(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "--quick"], capture_output=True, text=True, timeout=560, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for step in STEPS:
        dark, light = (pixels(tmp_path / f"{step}-{theme}.png") for theme in ("dark", "light"))
        assert dark.shape == light.shape == (800, 1280, 3)
        # the dock is on the right: dark in one theme, light in the other
        assert dark[:, 1000:].mean() < 80
        assert light[:, 1000:].mean() > 170
    painted = pixels(tmp_path / "3-paint-dark.png")[100:600, 340:950].astype(int)
    assert (np.ptp(painted, axis=2) > 60).mean() > 0.02, "labels have colours"
    with Image.open(tmp_path / "propagation.gif") as film:
        assert film.n_frames > 5
        assert film.size == (960, 600)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
