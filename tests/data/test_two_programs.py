"""Programs that write into one project at once, and programs that are killed at any step: nothing painted is lost."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.data.classes import LabelClass, default_color
from napari_slicelabel.data.project import Project
from napari_slicelabel.errors import InputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="programs are made by fork")
SHAPE = (18, 20, 300)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    np.save(tmp_path / "stack.npy", np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8))
    return Project.create(tmp_path / "p", tmp_path / "stack.npy", classes=["mito"])


def fork(work: Callable[[], object], killed_at: int | None = None) -> int:
    """Do `work` in a process of its own that ends before its n-th change of the disk; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if killed_at is not None:
            _end_at(killed_at)
        work()
    except BaseException:  # noqa: BLE001 - nothing may return into the tests
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _end_at(change: int) -> None:
    changes = count()
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_change = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate") or (
            event == "open" and bool((arguments[2] or 0) & writing)
        )
        if is_change and next(changes) == change:
            os._exit(9)

    sys.addaudithook(hook)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def paint(project: Project, z: int, value: int, **options: Any) -> None:
    project.annotation("stack").write_slice(SliceRef("z", z), np.full(SHAPE[1:], value, np.uint8), **options)


def state(path: Path) -> dict[str, Any]:
    project = Project.open(path)
    annotation = project.annotation("stack")
    return {
        "classes": [c.name for c in project.classes],
        "volumes": project.names,
        "status": annotation.status.model_dump(),
        "voxels": annotation.read(Box.whole(SHAPE)).tobytes(),
    }


def make_older(path: Path) -> None:
    """Make a project what format version 1 was: the status of the slices in project.json."""
    data = json.loads((path / "project.json").read_text())
    data["format_version"] = 1
    for volume in data["volumes"]:
        file = path / "annotation" / f"{volume['name']}.json"
        volume["status"] = json.loads(file.read_text())["status"]
        file.unlink()
    (path / "project.json").write_text(json.dumps(data))
    for lock in path.rglob("*.lock"):
        lock.unlink()


def _write(path: Path) -> None:
    # one chunk is written, another one of the same slice loses all its paint
    labels = np.zeros(SHAPE[1:], np.uint8)
    labels[:, :9] = 2
    Project.open(path).annotation("stack").write_slice(SliceRef("z", 17), labels, complete=True)


def _clear(path: Path) -> None:
    Project.open(path).annotation("stack").clear_slice(SliceRef("z", 17))


def _complete(path: Path) -> None:
    Project.open(path).annotation("stack").set_complete(SliceRef("z", 3), True)


def _add_class(path: Path) -> None:
    Project.open(path).set_classes(["mito", "er", "golgi"])


def _add_volume(path: Path) -> None:
    Project.open(path).add_volume(path.parent / "stack.npy", name="second")


@pytest.mark.parametrize(
    ("work", "is_older"),
    [(_write, False), (_write, True), (_clear, False), (_complete, False), (_add_class, True), (_add_volume, False)],
)
def test_a_kill_at_any_step_leaves_all_or_nothing(
    project: Project, work: Callable[[Path], None], is_older: bool
) -> None:
    project.set_classes(["mito", "er"])
    for z in (3, 17):
        paint(project, z, 1, complete=z == 17)
    if is_older:
        make_older(project.path)
    before = state(project.path)
    copy = project.path.with_name("copy")
    shutil.copytree(project.path, copy)
    work(copy)
    after = state(copy)
    assert after != before
    for step in count():
        shutil.rmtree(copy)
        shutil.copytree(project.path, copy)
        code = ended(fork(lambda: work(copy), killed_at=step))
        seen = state(copy)
        assert seen in (before, after), f"step {step}"
        if code == 0:
            assert seen == after
            break
        assert code == 9
        # the same command goes on, and nothing is left over
        work_again(copy, work, seen == after)
        assert state(copy) == after, f"again after step {step}"
        assert not [p for p in copy.rglob("*") if ".part." in p.name or ".writing" in p.name or ".gone." in p.name]
    assert step > 3


def work_again(path: Path, work: Callable[[Path], None], is_done: bool) -> None:
    if is_done and work == _add_volume:
        with pytest.raises(InputError, match="given twice"):
            work(path)
    else:
        work(path)


def test_opening_an_older_project_writes_nothing(project: Project) -> None:
    paint(project, 3, 1, complete=True)
    make_older(project.path)
    old = (project.path / "project.json").read_bytes()
    names = set(project.path.rglob("*"))
    opened = Project.open(project.path)
    assert opened.annotation("stack").complete("z") == (3,)
    assert opened.annotation("stack").supervision(SliceRef("z", 3)).known.all()
    assert set(project.path.rglob("*")) == names
    watching = Project.open(project.path)
    assert watching.annotation("stack").complete("z") == (3,)
    opened.annotation("stack").set_complete(SliceRef("y", 2), True)
    assert (project.path / "project.json.v1").read_bytes() == old
    assert "status" not in (project.path / "project.json").read_text()
    # who opened it before sees it, too
    assert watching.annotation("stack").complete("y") == (2,)
    # an older version of the program does not understand it
    assert json.loads((project.path / "project.json").read_text())["format_version"] == 2
    (project.path / "annotation" / "stack.json").unlink()
    with pytest.raises(StorageError, match="restore it from a copy"):
        Project.open(project.path).annotation("stack")


@pytest.mark.parametrize("is_migrated", [False, True])
def test_an_older_painted_slice_without_chunks_is_an_error(project: Project, is_migrated: bool) -> None:
    for z in (3, 17):
        paint(project, z, 1)
    make_older(project.path)
    shutil.rmtree(project.path / "annotation" / "stack.zarr" / "0" / "c" / "1")
    opened = Project.open(project.path)
    if is_migrated:
        opened.annotation("stack").set_complete(SliceRef("z", 3), True)
    assert (opened.annotation("stack").read_slice(SliceRef("z", 3)) == 1).all()
    with pytest.raises(StorageError, match="is missing, and slices z17 were painted"):
        opened.annotation("stack").supervision(SliceRef("z", 17))
    opened.annotation("stack").clear_slice(SliceRef("z", 17))
    assert opened.annotation("stack").annotated("z") == (3,)


@pytest.mark.parametrize("is_older", [False, True])
def test_programs_that_paint_at_once_keep_everything(project: Project, is_older: bool) -> None:
    """Slices that share chunks, and classes: three programs, and this one that had the project open before."""
    paint(project, 16, 1)
    if is_older:
        make_older(project.path)
    watching = Project.open(project.path)
    assert watching.annotation("stack").painted("z") == (16,)

    def work(number: int) -> None:
        own = Project.open(project.path)
        value = number + 2
        own.set_classes([*own.classes, LabelClass(id=value, name=f"class {value}", color=default_color(value))])
        for z in range(number, 15, 3):
            paint(own, z, value, complete=True)

    pids = [fork(lambda number=number: work(number)) for number in range(3)]  # type: ignore[misc]
    assert [ended(pid) for pid in pids] == [0, 0, 0]
    annotation = watching.annotation("stack")
    assert annotation.painted("z") == (*range(15), 16)
    assert annotation.complete("z") == tuple(range(15))
    for z in range(15):
        assert (annotation.read_slice(SliceRef("z", z)) == z % 3 + 2).all()
    watching.refresh()
    assert sorted(c.id for c in watching.classes) == [1, 2, 3, 4]


def test_classes_of_two_programs_are_merged(project: Project) -> None:
    one, other = Project.open(project.path), Project.open(project.path)
    start = one.classes
    one.set_classes([*start, "er"])
    other.set_classes([*start, "golgi"])
    assert [(c.id, c.name) for c in other.classes] == [(1, "mito"), (2, "er"), (3, "golgi")]
    # what the one takes out goes, what the other added stays
    one.set_classes([c for c in one.classes if c.name == "er"])
    assert [c.name for c in one.classes] == ["er", "golgi"]
    clash = LabelClass(id=3, name="lysosome", color="#123456")
    with pytest.raises(InputError, match="another program has just made it golgi"):
        other.set_classes([*start, clash], base=start)
    assert one.refresh() is False
    assert other.add_volume(project.path.parent / "stack.npy", name="b").name == "b"
    assert one.add_volume(project.path.parent / "stack.npy", name="c").name == "c"
    assert Project.open(project.path).names == ("stack", "b", "c")


def _refusal(write: Callable[[Project], object], path: Path) -> list[str]:
    try:
        write(Project.open(path))
    except StorageError as error:
        return [str(error)]
    return []


def test_links_in_an_annotation_are_not_written_through(project: Project, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    paint(project, 3, 1)
    for name in (
        "annotation/stack.zarr.writing",
        "annotation/stack.lock",
        "annotation/stack.json",
        "annotation/stack.zarr/0/c/1",
        "annotation/stack.zarr/0/c/0/0/0",
        "annotation/stack.zarr",
        "annotation",
        "project.json",
        "project.lock",
        "selection",
    ):
        copy = tmp_path / "copy"
        shutil.copytree(project.path, copy)
        place = copy / name
        outside.mkdir()
        if place.exists():
            shutil.move(place, outside / "there")
        elif name.endswith("lock"):
            (outside / "there").write_text("precious")
        else:
            (outside / "there").mkdir()
        place.symlink_to(outside / "there")
        before = {p: p.read_bytes() if p.is_file() else None for p in outside.rglob("*")}
        refused = []
        for write in (
            lambda p: paint(p, 3, 0),
            lambda p: paint(p, 17, 1),
            lambda p: p.annotation("stack").set_complete(SliceRef("z", 1), True),
            lambda p: p.set_classes(["other"]),
            lambda p: p.save_ranking("a", {}),
        ):
            refused += _refusal(write, copy)
        assert all("is a link" in text and "\n" not in text for text in refused)
        assert refused, name
        assert {p: p.read_bytes() if p.is_file() else None for p in outside.rglob("*")} == before, name
        shutil.rmtree(outside)
        shutil.rmtree(copy)
