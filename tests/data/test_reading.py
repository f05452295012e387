from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.formats import open_volume
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.reading import parse_json, read_bytes, read_json, read_text
from napari_slicelabel.errors import SliceLabelError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable


def test_files_of_moderate_size(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}
    assert read_text(tmp_path / "a.json") == '{"a": [1, null]}'
    with pytest.raises(OSError, match="more than 0 MB"):
        read_bytes(tmp_path / "a.json", most=3)


def test_no_json(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "1" * 5000, "{", "", "\x00"):
        with pytest.raises(ValueError, match=r"nested|limit|Expecting|Extra"):
            parse_json(text)
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    with pytest.raises(ValueError, match="utf-8"):
        read_json(tmp_path / "latin.json")


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names, no /dev")
def test_what_never_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros", "."):
        with pytest.raises(OSError, match=r"no file|directory"):
            read_bytes(tmp_path / name)
    with pytest.raises(OSError, match="more than 1 MB"):
        read_bytes(Path("/dev/zero"), most=2**20)


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev")
def test_what_a_shell_hands_over(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"[3]")
    os.close(write)
    assert read_json(Path(f"/dev/fd/{read}")) == [3]
    os.close(read)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names, no /dev")
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, partial(os.symlink, "/dev/zero")])
def test_a_chunk_that_is_no_file_is_no_background(project: Project, put: Callable[[Path], None]) -> None:
    annotation = project.annotation("tiny")
    annotation.write_slice(SliceRef("z", 2), np.ones(annotation.shape[1:], np.uint8), complete=True)
    (chunk,) = (path for path in (annotation.folder / "0" / "c").rglob("*") if path.is_file())
    chunk.unlink()
    put(chunk)
    with pytest.raises(StorageError, match=r"damaged|missing"):
        Project.open(project.path).annotation("tiny").read_slice(SliceRef("z", 2))


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names, no /dev")
@pytest.mark.parametrize("name", ["project.json", "annotation/tiny.json", "selection/mine.json"])
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, partial(os.symlink, "/dev/zero")])
def test_parts_of_a_project_that_are_no_files(project: Project, name: str, put: Callable[[Path], None]) -> None:
    project.annotation("tiny").write_slice(SliceRef("z", 2), np.ones((64, 64), np.uint8))
    project.save_ranking("mine", {})
    (project.path / name).unlink()
    put(project.path / name)

    def use() -> None:
        opened = Project.open(project.path)
        opened.annotation("tiny")
        opened.ranking("mine")

    with pytest.raises(SliceLabelError):
        use()


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names, no /dev")
@pytest.mark.parametrize("part", ["0/zarr.json", "0/c/0/0/0"])
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, partial(os.symlink, "/dev/zero")])
def test_a_zarr_of_what_is_no_file(tmp_path: Path, part: str, put: Callable[[Path], None]) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.create_array("0", data=np.ones((4, 5, 6), np.uint8))
    (tmp_path / "a.zarr" / part).unlink()
    put(tmp_path / "a.zarr" / part)
    with pytest.raises(SliceLabelError):
        open_volume(tmp_path / "a.zarr" / "0", axes="zyx").read_slice(SliceRef("z", 1))
