"""Whole ways from an image to exported labels: where they lie, whose image it is, images that are small or have NaN."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
from tests.cases import specimen as sp
from tests.cases.specimen import IMAGE, LABELS, OTHER_IMAGE

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.data.formats import open_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SLICES = "1,6,10"


@pytest.fixture
def to_a_run(tmp_path: Path, slicelabel: Callable[..., Any]) -> Callable[..., str]:
    """Makes a project, paints three slices of each volume, runs; returns the run."""

    def go(images: Sequence[Path], *method: object) -> str:
        project, labels = tmp_path / "p.slicelabel", sp.npy(LABELS, "labels.npy")(tmp_path)
        made = slicelabel("new", project, *images)
        made.assert_done()
        for name in made.json["volumes"]:
            words = ("--volume", name, "--labels", labels, "--slices", SLICES)
            slicelabel("annotate", project, *words).assert_done()
        answer = slicelabel("run", project, *(method or ("--method", "interpolate")))
        answer.assert_done()
        return str(answer.json["run"])

    return go


def dice(labels: NDArray[Any], value: int) -> float:
    a, b = labels == value, value == LABELS
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def voxels_of(path: Path) -> NDArray[Any]:
    labels = open_labels(path)
    return labels.read(Box.whole(labels.shape))[0]


def millimetres(path: Path) -> NDArray[np.float64]:
    image = nibabel.load(path)
    scale = {"micron": 1e-3, "meter": 1e3}.get(image.header.get_xyzt_units()[0], 1.0)
    return np.diag([scale, scale, scale, 1]) @ image.affine


def assert_same_place(labels: Path, image: Path) -> None:
    np.testing.assert_allclose(millimetres(labels), millimetres(image), rtol=1e-4, atol=1e-6)
    sitk = pytest.importorskip("SimpleITK")
    frames = [sitk.ReadImage(str(path)) for path in (labels, image)]
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(*(getattr(frame, name)() for frame in frames), atol=1e-4)


def test_labels_lie_on_their_images(
    tmp_path: Path, slicelabel: Callable[..., Any], to_a_run: Callable[..., str]
) -> None:
    small = sp.AFFINE / [[1e3], [1e3], [1e3], [1]]
    makers = {
        "micrometre": sp.nifti(name="micrometre.nii.gz", unit="micron"),
        "metre": sp.nifti(name="metre.nii.gz", affine=small, unit="meter"),
        "oblique": sp.nifti(name="oblique.nii.gz", affine=sp.OBLIQUE),
        "left_handed": sp.nifti(name="left_handed.nii.gz", affine=sp.LEFT_HANDED),
        "forms_differ": sp.nifti(name="forms_differ.nii.gz", qform=sp.ELSEWHERE),
        "sheared": sp.nifti(name="sheared.nii.gz", affine=sp.SHEARED),
    }
    run = to_a_run([make(tmp_path) for make in makers.values()])
    target = tmp_path / "out.nii.gz"
    slicelabel("export", tmp_path / "p.slicelabel", "--run", run, "--to", target).assert_done()
    for name in makers:
        assert_same_place(tmp_path / f"out_{name}.nii.gz", tmp_path / f"{name}.nii.gz")


def test_all_formats_hold_the_same_labels(
    tmp_path: Path, slicelabel: Callable[..., Any], to_a_run: Callable[..., str]
) -> None:
    run = to_a_run([sp.nifti()(tmp_path)])
    project = tmp_path / "p.slicelabel"
    files = [tmp_path / f"labels{ending}" for ending in (".ome.zarr", ".tif", ".h5", ".nii.gz")]
    for path in (*files, tmp_path / "Dataset001_Rod"):
        slicelabel("export", project, "--run", run, "--to", path).assert_done()
    first, *others = (voxels_of(path) for path in files)
    assert min(dice(first, 1), dice(first, 2)) > 0.8
    np.testing.assert_array_equal(first[[1, 6, 10]], LABELS[[1, 6, 10]])
    for labels in others:
        np.testing.assert_array_equal(labels, first)
    assert slicelabel("evaluate", project, "--truth", tmp_path / "labels.npy").json["mean_dice"] > 0.8
    assert_nnunet(tmp_path / "Dataset001_Rod")


def assert_nnunet(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    values = sorted(content["labels"].values())
    assert values == list(range(len(values)))
    assert content["labels"]["ignore"] == values[-1]
    (labels,), (image,) = (sorted((folder / name).iterdir()) for name in ("labelsTr", "imagesTr"))
    assert image.name == labels.name.replace(".nii.gz", "_0000.nii.gz")
    np.testing.assert_allclose(millimetres(labels), millimetres(image))
    voxels = np.asarray(nibabel.load(labels).dataobj).T
    np.testing.assert_array_equal(voxels[[1, 6, 10]], LABELS[[1, 6, 10]])


@pytest.mark.parametrize("names", ["mito,membrane,er", ("mito", "cell membrane", "er")], ids=["commas", "blanks"])
def test_names_of_classes(names: Any, tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    words = [names] if isinstance(names, str) else names
    answer = slicelabel("new", tmp_path / "p.slicelabel", sp.npy(IMAGE)(tmp_path), "--classes", *words)
    answer.assert_done()
    assert list(answer.json["classes"].values()) == (names.split(",") if isinstance(names, str) else list(names))


ANOTHER = "chang|differ|another image|not the image|other (image|values|voxels)|fingerprint|does not match|replaced"


def beside_its_image(folder: Path, slicelabel: Callable[..., Any]) -> Path:
    """A project with two painted slices in a folder with its image."""
    (folder / "one").mkdir()
    image, labels = sp.npy(IMAGE)(folder / "one"), sp.npy(LABELS, "labels.npy")(folder)
    slicelabel("new", folder / "one" / "p.slicelabel", image).assert_done()
    slicelabel("annotate", folder / "one" / "p.slicelabel", "--labels", labels, "--slices", "2,8").assert_done()
    return folder / "one"


def test_copied_beside_another_image(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    one = beside_its_image(tmp_path, slicelabel)
    (tmp_path / "two").mkdir()
    sp.npy(OTHER_IMAGE[::-1])(tmp_path / "two")
    shutil.copytree(one / "p.slicelabel", tmp_path / "two" / "p.slicelabel")
    slicelabel("run", tmp_path / "two" / "p.slicelabel", "--method", "interpolate").assert_says(ANOTHER)


def test_moved_with_its_image(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    beside_its_image(tmp_path, slicelabel).rename(tmp_path / "two")
    answer = slicelabel("run", tmp_path / "two" / "p.slicelabel", "--method", "interpolate")
    answer.assert_done()
    with pytest.raises(AssertionError):
        answer.assert_says(ANOTHER)


def test_its_image_was_replaced(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    one = beside_its_image(tmp_path, slicelabel)
    sp.npy(OTHER_IMAGE[::-1])(one)
    slicelabel("run", one / "p.slicelabel", "--method", "interpolate").assert_says(ANOTHER)


TINY = ("--device", "cpu", "--set", "iterations=4", "--set", "rounds=1", "--set", "round_iterations=2")


@pytest.mark.parametrize(("shape", "flow"), [((4, 5, 6), "flow=off"), ((8, 16, 16), "flow_iterations=2")])
def test_tiny_planes(shape: tuple[int, int, int], flow: str, tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    """Labelled, or refused in one line."""
    halves = (np.indices(shape)[2] > shape[2] // 2).astype(np.uint8)
    image, labels = sp.npy(sp.grey(halves), "image.npy")(tmp_path), sp.npy(halves, "labels.npy")(tmp_path)
    project = tmp_path / "p.slicelabel"
    slicelabel("new", project, image).assert_done()
    slicelabel("annotate", project, "--labels", labels, "--every", 2).assert_done()
    settings = (*TINY, "--set", "fold_iterations=2", "--set", flow)
    answer = slicelabel("run", project, "--method", "self-label", *settings)
    if answer.code:
        answer.assert_refused("small|size|plane|pixels")


def test_nan_outside_of_the_field_of_view(
    tmp_path: Path, slicelabel: Callable[..., Any], to_a_run: Callable[..., str]
) -> None:
    image = IMAGE.astype(np.float32)
    image[:, :6] = np.nan
    run = to_a_run([sp.npy(image)(tmp_path)], "--method", "flow", "--device", "cpu", "--set", "iterations=20")
    project = tmp_path / "p.slicelabel"
    slicelabel("select", project, "--budget", 3).assert_done()
    slicelabel("export", project, "--run", run, "--to", tmp_path / "out.tif").assert_done()
    labels = voxels_of(tmp_path / "out.tif")
    assert min(dice(labels, 1), dice(labels, 2)) > 0.75


def test_an_image_of_nothing_but_nan_is_refused(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    path = sp.npy(np.full(sp.SHAPE, np.nan, np.float32))(tmp_path)
    slicelabel("new", tmp_path / "p.slicelabel", path).assert_refused("NaN|no value|finite|empty")
