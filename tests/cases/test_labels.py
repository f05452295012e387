"""Labels as other programs store them, given to ``slicelabel annotate`` and ``evaluate``: a row for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.cases import specimen as sp
from tests.cases.specimen import IMAGE, LABELS

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

MASK = (LABELS > 0).astype(np.uint8)
COLOURS = np.array([[0, 0, 0], [200, 30, 30], [30, 200, 30]], np.uint8)[LABELS]
GAPS = np.array([0, 7, 254], np.uint8)[LABELS]
PALETTE = {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}
OTHER_WAY = sp.AFFINE @ np.array([[-1, 0, 0, LABELS.shape[2] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Row:
    """A file of labels, and what of it counts as painted.

    Attributes
    ----------
    what : str
        Why the file is as it is.
    make : callable
        Writes it.
    labels : ndarray
        What slices must hold, (z, y, x).
    image : callable
        Writes the image of the project.
    slices : tuple of int
        Which ones are taken over.
    regions : bool
        Whether only the division counts, whatever the classes are called.
    """

    what: str
    make: sp.Maker
    labels: NDArray[Any] = field(default_factory=lambda: LABELS)
    image: sp.Maker = field(default_factory=lambda: sp.npy(IMAGE, "image.npy"))
    slices: tuple[int, ...] = (2, 8)
    regions: bool = False


on_nifti = partial(Row, image=sp.nifti(name="image.nii.gz"))
SCALED = LABELS * np.float32(1.00001)

ROWS = (
    Row("LZW", sp.tif(LABELS, compression="lzw")),
    Row("deflate", sp.tif(LABELS, compression="zlib")),
    Row("zstd", sp.tif(LABELS, compression="zstd")),
    Row("indexed colours: the index is the class", sp.tif(LABELS, **PALETTE)),
    Row("painted in colours: a class for each", sp.tif(COLOURS, photometric="rgb"), regions=True),
    Row("one painted section", sp.tif(LABELS[2]), slices=(2,)),
    Row("a mask of 0 and 255 in TIFF", sp.tif(MASK * 255), MASK, regions=True),
    Row("axis tags z, y, x, c", sp.h5({"exported_data": LABELS[..., None]}, axes="zyxc")),
    Row("the one data set holds floats", sp.h5({"label": LABELS.astype(np.float32)})),
    Row(
        "the CREMI challenge",
        sp.h5({"volumes/labels/clefts": LABELS.astype(np.uint64)}, member="volumes/labels/clefts"),
    ),
    Row("a group of labels and no image", sp.labels_alone),
    Row("labels that are not listed", sp.ngff(more=sp.label_group(LABELS, listed=False))),
    Row("labels without image-label", sp.ngff(more=sp.label_group(LABELS, marked=False))),
    Row("labels of five axes", sp.ngff(IMAGE[None, None], "tczyx", more=sp.label_group(LABELS[None, None]))),
    on_nifti("on the image", sp.nifti(LABELS)),
    on_nifti("stored the other way round along x", sp.nifti(LABELS[:, :, ::-1], affine=OTHER_WAY)),
    on_nifti("resampled", sp.nifti(SCALED)),
    Row("a mask of 0 and 255", sp.npy(MASK * 255), MASK, regions=True),
    Row("resampled: 2.00002", sp.npy(SCALED)),
    Row("one axis more in front", sp.npy(LABELS[None])),
    Row("one axis more behind", sp.npy(LABELS[..., None])),
    *(Row(f"type {kind}", sp.npy(LABELS.astype(kind))) for kind in ("f8", "f2", "u8", "i1", ">u2")),
    Row("type bool", sp.npy(LABELS > 0), MASK),
    Row("classes 7 and 254", sp.npy(GAPS), GAPS),
)


def annotation_of(folder: Path, slices: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return labels and where they are known."""
    project = Project.open(folder / "p.slicelabel")
    painted = [project.annotation(project.names[0]).supervision(SliceRef("z", z)) for z in slices]
    return np.stack([one.target for one in painted]), np.stack([one.known for one in painted])


@pytest.fixture
def project(tmp_path: Path, slicelabel: Callable[..., Any]) -> Path:
    slicelabel("new", tmp_path / "p.slicelabel", sp.npy(IMAGE, "image.npy")(tmp_path)).assert_done()
    return tmp_path / "p.slicelabel"


def assert_same_regions(labels: NDArray[Any], expected: NDArray[Any]) -> None:
    pairs = set(zip(expected.ravel().tolist(), labels.ravel().tolist(), strict=True))
    assert (0, 0) in pairs
    assert len(pairs) == len(np.unique(expected)) == len({name for _, name in pairs})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_are_taken_over(row: Row, tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    slicelabel("new", tmp_path / "p.slicelabel", row.image(tmp_path)).assert_done()
    slices = ",".join(map(str, row.slices))
    slicelabel("annotate", tmp_path / "p.slicelabel", "--labels", row.make(tmp_path), "--slices", slices).assert_done()
    labels, known = annotation_of(tmp_path, row.slices)
    assert known.all()
    if row.regions:
        assert_same_regions(labels, row.labels[list(row.slices)])
    else:
        np.testing.assert_array_equal(labels, row.labels[list(row.slices)])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (sp.npy(LABELS * np.float32(0.5)), r"0\.5"),
        (sp.npy((np.arange(LABELS.size).reshape(LABELS.shape) % 3000).astype(np.uint16)), "class"),
    ],
    ids=["halves", "3000 instances"],
)
def test_refused(make: sp.Maker, words: str, project: Path, tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    slicelabel("annotate", project, "--labels", make(tmp_path), "--slices", "2,8").assert_refused(words)


@pytest.mark.parametrize("listed", [True, False])
def test_a_group_of_labels_without_any(
    listed: bool, project: Path, tmp_path: Path, slicelabel: Callable[..., Any]
) -> None:
    """The image counts as labels, or it is said that there are none."""
    answer = slicelabel("annotate", project, "--labels", sp.no_label(tmp_path, listed=listed), "--slices", "2,8")
    if answer.code:
        answer.assert_refused("no label")
        assert "damaged" not in answer.err
    else:
        np.testing.assert_array_equal(annotation_of(tmp_path, (2, 8))[0], LABELS[[2, 8]])


def test_three_sections_off(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    slicelabel("new", tmp_path / "p.slicelabel", sp.nifti(name="image.nii.gz")(tmp_path)).assert_done()
    shifted = sp.AFFINE.copy()
    shifted[2, 3] += 9
    labels = sp.nifti(LABELS, affine=shifted)(tmp_path)
    answer = slicelabel("annotate", tmp_path / "p.slicelabel", "--labels", labels, "--slices", "4,8")
    answer.assert_says("origin|affine|offset|shift|position|place|geometry|frame")


@pytest.mark.parametrize("unknown", [255, -1])
def test_unknown_beside_classes(unknown: int, project: Path, tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    beyond = np.arange(LABELS.shape[2]) > 20
    labels = LABELS.astype(np.uint8 if unknown > 0 else np.int32)
    labels[5][:, beyond] = unknown
    path = sp.npy(labels)(tmp_path)
    slicelabel("annotate", project, "--labels", path, "--slices", "2,5,8").assert_done()
    found, known = annotation_of(tmp_path, (2, 5, 8))
    assert known[[0, 2]].all()
    np.testing.assert_array_equal(known[1], np.broadcast_to(~beyond, LABELS.shape[1:]))
    np.testing.assert_array_equal(found[known], LABELS[[2, 5, 8]][known])


def test_stored_as_their_image(tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    image, labels = (
        sp.npy(array.transpose(2, 1, 0), name)(tmp_path) for array, name in ((IMAGE, "i.npy"), (LABELS, "l.npy"))
    )
    slicelabel("new", tmp_path / "p.slicelabel", image, "--axes", "xyz").assert_done()
    command = ("annotate", tmp_path / "p.slicelabel", "--labels", labels, "--slices", "2,8")
    slicelabel(*command, "--label-axes", "xyz").assert_done()
    np.testing.assert_array_equal(annotation_of(tmp_path, (2, 8))[0], LABELS[[2, 8]])


def test_a_slice_beyond_the_stack(project: Path, tmp_path: Path, slicelabel: Callable[..., Any]) -> None:
    labels = sp.npy(LABELS)(tmp_path)
    slicelabel("annotate", project, "--labels", labels, "--slices", "2,12").assert_refused("12")


def test_unknown_voxels_of_the_truth_are_not_scored(
    project: Path, tmp_path: Path, slicelabel: Callable[..., Any]
) -> None:
    slicelabel("annotate", project, "--labels", sp.npy(LABELS)(tmp_path), "--slices", "1,6,10").assert_done()
    slicelabel("run", project, "--method", "interpolate").assert_done()
    whole = slicelabel("evaluate", project, "--truth", tmp_path / "stack.npy").json["mean_dice"]
    beyond = np.arange(LABELS.shape[2]) > 40
    for unknown, kind in ((255, np.uint8), (-1, np.int32)):
        truth = sp.npy(np.where(beyond, unknown, LABELS).astype(kind), "truth.npy")(tmp_path)
        answer = slicelabel("evaluate", project, "--truth", truth)
        answer.assert_done()
        assert answer.json["mean_dice"] == pytest.approx(whole, abs=0.05)
