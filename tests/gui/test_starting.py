"""From an image layer to a project: which file it is, what its axes are, whose project it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from napari.layers import Image

try:
    from napari.layers._source import layer_source
except ImportError:
    from napari.layers.base._source import layer_source

from napari_slicelabel.data.project import Project
from napari_slicelabel.errors import InputError
from napari_slicelabel.gui.starting import (
    ImageFacts,
    OtherImageError,
    add_to_project,
    possible_axes,
    start_project,
)

if TYPE_CHECKING:
    from pathlib import Path

STACK = np.random.default_rng(0).integers(0, 999, (5, 20, 24)).astype(np.uint16)


def _facts(array: np.ndarray, file: Path | str = "", **layer: Any) -> ImageFacts:
    with layer_source(path=str(file) or None, reader_plugin="another"):
        return ImageFacts.of(Image(array, name="stack", **layer))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "stack.npy", STACK)
    return tmp_path / "stack.npy"


def test_the_file_is_read_where_the_layer_is_what_it_holds(file: Path) -> None:
    project, name = start_project(_facts(STACK, file), file.with_name("p.slicelabel"))
    assert project.record(name).absolute_source == str(file)


@pytest.mark.parametrize("shown", [STACK[::-1], STACK[..., ::-1], STACK // 2, STACK[1:4]])
def test_what_is_shown_otherwise_is_copied_into_the_project(file: Path, shown: np.ndarray) -> None:
    project, name = start_project(_facts(shown, file), file.with_name("p.slicelabel"))
    assert project.record(name).source == "images/stack.npy"
    assert (np.asarray(project.volume(name).as_dask()) == shown).all()


def test_another_image_of_the_same_shape_gets_another_project(file: Path) -> None:
    folder = file.with_name("stack.slicelabel")
    start_project(_facts(STACK, file), folder)
    assert start_project(_facts(STACK), folder)[1] == "stack"
    with pytest.raises(OtherImageError, match="another image") as caught:
        start_project(_facts(STACK[::-1]), folder)
    assert caught.value.free == file.with_name("stack_2.slicelabel")


def test_axes_are_those_of_layer_or_file_else_they_are_asked_for(tmp_path: Path) -> None:
    stack = np.stack([STACK, STACK + 1], axis=1)
    tifffile.imwrite(tmp_path / "zcyx.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    assert possible_axes(_facts(stack, tmp_path / "zcyx.tif")) == ("zcyx",)
    assert possible_axes(_facts(stack, axis_labels=("z", "channel", "y", "x"))) == ("zcyx",)
    assert len(possible_axes(_facts(stack))) > 1
    assert possible_axes(_facts(STACK[None])) == ("czyx",)
    with pytest.raises(InputError, match="axes"):
        start_project(_facts(stack), tmp_path / "p.slicelabel")
    with pytest.raises(InputError, match="time points"):
        start_project(_facts(stack, axis_labels=("t", "z", "y", "x")), tmp_path / "p.slicelabel")
    assert not (tmp_path / "p.slicelabel").exists()


def test_a_volume_without_values_is_refused_before_it_is_added(file: Path) -> None:
    project, _ = start_project(_facts(STACK, file), file.with_name("p.slicelabel"))
    with pytest.raises(InputError, match="NaN"):
        add_to_project(project, _facts(np.full((5, 20, 24), np.nan, np.float32)))
    border = STACK.astype(np.float32)
    border[:, :2] = np.nan
    name = add_to_project(project, _facts(border))
    assert Project.open(project.path).names == ("stack", name)
    assert np.isfinite(np.asarray(project.volume(name).as_dask())).all()
