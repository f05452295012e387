"""The whole loop on a sample volume: choose slices, annotate, propagate, score, export, show."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.errors import InputError
from napari_slicelabel.terminal import follow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

    from napari_slicelabel.data.classes import LabelClass
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.samples import Sample
    from napari_slicelabel.engine.events import Event

METHOD = "self-label"
# The default settings take twice as long and score a little better.
SETTINGS: dict[str, object] = {
    "batch": 4,
    "crop_px": 96,
    "iterations": 240,
    "round_iterations": 20,
    "fold_iterations": 60,
    "transfer_iterations": 60,
    # here the network is as good alone
    "flow": "off",
}
SLICES_PER_ANNOTATED = 10

_INK, _PALE, _ACCENT = "#1f2933", "#9aa5b1", "#b83280"


def free_folder(out: Path | None) -> Path:
    """Return the folder to write to: `out`, or else the first of slicelabel-demo, slicelabel-demo-2, ... that is free.

    Raises
    ------
    InputError
        `out` holds a project already; nothing is ever overwritten.
    """
    if out is not None:
        if any(out.glob("*.slicelabel")):
            raise InputError(f"--out {out} holds a project already; give another folder")
        return out
    folder, number = Path("slicelabel-demo"), 1
    while folder.exists():
        number += 1
        folder = Path(f"slicelabel-demo-{number}")
    return folder


def check_can_show() -> None:
    """Raise InputError, which says what to install, where napari is not installed."""
    if find_spec("napari") is None:
        raise InputError(
            "napari is not installed; run: pip install 'napari-slicelabel[gui]', or use: slicelabel demo --no-gui"
        )


def demonstrate(folder: Path, sample: "Sample | None" = None) -> dict[str, object]:
    """Label a sample volume from every tenth slice, score it, and write labels and an overview picture.

    Parameters
    ----------
    folder : Path
        Where everything goes.
    sample : Sample, optional
        By default the MNI152 brain.

    Returns
    -------
    dict
        Paths of what was written (``project``, ``labels``, ``overview``), ``run`` and ``scores``.

    Raises
    ------
    InputError
        matplotlib is not installed.
    MissingFileError
        The package that holds the sample is not installed.
    StorageError
        The folder cannot be written.
    """
    from napari_slicelabel.data.boxes import SliceRef
    from napari_slicelabel.data.files import storage_errors
    from napari_slicelabel.data.formats import open_labels
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.samples import mni152
    from napari_slicelabel.engine.annotate import copy_slices
    from napari_slicelabel.engine.config import build_config
    from napari_slicelabel.engine.evaluate import evaluate
    from napari_slicelabel.engine.export import export
    from napari_slicelabel.engine.run import run

    _check_can_draw()
    sample = sample or mni152()
    image, truth = folder / f"{sample.name}.npy", folder / f"{sample.name}_truth.npy"
    with storage_errors(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
        np.save(image, sample.image)
        np.save(truth, sample.labels)
    project = Project.create(
        folder / f"{sample.name}.slicelabel",
        [image],
        names=[sample.name],
        voxel_size=sample.voxel_size,
        unit=sample.unit,
        classes=sample.classes,
    )
    depth = sample.image.shape[0]
    refs = [SliceRef("z", z) for z in range(SLICES_PER_ANNOTATED // 2, depth, SLICES_PER_ANNOTATED)]
    _drain(copy_slices(project, sample.name, open_labels(truth), refs))
    _drain(run(project, build_config(METHOD, SETTINGS)))
    run_id = project.run_ids()[-1]
    scores = evaluate(project, truth=truth, run_id=run_id)
    labels, picture = folder / f"{sample.name}_labels.ome.zarr", folder / "overview.png"
    export(project, run_id, labels, volume=sample.name)
    draw_overview(project, run_id, sample, picture)
    return {
        "project": project.path,
        "run": run_id,
        "labels": labels,
        "overview": picture,
        "scores": scores,
    }


def draw_overview(project: "Project", run_id: str, sample: "Sample", path: Path) -> None:
    """Draw slices with prediction, truth and confidence, and the confidence of every slice, into a PNG.

    Parameters
    ----------
    project : Project
        Holds the run.
    run_id : str
        A finished run along z.
    sample : Sample
        Image and truth.
    path : Path
        The PNG.
    """
    # A Figure of its own draws with Agg and leaves the caller's pyplot alone.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    curve = _read_curve(project.run_folder(run_id) / "slices.csv", sample.name)
    prediction, certainty = _result_arrays(project, run_id, sample.name)
    shown = _slices_to_show(curve)
    figure = Figure(figsize=(13, 13.2), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
    grid = figure.add_gridspec(4, len(shown), height_ratios=[1, 1, 1, 0.6])
    rows = ("labelled", "truth", "confidence")
    panels = [[_panel(figure, grid[row, column]) for column in range(len(shown))] for row in range(len(rows))]
    for column, index in enumerate(shown):
        image, labels, truth = sample.image[index], prediction[index], sample.labels[index]
        _show_labels(panels[0][column], image, labels, project.classes)
        _show_labels(panels[1][column], image, truth, project.classes)
        map_ = panels[2][column].imshow(certainty[index] / 255, cmap="magma", vmin=0, vmax=1, origin="lower")
        title = f"slice {index}   Dice {_mean_dice(labels, truth):.2f}"
        panels[0][column].set_title(title, color=_INK, fontsize=13)
    for row, text in zip(panels, rows, strict=True):
        row[0].set_ylabel(text, color=_INK, fontsize=14)
    _legend(panels[0][0], project.classes)
    scale = panels[2][0].inset_axes((0.04, 0.93, 0.42, 0.035))
    figure.colorbar(map_, cax=scale, orientation="horizontal", ticks=[0, 0.5, 1]).ax.tick_params(labelsize=9, length=0)
    strip = figure.add_subplot(grid[3, :])
    _show_curve(strip, curve, [_mean_dice(prediction[p.index], sample.labels[p.index]) for p in curve])
    for index in shown:
        strip.axvline(index, color=_PALE, linewidth=1, linestyle=":", zorder=0)
    human = sum(point.human for point in curve)
    figure.suptitle(
        f"{sample.name}: {human} of {len(curve)} slices annotated, the others labelled by {METHOD}",
        fontsize=17,
        color=_INK,
    )
    figure.savefig(path, dpi=100)


def show(result: dict[str, object]) -> None:
    """Open the sample, its labels and their confidence in napari, and wait until the window is closed."""
    import napari

    from napari_slicelabel.data.boxes import Box
    from napari_slicelabel.data.project import Project

    project, run_id = Project.open(str(result["project"])), str(result["run"])
    name = project.names[0]
    volume = project.volume(name)
    labels, confidence = _result_arrays(project, run_id, name)
    placed = {"scale": volume.voxel_size, "units": (volume.unit,) * 3}
    viewer = napari.Viewer(title="slicelabel demo")
    viewer.add_image(volume.read(Box.whole(volume.shape))[0], name=name, **placed)
    viewer.add_labels(labels, name="labels", opacity=0.5, **placed)
    viewer.add_image(confidence, name="confidence", colormap="magma", opacity=0.6, visible=False, **placed)
    napari.run()


@dataclass(frozen=True, slots=True)
class _Point:
    """One slice on the confidence curve."""

    index: int
    confidence: float
    human: bool
    needs_review: bool


def _result_arrays(project: "Project", run_id: str, volume: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Prediction and confidence of a run, whole: a sample is small."""
    from napari_slicelabel.data.boxes import Box
    from napari_slicelabel.data.formats import open_labels

    def read(kind: str) -> NDArray[np.uint8]:
        stored = open_labels(project.run_folder(run_id) / kind / f"{volume}.zarr")
        array: NDArray[np.uint8] = stored.read(Box.whole(stored.shape))[0]
        return array

    return read("prediction"), read("confidence")


def _check_can_draw() -> None:
    if find_spec("matplotlib") is None:
        raise InputError("the overview needs matplotlib; run: pip install 'napari-slicelabel[samples]'")


def _drain(events: "Iterator[Event]") -> None:
    for _ in follow(events):
        pass


def _read_curve(path: Path, volume: str) -> list[_Point]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["volume"] == volume]
    points = [
        _Point(
            index=int(row["index"]),
            confidence=float(row["confidence"]),
            human=row["provenance"] == "human",
            needs_review=row["needs_review"].lower() in ("1", "true", "yes"),
        )
        for row in rows
    ]
    return sorted(points, key=lambda point: point.index)


def _slices_to_show(curve: Sequence[_Point], count: int = 4) -> list[int]:
    """Slices spread over the inner part of the stack, each as far from annotated ones as it can be."""
    human = np.array([point.index for point in curve if point.human])
    last = max(point.index for point in curve)
    chosen = []
    for target in np.linspace(0.28, 0.72, count) * last:
        gap = human[:-1][np.abs((human[:-1] + human[1:]) / 2 - target).argmin()] if len(human) > 1 else human[0]
        after = human[human > gap]
        chosen.append(int((gap + (after[0] if len(after) else last)) // 2))
    return sorted(set(chosen))


def _mean_dice(labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Mean Dice over the classes that either of the two holds; NaN where neither holds any."""
    present = (set(np.unique(labels)) | set(np.unique(truth))) - {0}
    scores = [2 * ((labels == c) & (truth == c)).sum() / ((labels == c).sum() + (truth == c).sum()) for c in present]
    return float(np.mean(scores)) if scores else float("nan")


def _panel(figure: "Figure", place: "SubplotSpec") -> "Axes":
    ax = figure.add_subplot(place)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def _show_labels(
    ax: "Axes", image: NDArray[np.uint8], labels: NDArray[np.uint8], classes: "Sequence[LabelClass]"
) -> None:
    ax.imshow(image, cmap="gray", origin="lower")
    overlay = np.zeros((*labels.shape, 4))
    for item in classes:
        overlay[labels == item.id] = (*(value / 255 for value in item.rgba[:3]), 0.3)
    ax.imshow(overlay, origin="lower", interpolation="nearest")
    for item in classes:
        mask = labels == item.id
        if mask.any() and not mask.all():
            ax.contour(mask, levels=[0.5], colors=[item.color], linewidths=1.1)


def _legend(ax: "Axes", classes: "Sequence[LabelClass]") -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=item.color, label=item.name) for item in classes]
    ax.legend(handles=handles, loc="upper left", fontsize=11, frameon=False, labelcolor="white", handlelength=1)


def _show_curve(ax: "Axes", curve: Sequence[_Point], dice: Sequence[float]) -> None:
    index = [point.index for point in curve]
    confidence = [point.confidence for point in curve]
    ax.fill_between(index, confidence, color=_ACCENT, alpha=0.12, linewidth=0)
    ax.plot(index, confidence, color=_ACCENT, linewidth=2, label="confidence (expected Dice)")
    ax.plot(index, dice, color=_INK, linewidth=1, label="true Dice")
    human = [point for point in curve if point.human]
    ax.plot(
        [p.index for p in human], [p.confidence for p in human], "o", color=_ACCENT, markersize=6, label="annotated"
    )
    review = [point for point in curve if point.needs_review]
    if review:
        ax.plot([p.index for p in review], [0.02] * len(review), "|", color="#d64545", label="needs review")
    ax.set(xlim=(index[0], index[-1]), ylim=(0, 1.06))
    ax.set_xlabel("slice", color=_INK, fontsize=12)
    ax.set_ylabel("Dice", color=_INK, fontsize=12)
    ax.tick_params(colors=_INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower center", ncols=4, fontsize=11, facecolor="white", edgecolor="none", framealpha=0.8)
