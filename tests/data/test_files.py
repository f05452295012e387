"""Nothing outside of a project is written, and what a kill leaves goes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from napari_slicelabel.data import files
from napari_slicelabel.data.files import guard, make_folder, open_own, own_path, remove, replacing, sweep, write_text
from napari_slicelabel.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "p" / "runs").mkdir(parents=True)
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "file").write_text("precious")
    guard(tmp_path / "p")
    return tmp_path / "p"


def _place(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("new")


def _append(path: Path) -> None:
    with open_own(path, "a") as file:
        file.write("new")


WRITERS: list[Callable[[Path], object]] = [_place, _append, lambda p: write_text(p, "new"), own_path]


@pytest.mark.parametrize("write", WRITERS)
def test_no_link_is_followed_for_writing(root: Path, write: Callable[[Path], object]) -> None:
    outside = root.parent / "outside"
    (root / "runs" / "file").symlink_to(outside / "file")
    (root / "runs" / "dangling").symlink_to(outside / "none")
    (root / "folder").symlink_to(outside, target_is_directory=True)
    (root / "inner").symlink_to(root / "runs")
    for path in ("runs/file", "runs/dangling", "folder/file", "folder/deep/new", "inner/new"):
        with pytest.raises(StorageError, match="is a link, and nothing outside") as caught:
            write(root / path)
        assert str(root / path.removesuffix("/new").removesuffix("/deep")).split("/file")[0] in str(caught.value)
        assert "\n" not in str(caught.value)
    for folder in ("folder", "folder/deep/new"):
        with pytest.raises(StorageError, match="link"):
            make_folder(root / folder)
    assert sorted(p.name for p in outside.rglob("*")) == ["deep", "file"]
    assert (outside / "file").read_text() == "precious"


def test_a_project_that_is_reached_through_a_link_is_written(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    guard(link)
    write_text(link / "runs" / "a", "x")
    assert (root / "runs" / "a").read_text() == "x"
    (root / "runs" / "b").symlink_to(root.parent / "outside" / "file")
    for way in (link, root):
        with pytest.raises(StorageError, match="is a link"):
            write_text(way / "runs" / "b", "x")


def test_what_is_no_file_is_refused(root: Path) -> None:
    os.mkfifo(root / "run.lock")
    with pytest.raises(StorageError, match="neither a file nor a folder"):
        open_own(root / "run.lock", "a+")


def test_a_second_name_of_a_file_keeps_its_content(root: Path) -> None:
    os.link(root.parent / "outside" / "file", root / "run.lock")
    with open_own(root / "run.lock", "a+") as file:
        file.write("!")
    assert (root.parent / "outside" / "file").read_text() == "precious"
    assert (root / "run.lock").read_text() == "precious!"


def test_a_link_is_removed_and_not_what_it_leads_to(root: Path) -> None:
    outside = root.parent / "outside"
    (root / "state").symlink_to(outside, target_is_directory=True)
    with pytest.raises(StorageError, match="is a link"):
        remove(root / "state" / "deep")
    remove(root / "state")
    assert not (root / "state").is_symlink()
    assert (outside / "deep").is_dir()


def test_a_removal_is_a_rename_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "sets" / "0").mkdir(parents=True)
    monkeypatch.setattr(files, "discard", lambda path: None)
    remove(root / "sets")
    assert not (root / "sets").exists()
    monkeypatch.undo()
    assert len(list(root.glob(".*.gone.sets"))) == 1
    sweep(root)
    assert len(list(root.glob(".*.gone.sets"))) == 1, "its process lives"
    sweep(root, alone=True)
    assert not list(root.glob(".*"))


def _dead_process() -> int:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        pass
    return process.pid


def test_leftovers_of_the_dead_are_swept(root: Path) -> None:
    dead, host = _dead_process(), files._HOST
    theirs = [f".0123abcd.{host}-{dead}.part.a.tif", ".0123abcd.part.b.tif", f".0123abcd.{host}-{dead}.gone.runs"]
    living = [f".0123abcd.{host}-{os.getpid()}.part.c.tif", f".0123abcd.00000000-{dead}.part.d.tif", ".hidden.part.e"]
    partial = "0." + 32 * "0" + ".partial"
    for name in (*theirs, *living, partial):
        (root / name).write_text("")
    sweep(root)
    assert {p.name for p in root.iterdir()} == {"runs", partial, *living}
    sweep(root, alone=True)
    assert {p.name for p in root.iterdir()} == {"runs", ".hidden.part.e"}
    sweep(root / "none")


def test_a_folder_that_was_being_replaced_comes_back(root: Path) -> None:
    old = root / f".0123abcd.{files._HOST}-{_dead_process()}.old.export.zarr"
    (old / "0").mkdir(parents=True)
    sweep(root)
    assert (root / "export.zarr" / "0").is_dir()
    old.mkdir()
    sweep(root)
    assert not old.exists()


def test_long_names_can_be_replaced(root: Path) -> None:
    write_text(root / ("a" * 250), "x")
    assert (root / ("a" * 250)).read_text() == "x"
