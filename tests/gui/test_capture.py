"""The examples with a window run, and their pictures show something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = ("1-open", "2-select", "3-paint", "4-running", "5-review", "6-confidence")


@pytest.mark.timeout(600)  # a whole session in another process
def test_pictures_of_every_step_in_both_themes(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / "capture_propagation.py", tmp_path, "--quick"],
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
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


@pytest.mark.timeout(200)  # napari in another process
def test_surfaces_of_label_files_beside_one_another(tmp_path: Path) -> None:
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[4:16, 4:12, 5:20] = 1
    labels[6:14, 14:20, 8:22] = 3
    painted = np.zeros_like(labels)
    painted[10] = labels[10]
    for name, array in (("labels", labels), ("painted", painted), ("nothing", np.zeros_like(labels))):
        np.save(tmp_path / f"{name}.npy", array)
    files = [tmp_path / f"{name}.npy" for name in ("labels", "painted", "nothing")]
    out = tmp_path / "surfaces.png"
    result = subprocess.run(
        [sys.executable, EXAMPLES / "show_surfaces.py", *files, "--out", out, "--titles", "all"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # below the titles
    whole, slices, empty = np.split(pixels(out)[60:].astype(int), 3, axis=1)
    colored = [(np.ptp(part, axis=2) > 40).mean() for part in (whole, slices, empty)]
    assert colored[0] > colored[1] > 0.001
    assert colored[2] == 0


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
