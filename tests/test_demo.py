from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel import cli, demo
from napari_slicelabel.data.samples import synthetic_em
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from napari_slicelabel.data.samples import Sample


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Sample:
    """The demo on a small sample, with the method that needs no training."""
    sample = synthetic_em((24, 48, 56), seed=2)
    monkeypatch.setattr("napari_slicelabel.data.samples.mni152", lambda: sample)
    monkeypatch.setattr(demo, "METHOD", "interpolate")
    monkeypatch.setattr(demo, "SETTINGS", {})
    return sample


@pytest.mark.usefixtures("quick")
def test_demo_writes_labels_scores_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here"
    assert cli.main(["demo", "--no-gui", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (out / "synthetic_em_labels.ome.zarr" / "zarr.json").is_file()
    assert result["scores"]
    from skimage.io import imread

    picture = imread(result["overview"])
    assert min(picture.shape[:2]) > 800
    # Both class colours (Okabe and Ito's orange and sky blue) and the curve must be there.
    for color in ((230, 159, 0), (86, 180, 233), (184, 50, 128)):
        assert (np.abs(picture[..., :3].astype(int) - color).max(axis=-1) < 30).sum() > 100

    assert cli.main(["demo", "--no-gui", "--out", str(out)]) == 2, "an earlier demo is never overwritten"
    assert "another folder" in capsys.readouterr().err


def test_default_folder_is_the_first_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.free_folder(None).name == "slicelabel-demo"
    (tmp_path / "slicelabel-demo").mkdir()
    assert demo.free_folder(None).name == "slicelabel-demo-2"


@pytest.mark.skipif(find_spec("napari") is not None, reason="napari is installed")
@pytest.mark.usefixtures("quick")
def test_demo_with_gui_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo"]) == 2
    assert "pip install 'napari-slicelabel[gui]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "said before the work, not after it"


def test_overview_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: Sample) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"napari-slicelabel\[samples\]"):
        demo.demonstrate(tmp_path, quick)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("annotated", [range(5, 157, 10), [8], [0, 15], [0]], ids=["tenth", "one", "ends", "first"])
def test_slices_shown_are_not_annotated_ones(annotated: list[int]) -> None:
    curve = [demo._Point(z, 0.5, human=z in annotated, needs_review=False) for z in range(max(annotated) + 16)]
    shown = demo._slices_to_show(curve)
    assert shown == sorted(set(shown))
    assert shown
    assert not set(shown) & set(annotated)


def test_mean_dice() -> None:
    labels = np.array([[1, 1, 2, 0]], np.uint8)
    assert demo._mean_dice(labels, labels) == 1
    assert demo._mean_dice(labels, np.array([[1, 0, 0, 0]], np.uint8)) == pytest.approx((2 / 3 + 0) / 2)
    assert np.isnan(demo._mean_dice(np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8)))
