"""Sets of labels on the disk against arrays in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.data.boxes import AXES, Axis, Box
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine import label_sets
from napari_slicelabel.engine.confidence import Labelled
from napari_slicelabel.engine.label_sets import LabelSets

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (11, 9, 7)


@dataclass
class Run:
    """What sets ask of a run."""

    folder: Path
    axis: Axis

    def volume(self, name: str) -> Volume:
        return Volume.from_array(np.zeros(SHAPE, np.uint8), name=name)


def labelled(plane: NDArray[np.uint8]) -> Labelled:
    return Labelled(plane, plane.astype(np.float32) / 255, 1.0)


@pytest.mark.parametrize("at_once", [1, 3, 16])
@pytest.mark.parametrize("axis", AXES)
def test_what_is_written_in_any_order_is_read_from_any_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: Axis, at_once: int
) -> None:
    monkeypatch.setattr(label_sets, "_MOST_PLANES", at_once)
    rng = np.random.default_rng(0)
    run = Run(tmp_path, axis)
    sets = LabelSets(run)  # type: ignore[arg-type]
    wanted = {which: rng.integers(0, 255, SHAPE).astype(np.uint8) for which in (*AXES, "3d")}
    for which, values in wanted.items():
        number = AXES.index(which if which in AXES else axis)
        for index in rng.permutation(SHAPE[number]):
            sets.write(which, "a", int(index), labelled(np.take(values, index, number)))
    names = tuple(wanted)
    in_order = np.stack([np.moveaxis(values, AXES.index(axis), 0) for values in wanted.values()])
    for index in rng.permutation(in_order.shape[1]):
        part = Box((int(index), 1, 2), (int(index) + 1, *in_order.shape[2:]))
        for read in (sets.labels, sets.confidence):
            np.testing.assert_array_equal(read(names, "a", part), in_order[:, index : index + 1, 1:, 2:])
    np.testing.assert_array_equal(sets.labels(names, "a", Box.whole(in_order.shape[1:])), in_order)  # type: ignore[arg-type]
    # what is written again is not what was read before
    sets.write("3d", "a", 4, labelled(np.zeros(in_order.shape[2:], np.uint8)))
    assert not sets.labels(["3d"], "a", Box((4, 0, 0), (5, *in_order.shape[2:]))).any()
    sets.finish("3d", "this")
    again = LabelSets(run)  # type: ignore[arg-type]
    assert again.is_finished("3d", "this")
    assert not again.is_finished("3d", "that")
    assert not again.labels(["3d"], "a", Box((4, 0, 0), (5, *in_order.shape[2:]))).any()
    np.testing.assert_array_equal(again.labels(["y"], "a", Box.whole(in_order.shape[1:])), in_order[1:2])  # type: ignore[arg-type]
