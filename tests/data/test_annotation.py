from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_slicelabel.data.annotation import CHUNKS, Annotation, SliceIndices, SliceStatus
from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.errors import InputError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (20, 300, 280)


def make(folder: Path, shape: tuple[int, int, int] = SHAPE, **options: Any) -> Annotation:
    return Annotation(folder / "a.zarr", shape, **options)


def plane(shape: tuple[int, int, int], axis: Axis, value: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full([n for a, n in zip(AXES, shape, strict=True) if a != axis], value, np.uint8)


def chunk_files(annotation: Annotation) -> dict[str, int]:
    folder = annotation.folder / "0" / "c"
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class NoReading:
    """Stands in for the zarr array where nothing may be read."""

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("the store was touched")


@st.composite
def writes(draw: st.DrawFn) -> list[tuple[SliceRef, int]]:
    number = st.integers(0, 5)
    refs = st.builds(SliceRef, st.sampled_from(AXES), number)
    return draw(st.lists(st.tuples(refs, st.sampled_from([0, 1, 2, 255])), min_size=1, max_size=6))


@settings(deadline=None, max_examples=25)
@given(writes(), st.lists(st.booleans(), min_size=6, max_size=6), st.randoms(use_true_random=False))
def test_the_store_behaves_like_an_array(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[SliceRef, int]], complete: list[bool], random: Any
) -> None:
    """Round trip, crossing slices (the latest wins), and what is known, against a dense array."""
    shape = (6, 7, 8)
    folder = tmp_path_factory.mktemp("annotation")
    annotation = make(folder, shape)
    dense = np.zeros(shape, np.uint8)
    declared: set[SliceRef] = set()
    for (ref, value), done in zip(script, complete, strict=False):
        box = ref.box(shape)
        labels = plane(shape, ref.axis, value)
        labels[: random.randrange(4)] = 0
        dense[box.slices] = np.expand_dims(labels, ref.axis_number)
        annotation.write_slice(ref, labels, complete=done)
        (declared.add if done else declared.discard)(ref)
        np.testing.assert_array_equal(annotation.read_slice(ref), labels)
    opened = make(folder, shape)
    np.testing.assert_array_equal(opened.read(Box.whole(shape)), dense)
    known = dense > 0
    for ref in declared:
        known[ref.box(shape).slices] = True
    for axis in AXES:
        assert set(opened.complete(axis)) == {r.index for r in declared if r.axis == axis}
        assert set(opened.annotated(axis)) == set(opened.painted(axis)) | set(opened.complete(axis))
        for index in range(shape[AXES.index(axis)]):
            ref = SliceRef(axis, index)
            slices = ref.box(shape).slices
            supervision = opened.supervision(ref)
            np.testing.assert_array_equal(supervision.known, known[slices].squeeze(ref.axis_number))
            expected = np.where(dense == 255, 0, dense)[slices].squeeze(ref.axis_number)
            np.testing.assert_array_equal(supervision.target, expected)
    targets = opened.targets()
    np.testing.assert_array_equal(targets[:], np.where(known, np.where(dense == 255, 0, dense), 255))
    assert (targets.shape, targets[2].shape, targets[1:3, ::2].shape) == (shape, (7, 8), (2, 4, 8))


def test_a_large_store_begins_without_a_chunk(tmp_path: Path) -> None:
    make(tmp_path, (4, 4, 4)).write_slice(SliceRef("z", 0), plane((4, 4, 4), "z", 1))
    (tmp_path / "big").mkdir()
    annotation = make(tmp_path / "big", (1024, 4096, 4096))
    annotation._array(create=True)
    assert chunk_files(annotation) == {}


@pytest.mark.parametrize("axis", AXES)
def test_a_write_touches_only_the_chunks_it_crosses(tmp_path: Path, axis: Axis) -> None:
    annotation = make(tmp_path)
    other = SliceRef("z", 19)
    annotation.write_slice(other, plane(SHAPE, "z", 2))
    before = chunk_files(annotation)
    ref = SliceRef(axis, 7)
    annotation.write_slice(ref, plane(SHAPE, axis, 1))
    after = chunk_files(annotation)
    crossed = {
        "/".join(str(a // c) for a, c in zip(tile.start, CHUNKS, strict=True))
        for tile in Box.whole(SHAPE).tiles(CHUNKS)
        if tile.intersect(ref.box(SHAPE)).size
    }
    assert {name for name in after if after[name] != before.get(name)} == crossed


def test_a_stroke_touches_the_chunks_that_change(tmp_path: Path) -> None:
    annotation = make(tmp_path)
    labels = plane(SHAPE, "z", 1)
    annotation.write_slice(SliceRef("z", 3), labels)
    before = chunk_files(annotation)
    labels[290, 270] = 2
    annotation.write_slice(SliceRef("z", 3), labels)
    after = chunk_files(annotation)
    assert [name for name in after if after[name] != before[name]] == ["0/1/1"]
    annotation.write_slice(SliceRef("z", 3), labels)
    assert chunk_files(annotation) == after


def test_unpainted_chunks_do_not_exist(tmp_path: Path) -> None:
    annotation = make(tmp_path)
    labels = plane(SHAPE, "z", 0)
    labels[5, 5] = 1
    annotation.write_slice(SliceRef("z", 3), labels)
    assert list(chunk_files(annotation)) == ["0/0/0"]
    annotation.clear_slice(SliceRef("z", 3))
    assert chunk_files(annotation) == {}
    assert annotation.annotated("z") == ()


def test_reading_what_nobody_painted_reads_nothing(tmp_path: Path) -> None:
    annotation = make(tmp_path)
    annotation.write_slice(SliceRef("z", 3), plane(SHAPE, "z", 1), complete=True)
    annotation._opened = NoReading()  # type: ignore[assignment]
    assert not annotation.read_slice(SliceRef("z", 4)).any()
    assert not annotation.supervision(SliceRef("z", 4)).known.any()
    with pytest.raises(AssertionError):
        annotation.read_slice(SliceRef("y", 4))


def test_complete_is_kept_unless_told(tmp_path: Path) -> None:
    annotation = make(tmp_path)
    ref = SliceRef("y", 3)
    annotation.write_slice(ref, plane(SHAPE, "y", 1), complete=True)
    annotation.write_slice(ref, plane(SHAPE, "y", 2))
    assert annotation.complete("y") == (3,)
    annotation.set_complete(ref, False)
    assert (annotation.complete("y"), annotation.painted("y")) == ((), (3,))
    annotation.set_complete(SliceRef("x", 1), True)
    assert (annotation.annotated("x"), annotation.painted("x")) == ((1,), ())


def test_background_painted_on_purpose_is_known_and_zero(tmp_path: Path) -> None:
    annotation = make(tmp_path)
    labels = plane(SHAPE, "z", 0)
    labels[0, 0], labels[1, 1] = 255, 7
    annotation.write_slice(SliceRef("z", 0), labels)
    supervision = annotation.supervision(SliceRef("z", 0))
    assert supervision.known.sum() == 2
    assert supervision.target.dtype == np.uint8
    assert (supervision.target[0, 0], supervision.target[1, 1]) == (0, 7)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((300, 281), np.uint8), "expected \\(300, 280\\)"),
        (np.zeros((1, 300, 280), np.uint8), "shape"),
        (np.zeros((300, 280)), "float64"),
        (np.full((300, 280), 256), "0 to 255"),
        (np.full((300, 280), -1), "0 to 255"),
        (np.full((300, 280), 9), "values \\[9\\]"),
    ],
)
def test_labels_that_do_not_belong_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    annotation = make(tmp_path, class_ids=lambda: frozenset({1, 2}))
    with pytest.raises(InputError, match=message):
        annotation.write_slice(SliceRef("z", 0), labels)
    assert not annotation.folder.exists()


def test_slices_outside_are_refused(tmp_path: Path) -> None:
    annotation = make(tmp_path)
    for call in (annotation.read_slice, annotation.clear_slice, annotation.supervision):
        with pytest.raises(InputError, match="20 slices"):
            call(SliceRef("z", 20))
    with pytest.raises(InputError):
        annotation.set_complete(SliceRef("x", 280), True)
    with pytest.raises(InputError):
        annotation.read(Box((0, 0, 0), (21, 1, 1)))


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_chunk_is_named(tmp_path: Path, damage: bytes | None) -> None:
    annotation = make(tmp_path)
    ref = SliceRef("z", 0)
    labels = np.random.default_rng(0).integers(1, 200, SHAPE[1:]).astype(np.uint8)
    annotation.write_slice(ref, labels)
    path = annotation.folder / "0" / "c" / "0" / "1" / "0"
    # a single flipped byte is found by the checksum
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(bytes(whole) if damage is None else damage)
    opened = make(tmp_path)
    for call in (lambda: opened.read_slice(ref), lambda: opened.write_slice(ref, labels * 0)):
        with pytest.raises(StorageError, match="damaged") as caught:
            call()
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    assert opened.painted("z") == (0,)
    np.testing.assert_array_equal(opened.read(Box((0, 0, 0), (1, 256, 280)))[0], labels[:256])


def remove_chunk(annotation: Annotation, name: str) -> Path:
    path = annotation.folder / "0" / "c" / name
    path.unlink()
    return path


def test_a_missing_chunk_is_named_and_never_taken_for_unpainted(tmp_path: Path) -> None:
    annotation = make(tmp_path)
    refs = SliceRef("z", 3), SliceRef("y", 290)
    for ref in refs:
        annotation.write_slice(ref, plane(SHAPE, ref.axis, 1), complete=True)
    path = remove_chunk(annotation, "0/1/1")
    opened = make(tmp_path)
    for call in (
        lambda: opened.read_slice(refs[0]),
        lambda: opened.supervision(refs[1]),
        lambda: opened.targets()[3],
        lambda: opened.write_slice(refs[0], plane(SHAPE, "z", 2)),
        # nothing is painted there, but to write would make the chunk anew without what others had in it
        lambda: opened.write_slice(SliceRef("z", 4), plane(SHAPE, "z", 2)),
    ):
        with pytest.raises(StorageError, match="is missing, and slices z3, y290 were painted") as caught:
            call()
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    assert (opened.read(Box((3, 0, 0), (4, 256, 280))) == 1).all()
    # given up one by one: the other one does not lose its part in silence
    opened.clear_slice(refs[0])
    with pytest.raises(StorageError, match="slices y290 were"):
        make(tmp_path).read_slice(refs[1])
    opened.clear_slice(refs[1])
    assert make(tmp_path).annotated("y") == ()
    opened.write_slice(refs[0], plane(SHAPE, "z", 2))
    assert (make(tmp_path).read_slice(refs[0]) == 2).all()


def test_an_empty_slice_that_is_complete_is_no_error(tmp_path: Path) -> None:
    annotation = make(tmp_path)
    ref = SliceRef("z", 3)
    annotation.write_slice(ref, plane(SHAPE, "z", 1))
    annotation.write_slice(ref, plane(SHAPE, "z", 0), complete=True)
    assert make(tmp_path).supervision(ref).known.all()


def test_a_status_file_that_is_missing_or_damaged_is_an_error(tmp_path: Path) -> None:
    make(tmp_path).write_slice(SliceRef("z", 3), plane(SHAPE, "z", 1))
    path = tmp_path / "a.json"
    whole = path.read_text()
    for text in ("", "{", "[]", whole.replace("3", "20"), whole.replace("3", "-3"), "\xff\xfe"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(StorageError, match="is damaged") as caught:
            make(tmp_path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(StorageError, match="which slices are painted: restore it"):
        make(tmp_path, begun=True)


def test_only_what_was_painted_replaces_what_others_painted(tmp_path: Path) -> None:
    one, other = make(tmp_path), make(tmp_path)
    ref = SliceRef("z", 3)
    one.write_slice(ref, plane(SHAPE, "z", 1))
    base = one.read_slice(ref)
    mine, theirs = base.copy(), base.copy()
    mine[:10], theirs[:, :10] = 2, 3
    other.write_slice(ref, theirs, complete=True)
    assert one.changes == 1
    one.write_slice(ref, mine, where=mine != base)
    expected = theirs.copy()
    expected[:10] = 2
    np.testing.assert_array_equal(other.read_slice(ref), expected)
    assert (other.complete("z"), one.complete("z")) == ((3,), (3,))
    assert (one.changes, other.changes) == (1, 1)
    one.write_slice(ref, plane(SHAPE, "z", 4), keep=True)
    np.testing.assert_array_equal(other.read_slice(ref), expected)


def test_damaged_metadata_is_a_storage_error(tmp_path: Path) -> None:
    annotation = make(tmp_path)
    annotation.write_slice(SliceRef("z", 0), plane(SHAPE, "z", 1))
    (annotation.folder / "0" / "zarr.json").write_text("{")
    with pytest.raises(StorageError, match="cannot be opened"):
        make(tmp_path).read_slice(SliceRef("z", 0))


def test_another_shape_is_a_storage_error(tmp_path: Path) -> None:
    annotation = make(tmp_path)
    annotation.write_slice(SliceRef("z", 0), plane(SHAPE, "z", 1))
    with pytest.raises(StorageError, match="do not belong together"):
        make(tmp_path, (20, 300, 281)).read_slice(SliceRef("z", 0))


def test_the_note_of_an_older_version_shows_the_slice_it_was_writing(tmp_path: Path) -> None:
    note = tmp_path / "a.zarr.writing"
    older = SliceStatus(complete=SliceIndices(y=(9,)))
    for text in ('{"axis": "z"', '{"axis": "z", "index": 99}', "\xff"):
        note.write_text(text, encoding="latin-1")
        assert make(tmp_path, older=lambda: older).status == older
    note.write_text('{"axis": "y", "index": 9}')
    opened = make(tmp_path, older=lambda: older)
    # painted, so that what reached the disk is shown; not complete, since a human must look
    assert (opened.painted("y"), opened.complete("y")) == ((9,), ())
    assert list(tmp_path.iterdir()) == [note]
    opened.begin(older)
    opened = make(tmp_path, begun=True)
    opened.set_complete(SliceRef("z", 1), True)
    assert (opened.annotated("y"), opened.complete("y"), opened.complete("z")) == ((9,), (), (1,))
    assert not note.exists()


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk fails at once while the others are slow: when the error is raised nothing is under way any more."""
    import errno
    import time
    from pathlib import Path as AnyPath

    annotation = make(tmp_path)
    annotation.write_slice(SliceRef("z", 0), plane(SHAPE, "z", 1))
    put, before = AnyPath.write_bytes, tree(tmp_path)

    def full(path: Path, value: bytes) -> int:
        if path.name == "c.0.0.0":
            raise OSError(errno.ENOSPC, "No space left on device")
        time.sleep(0.1)
        return put(path, value)

    monkeypatch.setattr(AnyPath, "write_bytes", full)
    with pytest.raises(StorageError, match="disk is full") as caught:
        annotation.write_slice(SliceRef("z", 1), plane(SHAPE, "z", 2), complete=True)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert (annotation.painted("z"), annotation.complete("z")) == ((0,), ())
    assert not annotation.read_slice(SliceRef("z", 1)).any()
    assert tree(tmp_path) == before
    annotation.write_slice(SliceRef("z", 1), plane(SHAPE, "z", 3), complete=True)
    time.sleep(0.2)
    opened = make(tmp_path)
    assert (opened.read_slice(SliceRef("z", 1)) == 3).all()
    assert (opened.read_slice(SliceRef("z", 0)) == 1).all()


def test_the_store_is_an_ome_zarr_label_image(tmp_path: Path) -> None:
    yaozarrs = pytest.importorskip("yaozarrs")
    annotation = make(tmp_path)
    annotation.write_slice(SliceRef("z", 0), plane(SHAPE, "z", 1))
    yaozarrs.validate_zarr_store(str(annotation.folder))
    group = zarr.open_group(annotation.folder, mode="r")
    assert isinstance(group.attrs["ome"], dict)
    assert group.attrs["ome"]["image-label"] == {"version": "0.5"}
