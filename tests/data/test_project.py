from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import zarr

from napari_slicelabel.data.boxes import Box, SliceRef
from napari_slicelabel.data.classes import PALETTE, make_classes
from napari_slicelabel.data.fingerprint import fingerprint
from napari_slicelabel.data.formats import open_volume
from napari_slicelabel.data.project import LabelClass, Project
from napari_slicelabel.errors import InputError, MissingFileError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (6, 20, 30)
SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "stack.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8))
    return path


@pytest.fixture
def made(tmp_path: Path, image: Path) -> Project:
    return Project.create(tmp_path / "p.slicelabel", image, voxel_size=(30, 6, 6), unit="nm", classes=["mito", "er"])


def test_create_and_open_give_the_same_project(made: Project) -> None:
    opened = Project.open(made.path)
    assert opened.file == made.file
    assert opened.names == ("stack",)
    assert [(c.id, c.name) for c in opened.classes] == [(1, "mito"), (2, "er")]
    volume = opened.volume("stack")
    assert (volume.name, volume.voxel_size, volume.unit) == ("stack", (30, 6, 6), "nanometer")
    assert volume is opened.volume("stack")
    assert opened.annotation("stack") is opened.annotation("stack")
    assert sorted(p.name for p in made.path.iterdir()) == ["annotation", "project.json", "runs", "selection"]


def test_annotation_survives_opening_again(made: Project) -> None:
    labels = np.ones(SHAPE[1:], np.uint8)
    made.annotation("stack").write_slice(SliceRef("z", 2), labels, complete=True)
    made.annotation("stack").set_complete(SliceRef("y", 4), True)
    opened = Project.open(made.path).annotation("stack")
    assert (opened.painted("z"), opened.complete("z"), opened.complete("y")) == ((2,), (2,), (4,))
    np.testing.assert_array_equal(opened.read_slice(SliceRef("z", 2)), labels)


def test_labels_must_be_classes_of_the_project(made: Project) -> None:
    annotation = made.annotation("stack")
    labels = np.full(SHAPE[1:], 3, np.uint8)
    with pytest.raises(InputError, match="add the class first"):
        annotation.write_slice(SliceRef("z", 0), labels)
    made.set_classes([*made.classes, "golgi"])
    annotation.write_slice(SliceRef("z", 0), labels)
    assert [c.name for c in Project.open(made.path).classes] == ["mito", "er", "golgi"]
    ome: Any = zarr.open_group(annotation.folder, mode="r").attrs["ome"]
    assert ome["image-label"]["properties"][2] == {"label-value": 3, "class": "golgi"}
    assert ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] == [30, 6, 6]


def test_classes_keep_id_and_colour_by_name(made: Project) -> None:
    made.set_classes(["er", LabelClass(id=9, name="new", color="#123456"), "another"])
    assert [(c.id, c.name) for c in made.classes] == [(1, "another"), (2, "er"), (9, "new")]
    assert made.classes[1].color == PALETTE[1]


@pytest.mark.parametrize(
    "classes",
    [
        ["a", "a"],
        [""],
        [LabelClass(id=1, name="a", color="#000000"), LabelClass(id=1, name="b", color="#000000")],
        [f"c{i}" for i in range(255)],
    ],
)
def test_classes_that_clash_are_refused(classes: list[Any]) -> None:
    with pytest.raises(InputError):
        make_classes(classes)


def test_the_palette_has_no_colour_twice() -> None:
    assert len({c.lower() for c in PALETTE}) == len(PALETTE)
    assert make_classes(["a"])[0].rgba == (0xE6, 0x9F, 0x00, 255)


def test_several_volumes_get_different_names(tmp_path: Path, image: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(image, tmp_path / "other" / "stack.npy")
    array = np.load(image)
    np.savez(tmp_path / "cases.npz", image_036=array, image=array, voxel_size_um=np.array([2.0, 1, 1]))
    npz = tmp_path / "cases.npz"
    project = Project.create(tmp_path / "p", [image, tmp_path / "other" / "stack.npy", f"{npz}::image_036", npz])
    assert project.names == ("stack", "stack_2", "image_036", "cases")
    assert (project.volume("cases").unit, project.volume("image_036").voxel_size) == ("micrometer", (2, 1, 1))
    added = project.add_volume(image, voxel_size=(3, 2, 1))
    assert (added.name, added.voxel_size) == ("stack_3", (3, 2, 1))
    opened = Project.open(project.path)
    assert opened.names == (*project.names[:4], "stack_3")
    opened.annotation("stack_3").write_slice(SliceRef("z", 0), np.ones(SHAPE[1:], np.uint8))
    with pytest.raises(InputError, match="this project has stack, stack_2"):
        opened.volume("nothing")
    with pytest.raises(InputError, match="given twice"):
        opened.add_volume(image, name="stack")
    with pytest.raises(InputError, match="becomes a file name"):
        opened.add_volume(image, name="../x")


def test_project_and_data_move_together(tmp_path: Path, made: Project) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    for path in (made.path, tmp_path / "data"):
        path.rename(target / path.name)
    volume = Project.open(target / made.path.name).volume("stack")
    assert volume.source == str(target / "data" / "stack.npy")


def test_the_project_moves_alone(tmp_path: Path, made: Project) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    made.path.rename(tmp_path / "a" / "b" / "p")
    assert Project.open(tmp_path / "a" / "b" / "p").volume("stack").shape == SHAPE


def test_a_missing_image_says_what_to_do_and_keeps_the_annotation(made: Project, image: Path) -> None:
    labels = np.ones(SHAPE[1:], np.uint8)
    made.annotation("stack").write_slice(SliceRef("z", 0), labels)
    image.unlink()
    opened = Project.open(made.path)
    with pytest.raises(MissingFileError, match="put it back there") as caught:
        opened.volume("stack")
    assert str(image) in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    np.testing.assert_array_equal(opened.annotation("stack").read_slice(SliceRef("z", 0)), labels)


def test_a_damaged_image_is_missing(made: Project, image: Path) -> None:
    image.write_bytes(b"rubbish")
    with pytest.raises(MissingFileError, match="Restore the file"):
        Project.open(made.path).volume("stack")


def test_an_image_of_another_shape_is_refused(made: Project, image: Path) -> None:
    np.save(image, np.zeros((7, 20, 30), np.uint8))
    with pytest.raises(InputError, match="put the original image back"):
        Project.open(made.path).volume("stack")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("\xff\xfe", "is damaged"),
        ("[]", "format version None"),
        ('{"format_version": 3}', "format version 3"),
        ('{"format_version": 2}', "volumes"),
        ('{"format_version": 1}', "volumes"),
        ('{"format_version": 1, "volumes": [], "extra": 1}', "extra"),
    ],
)
def test_a_damaged_project_file_is_refused(made: Project, text: str, message: str) -> None:
    (made.path / "project.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message) as caught:
        Project.open(made.path)
    assert "\n" not in str(caught.value)


def test_a_status_beyond_the_volume_is_refused(made: Project) -> None:
    data = json.loads((made.path / "project.json").read_text())
    data["volumes"][0]["status"] = {"painted": {}, "complete": {"z": [6]}}
    (made.path / "project.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="beyond the end of axis z"):
        Project.open(made.path)


def test_what_cannot_be_created(tmp_path: Path, image: Path, made: Project) -> None:
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: Project.create(made.path, image), InputError, "already exists"),
        (lambda: Project.create(tmp_path / "q", []), InputError, "at least one image"),
        (lambda: Project.create(tmp_path / "q", [image], names=["a", "b"]), InputError, "2 names for 1"),
        (lambda: Project.create(tmp_path / "q", [image] * 2, names=["a", "a"]), InputError, "given twice"),
        (lambda: Project.create(tmp_path / "q", tmp_path / "none.tif"), MissingFileError, "no such file"),
        (lambda: Project.open(tmp_path / "q"), MissingFileError, "create a project first"),
        (lambda: Project.open(tmp_path), InputError, "no project.json"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    assert not (tmp_path / "q").exists()
    assert not list(tmp_path.glob(".*"))


def test_rankings(made: Project) -> None:
    ranking = {"method": "representative", "order": [3, 1, 2], "coverage": [0.5, 0.7, 0.9]}
    made.save_ranking("first", ranking)
    made.save_ranking("first", {**ranking, "seed": 1})
    assert Project.open(made.path).ranking("first") == {**ranking, "seed": 1}
    assert made.ranking_names() == ("first",)
    with pytest.raises(InputError, match="this project has first"):
        made.ranking("second")
    with pytest.raises(InputError, match="becomes a file name"):
        made.save_ranking("a/b", ranking)
    for bad in ({"order": {1}}, {"coverage": float("nan")}):
        with pytest.raises(InputError, match="JSON"):
            made.save_ranking("bad", bad)
    (made.path / "selection" / "first.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        made.ranking("first")


def test_runs(made: Project) -> None:
    assert made.run_ids() == ()
    with pytest.raises(InputError, match="no runs yet"):
        made.run_folder("x")
    for name in ("b", "a"):
        (made.runs_folder / name).mkdir()
    assert made.run_ids() == ("a", "b")
    assert made.run_folder("a") == made.path / "runs" / "a"
    with pytest.raises(InputError, match="this project has a, b"):
        made.run_folder("c")


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "read-only")]
)
def test_a_disk_that_does_not_take_it(
    made: Project, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    before = (made.path / "project.json").read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    annotation = made.annotation("stack")
    changes: list[Callable[[], object]] = [
        lambda: annotation.write_slice(SliceRef("z", 1), np.ones(SHAPE[1:], np.uint8), complete=True),
        lambda: annotation.set_complete(SliceRef("x", 1), True),
        lambda: made.set_classes(["other"]),
        lambda: made.save_ranking("a", {}),
    ]
    for change in changes:
        with pytest.raises(StorageError, match=message) as caught:
            change()
        assert "\n" not in str(caught.value)
    assert (made.path / "project.json").read_bytes() == before
    assert [c.name for c in made.classes] == ["mito", "er"]
    assert annotation.complete("x") == ()
    assert annotation.annotated("z") == ()
    assert not annotation.read_slice(SliceRef("z", 1)).any()
    monkeypatch.undo()
    changes[0]()
    opened = Project.open(made.path).annotation("stack")
    assert (opened.painted("z"), opened.complete("z")) == ((1,), (1,))
    assert opened.read_slice(SliceRef("z", 1)).all()
    assert not [p for p in made.path.rglob("*") if ".part." in p.name]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_folder(made: Project) -> None:
    made.annotation("stack").write_slice(SliceRef("z", 1), np.ones(SHAPE[1:], np.uint8))
    folders = [made.path, *(p for p in made.path.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        opened = Project.open(made.path)
        assert opened.annotation("stack").read_slice(SliceRef("z", 1)).all()
        with pytest.raises(StorageError, match="no permission"):
            opened.annotation("stack").write_slice(SliceRef("z", 2), np.ones(SHAPE[1:], np.uint8))
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_kill_at_any_moment(made: Project) -> None:
    """SIGKILL in the middle of writing: the project opens, and every slice it calls complete is whole."""
    code = textwrap.dedent("""
        import sys
        import numpy as np
        from napari_slicelabel.data.boxes import SliceRef
        from napari_slicelabel.data.project import Project
        project = Project.open(sys.argv[1])
        annotation = project.annotation("stack")
        print("go", flush=True)
        for number in range(10**6):
            axis = "zyx"[number % 3]
            ref = SliceRef(axis, number % 5)
            h, w = [n for a, n in zip("zyx", annotation.shape) if a != axis]
            annotation.write_slice(ref, np.full((h, w), 1 + number % 2, np.uint8), complete=True)
    """)
    for seconds in (0.02, 0.11):
        process = subprocess.Popen([sys.executable, "-c", code, str(made.path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process, process.stdout:
            assert process.stdout.readline() == b"go\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.send_signal(signal.SIGKILL)
        opened = Project.open(made.path)
        annotation = opened.annotation("stack")
        labels = annotation.read(Box.whole(SHAPE))
        for number, axis in enumerate("zyx"):
            for index in annotation.complete(axis):  # type: ignore[arg-type]
                assert labels.take(index, number).all()
        annotation.write_slice(SliceRef("z", 5), np.ones(SHAPE[1:], np.uint8))


def test_a_file_of_the_real_data(tmp_path: Path, shared_volume: Callable[[str], dict[str, Any]]) -> None:
    arrays = shared_volume("med_hippocampus_40")
    case = next(k for k in arrays if k.startswith("image_"))
    project = Project.create(tmp_path / "p", f"{SHARED_DATA / 'med_hippocampus_40.npz'}::{case}")
    volume = project.volume(case)
    assert (volume.unit, volume.voxel_size) == ("millimeter", (1, 1, 1))
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape))[0], arrays[case])


def test_another_image_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (5, 70, 80), np.uint8)
    np.save(tmp_path / "image.npy", values)
    project = Project.create(tmp_path / "p.slicelabel", tmp_path / "image.npy")
    tifffile.imwrite(tmp_path / "same.tif", values, photometric="minisblack", compression="zlib")
    assert fingerprint(open_volume(tmp_path / "same.tif")) == project.record("image").fingerprint
    assert Project.open(project.path).volume("image").shape == (5, 70, 80)
    np.save(tmp_path / "image.npy", values[::-1])
    with pytest.raises(InputError, match="has other values than the one"):
        Project.open(project.path).volume("image")


def test_a_volume_that_is_removed_keeps_its_paint(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    project = Project.create(tmp_path / "p.slicelabel", [tmp_path / "a.npy", tmp_path / "b.npy"], classes=["x"])
    project.annotation("b").write_slice(SliceRef("z", 1), np.ones((4, 5), np.uint8))
    project.remove_volume("b")
    assert Project.open(project.path).names == ("a",)
    assert project.add_volume(tmp_path / "b.npy").name == "b_2"
    project.remove_volume("b_2")
    with pytest.raises(InputError, match="only one"):
        project.remove_volume("a")
    assert (project.path / "annotation" / "b.json").exists()
