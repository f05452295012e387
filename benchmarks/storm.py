"""What `benchmarks.kills` kills: commands at their smallest, and the projects that they begin with."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.forks import slicelabel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.annotation import Annotation

SHAPE = (16, 64, 64)
COMPLETE = (2, 7, 12)
PROJECT = "p.slicelabel"

_NETWORK: Mapping[str, object] = {
    **dict.fromkeys(("iterations", "round_iterations", "fold_iterations", "flow_iterations", "transfer_iterations"), 2),
    "rounds": 2,
    "width": 8,
    "batch": 2,
    "crop_px": 32,
}
_FLOW: Mapping[str, object] = {"iterations": 2, "batch": 2, "crop_px": 32, "reuse": "off"}
_VOLUME: Mapping[str, object] = {
    **dict.fromkeys(("iterations", "fold_iterations", "flow_iterations"), 2),
    "width": 4,
    "levels": 3,
    "crop_px": 32,
    "crop_depth": 8,
    "batch": 1,
}
METHODS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "interpolate": ("interpolate", {}),
    "flow": ("flow", _FLOW),
    "flow sli2vol+": (
        "flow",
        {
            **_FLOW,
            **dict.fromkeys(("guide_iterations", "refine_iterations"), 2),
            "preset": "sli2vol+",
            "refine_width": 4,
            "encoder": "compact",
            "sides": "both",
            "calibrate": "auto",
        },
    ),
    "self-label": ("self-label", _NETWORK),
    "gradual-3d": ("gradual-3d", {**_VOLUME, "round_iterations": 2, "rounds": 2, "churn": 0.0}),
    "self-train": (
        "self-train",
        {
            **_VOLUME,
            **dict.fromkeys(("plane_iterations", "random_iterations", "nearest_iterations"), 2),
            "width": 8,
            "plane_batch": 2,
        },
    ),
}
EXPORTS = (".ome.zarr", ".tif", ".nii.gz", ".h5", "")


@dataclass(frozen=True)
class State:
    """A folder with a project as a command finds it.

    Attributes
    ----------
    prepare : callable
        Makes it in a folder, which is the working directory.
    after : str, optional
        The state that it follows from.
    beside : str, optional
        Another state that it looks at, in a folder beside its own.
    """

    prepare: Callable[[Path], None]
    after: str | None = None
    beside: str | None = None


@dataclass(frozen=True)
class Command:
    """Something that may be killed.

    Attributes
    ----------
    name : str
        What it is called in reports.
    state : str
        Name in STATES.
    work : callable
        Takes the folder, returns what a fork runs.
    result : callable
        Takes the folder, returns what must be the same whether or not it was killed before.
    lost : callable
        Takes the folder just after the kill, returns what was acknowledged and is lost.
    runs : bool
        Whether it starts a run, or goes on with one.
    resumes : callable
        Takes the folder, returns the runs that it goes on with.
    makes : bool
        Whether it makes the project.
    short : bool
        Whether the short form kills it.
    turns : int
        In one of so many rounds it is killed: runs that train take longer than all else.
    speaks : bool
        Whether it is one of the command line, which says something when it is interrupted.
    """

    name: str
    state: str
    work: Callable[[Path], Callable[[], int | None]]
    result: Callable[[Path], Any]
    lost: Callable[[Path], list[str]]
    runs: bool = False
    resumes: Callable[[Path], tuple[str, ...]] = lambda _: ()
    makes: bool = False
    short: bool = True
    turns: int = 1
    speaks: bool = True


# states


def _write_images(folder: Path) -> None:
    from napari_slicelabel.data.samples import synthetic_em

    sample = synthetic_em(SHAPE, seed=0)
    np.save(folder / "image.npy", sample.image)
    np.save(folder / "labels.npy", sample.labels)


def _do(*arguments: object) -> None:
    code = slicelabel(*arguments)()
    if code:
        raise RuntimeError(f"{arguments}: exit {code}")


def _make_project(folder: Path) -> None:
    _do("new", folder / PROJECT, folder / "image.npy")


def _paint(folder: Path) -> None:
    """Paint three whole slices, and strokes in one more along z and in one along y."""
    from napari_slicelabel.data.boxes import SliceRef
    from napari_slicelabel.data.project import Project

    _do("annotate", folder / PROJECT, "--labels", folder / "labels.npy", "--slices", ",".join(map(str, COMPLETE)))
    truth = np.load(folder / "labels.npy")
    annotation = Project.open(folder / PROJECT).annotation("image")
    annotation.write_slice(SliceRef("z", 9), np.where(np.arange(64) < 30, truth[9], 0))
    annotation.write_slice(SliceRef("y", 20), truth[:, 20])
    np.save(folder / "painted.npy", whole(annotation))
    (folder / "status.json").write_text(json.dumps(_status(annotation)))


def _finish(method: str) -> Callable[[Path], None]:
    return lambda folder: _do(*run_arguments(folder, method))


def _begin(method: str) -> Callable[[Path], None]:
    """Run until half of the events have come that the finished run of it has in its journal."""

    def prepare(folder: Path) -> None:
        from napari_slicelabel.data.project import Project
        from napari_slicelabel.engine.config import build_config
        from napari_slicelabel.engine.run import run

        name, settings = METHODS[method]
        finished = folder.with_name(f"finished {method}") / PROJECT / "runs"
        (journal,) = finished.glob("*/events.jsonl")
        events = run(Project.open(folder / PROJECT), build_config(name, {"device": "cpu", **settings}))
        for _ in range(len(journal.read_text().splitlines()) // 2):
            next(events)
        events.close()

    return prepare


STATES: dict[str, State] = {
    "images": State(_write_images),
    "new": State(_make_project, "images"),
    "painted": State(_paint, "new"),
    **{f"finished {method}": State(_finish(method), "painted") for method in METHODS},
    **{f"begun {method}": State(_begin(method), "painted", f"finished {method}") for method in METHODS},
}


# what is there


def run_ids(folder: Path) -> frozenset[str]:
    """Return the runs of the project in a folder."""
    return frozenset(path.name for path in (folder / PROJECT / "runs").glob("[!.]*"))


def new_runs(folder: Path, before: frozenset[str]) -> tuple[str, ...]:
    """Return the runs that came since."""
    return tuple(sorted(run_ids(folder) - before))


def newest_run(folder: Path) -> str:
    """Return the run that began last."""
    return max(run_ids(folder))


def _all_runs(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(run_ids(folder)))


def whole(annotation: Annotation) -> NDArray[np.uint8]:
    from napari_slicelabel.data.boxes import Box

    return annotation.read(Box.whole(annotation.shape))


def _status(annotation: Annotation) -> dict[str, dict[str, list[int]]]:
    return {
        kind: {axis: list(getattr(annotation, kind)(axis)) for axis in "zyx"}  # type: ignore[arg-type]
        for kind in ("painted", "complete")
    }


def digest(array: NDArray[Any]) -> str:
    return f"{array.shape} {hashlib.sha256(np.ascontiguousarray(array, np.uint8)).hexdigest()[:16]}"


def _annotation(folder: Path) -> Annotation:
    from napari_slicelabel.data.project import Project

    return Project.open(folder / PROJECT).annotation("image")


def lost_strokes(folder: Path) -> list[str]:
    """Return what had been painted before and is not there as it was."""
    annotation = _annotation(folder)
    before, now = np.load(folder / "painted.npy"), whole(annotation)
    problems = [f"{np.count_nonzero(before[z] > 0)} voxels: slice z{z} lost" for z in range(len(before))]
    lost = [problems[z] for z in range(len(before)) if (now[z] != before[z])[before[z] > 0].any()]
    status, expected = _status(annotation), json.loads((folder / "status.json").read_text())
    for kind, axes in expected.items():
        missing = [
            f"{axis}{index}" for axis, indices in axes.items() for index in set(indices) - set(status[kind][axis])
        ]
        lost += [f"{kind} lost for {', '.join(missing)}"] if missing else []
    return lost


def _painted(folder: Path) -> dict[str, Any]:
    from napari_slicelabel.data.project import Project

    annotation = _annotation(folder)
    classes = [f"{c.id} {c.name}" for c in Project.open(folder / PROJECT).classes]
    return {"annotation": digest(whole(annotation)), **_status(annotation), "classes": classes}


def _nothing_lost(_folder: Path) -> list[str]:
    return []


# runs


def run_arguments(folder: Path, method: str) -> list[object]:
    """Return the words that run a method of METHODS."""
    name, settings = METHODS[method]
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["run", folder / PROJECT, "--method", name, "--device", "cpu", *sets]


def _labels_of_run(folder: Path) -> dict[str, Any]:
    """Return what every finished run must have, and the labels of those that resume to the very same."""
    from napari_slicelabel.data.boxes import SliceRef
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.context import run_store
    from napari_slicelabel.engine.record import RunRecord

    project = Project.open(folder / PROJECT)
    run_folder = project.run_folder(newest_run(folder))
    record = RunRecord.load(run_folder)
    store = run_store(project, run_folder, "prediction", "image", "z")
    labels = np.stack([store.read(z) for z in range(SHAPE[0])])
    human = [project.annotation("image").supervision(SliceRef("z", z)) for z in range(SHAPE[0])]
    return {
        "outcome": record.outcome,
        "rows": len((run_folder / "slices.csv").read_text().splitlines()) - 1,
        "human": all((labels[z] == one.target)[one.known].all() for z, one in enumerate(human)),
        "painted": _painted(folder),
        "labels": digest(labels) if record.method == "interpolate" else "",
    }


def _run_commands() -> Iterator[Command]:
    for method in METHODS:

        def start(folder: Path, method: str = method) -> Callable[[], int]:
            return slicelabel(*run_arguments(folder, method))

        def resume(folder: Path) -> Callable[[], int]:
            return slicelabel("run", folder / PROJECT, "--resume", newest_run(folder))

        short = method in ("interpolate", "self-label")
        turns = 1 if method == "interpolate" else 4
        yield Command(
            f"run {method}", "painted", start, _labels_of_run, lost_strokes, runs=True, short=short, turns=turns
        )
        yield Command(
            f"resume {method}",
            f"begun {method}",
            resume,
            _labels_of_run,
            lost_strokes,
            runs=True,
            resumes=_all_runs,
            short=method == "interpolate",
            turns=turns,
        )


# what files are made


def _file_labels(name: str) -> Callable[[Path], Any]:
    """Return what reads the labels in a file; of an nnU-Net folder, those of its one case."""

    def read(folder: Path) -> str:
        from napari_slicelabel.data.boxes import Box
        from napari_slicelabel.data.formats import open_labels

        path = folder / name
        if "." not in name:
            (path,) = path.glob("labelsTr/*.nii.gz")
        volume = open_labels(path)
        return digest(volume.read(Box.whole(volume.shape))[0])

    return read


def _export_commands() -> Iterator[Command]:
    for suffix in EXPORTS:
        for force in (False, True):
            name = f"out{suffix}"

            def export(folder: Path, name: str = name, force: bool = force) -> Callable[[], int]:
                options = ["--force"] if force else []
                run_id = newest_run(folder)
                return slicelabel("export", folder / PROJECT, "--run", run_id, "--to", folder / name, *options)

            title = f"export {suffix or 'nnU-Net'}{' again' if force else ''}"
            state = f"exported {suffix or 'nnU-Net'}" if force else "finished interpolate"
            if force and not suffix:
                continue  # a folder is never replaced
            if force:
                STATES[state] = State(lambda folder, name=name: _export_first(folder, name), "finished interpolate")
            yield Command(
                title, state, export, _file_labels(name), lost_strokes, short=not force or suffix == ".ome.zarr"
            )


def _export_first(folder: Path, name: str) -> None:
    _do("export", folder / PROJECT, "--run", newest_run(folder), "--to", folder / name)


def _apply_commands() -> Iterator[Command]:
    for method in ("self-label", "gradual-3d"):
        for suffix in (".tif", ".ome.zarr"):
            name = f"applied{suffix}"

            def work(folder: Path, name: str = name) -> Callable[[], int]:
                model = folder / PROJECT / "runs" / newest_run(folder) / "model"
                return slicelabel("apply", model, folder / "image.npy", "--out", folder / name, "--device", "cpu")

            short = (method, suffix) == ("self-label", ".tif")
            state = f"finished {method}"
            yield Command(f"apply {method} {suffix}", state, work, _file_labels(name), lost_strokes, short=short)


# the other commands


def _select_commands() -> Iterator[Command]:
    options = {
        "interval": ("painted", ()),
        "random": ("painted", ()),
        "representative": ("painted", ("--features", "intensity")),
        "representative autoencoder": ("painted", ()),
        "foreground": ("finished interpolate", ()),
    }
    for title, (state, more) in options.items():

        def work(folder: Path, title: str = title, more: tuple[str, ...] = more) -> Callable[[], int]:
            command = ["select", folder / PROJECT, "--budget", 3, "--method", title.split()[0], "--name", "kept", *more]
            return lambda: _with_short_training(slicelabel(*command))

        yield Command(f"select {title}", state, work, _ranking, lost_strokes, short=title != "random")


def _with_short_training(work: Callable[[], int]) -> int:
    from napari_slicelabel.engine.select import features

    features.MOST_STEPS = 30
    return work()


def _ranking(folder: Path) -> Any:
    from napari_slicelabel.data.project import Project

    return Project.open(folder / PROJECT).ranking("kept")


def _new(folder: Path) -> Callable[[], int]:
    return slicelabel("new", folder / PROJECT, folder / "image.npy", "--classes", "one", "two")


def _described(folder: Path) -> Any:
    from napari_slicelabel.data.project import Project

    project = Project.open(folder / PROJECT)
    return {"classes": [c.name for c in project.classes], "shape": list(project.volume("image").shape)}


def _annotate(slices: str) -> Callable[[Path], Callable[[], int]]:
    return lambda folder: slicelabel(
        "annotate", folder / PROJECT, "--labels", folder / "labels.npy", "--slices", slices
    )


def _evaluate(folder: Path) -> Callable[[], int]:
    return slicelabel("evaluate", folder / PROJECT, "--truth", folder / "labels.npy")


def _scores(folder: Path) -> Any:
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.evaluate import evaluate

    return round(evaluate(Project.open(folder / PROJECT), truth=folder / "labels.npy")["mean_dice"], 6)


# strokes, classes


@dataclass(frozen=True)
class Stroke:
    """What a painter saves: labels of a slice, and whether it is complete from now on."""

    axis: str
    index: int
    labels: NDArray[np.uint8]
    complete: bool | None


def strokes(count: int = 12) -> list[Stroke]:
    """Return the strokes of a session: along z and y, some in the same slice again, some that clear one."""
    rng = np.random.default_rng(5)
    listed = []
    for number in range(count):
        axis, index = ("z", int(rng.integers(3, 7))) if number % 3 else ("y", int(rng.integers(18, 23)))
        labels = rng.integers(0, 3, (64, 64) if axis == "z" else (16, 64)).astype(np.uint8)
        labels *= number % 5 != 4
        listed.append(Stroke(axis, index, labels, (None, True, False)[int(rng.integers(3))]))
    return listed


def _acknowledged(folder: Path) -> int:
    path = folder / "acknowledged"
    return len(path.read_bytes()) if path.exists() else 0


def _acknowledge(folder: Path) -> None:
    descriptor = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b"x")
    os.close(descriptor)


def _stroke(folder: Path) -> Callable[[], None]:
    def work() -> None:
        from napari_slicelabel.data.boxes import SliceRef

        annotation = _annotation(folder)
        for one in strokes()[_acknowledged(folder) :]:
            annotation.write_slice(SliceRef(one.axis, one.index), one.labels, complete=one.complete)  # type: ignore[arg-type]
            _acknowledge(folder)

    return work


def _plane(axis: str, index: int) -> tuple[slice | int, ...]:
    return (index,) if axis == "z" else (slice(None), index)


def _lost_of_strokes(folder: Path) -> list[str]:
    """Return what is neither as acknowledged nor, in the slice under way, as the next stroke has it."""
    annotation = _annotation(folder)
    expected = np.load(folder / "painted.npy")
    status = {kind: {a: set(s) for a, s in axes.items()} for kind, axes in _load(folder / "status.json").items()}
    done = _acknowledged(folder)
    for one in strokes()[:done]:
        expected[_plane(one.axis, one.index)] = one.labels
        _change(status["painted"][one.axis], one.index, bool(one.labels.any()))
        if one.complete is not None:
            _change(status["complete"][one.axis], one.index, one.complete)
    now, states = whole(annotation), _status(annotation)
    wrong = now != expected
    under_way = strokes()[done : done + 1]
    for one in under_way:
        plane = _plane(one.axis, one.index)
        wrong[plane] &= now[plane] != one.labels
    lost = [f"{np.count_nonzero(wrong)} voxels lost after {done} strokes"] if wrong.any() else []
    open_slices = {(one.axis, one.index) for one in under_way}
    for kind, axes in status.items():
        for axis, indices in axes.items():
            differing = {index for index in indices ^ set(states[kind][axis]) if (axis, index) not in open_slices}
            lost += [f"{kind} lost or gained: {axis} {sorted(differing)} after {done} strokes"] if differing else []
    return lost


def _change(indices: set[int], index: int, member: bool) -> None:
    (indices.add if member else indices.discard)(index)


def _load(path: Path) -> Any:
    return json.loads(path.read_text())


TABLES = tuple([f"class {number}" for number in range(1, count)] for count in (3, 5, 4, 6, 3, 8, 7, 9))


def _set_classes(folder: Path) -> Callable[[], None]:
    def work() -> None:
        from napari_slicelabel.data.project import Project

        project = Project.open(folder / PROJECT)
        for table in TABLES[_acknowledged(folder) :]:
            project.set_classes(table)
            _acknowledge(folder)

    return work


def _lost_classes(folder: Path) -> list[str]:
    from napari_slicelabel.data.project import Project

    classes = [c.name for c in Project.open(folder / PROJECT).classes]
    done = _acknowledged(folder)
    allowed = [*TABLES[max(done - 1, 0) : done], *TABLES[done : done + 1]]
    lost = [f"classes lost after {done} changes: {classes}"] if done and classes not in allowed else []
    return lost + lost_strokes(folder)


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("new", "images", _new, _described, _nothing_lost, makes=True),
        *_select_commands(),
        Command("annotate", "painted", _annotate("5,14"), _painted, lost_strokes),
        Command("annotate first", "new", _annotate("2,7,12"), _painted, _nothing_lost),
        *_run_commands(),
        Command("evaluate", "finished interpolate", _evaluate, _scores, lost_strokes),
        *_export_commands(),
        *_apply_commands(),
        Command("write_slice", "painted", _stroke, _painted, _lost_of_strokes, speaks=False),
        Command("set_classes", "painted", _set_classes, _painted, _lost_classes, speaks=False),
    )
}
