"""What napari.yaml names: the reader, the writer, sample data and commands. The widgets are in `dock`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QCoreApplication, QTimer

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.classes import PAINTED_BACKGROUND, LabelClass, default_color
from napari_slicelabel.data.downloads import (
    VNC_CLASSES,
    VNC_NAME,
    VNC_SHAPE,
    VNC_SOURCE,
    VNC_UNIT,
    VNC_VOXEL_SIZE,
    drosophila_vnc,
)
from napari_slicelabel.data.formats import open_labels, open_volume, write_labels
from napari_slicelabel.data.project import SUFFIX, Project
from napari_slicelabel.data.samples import Sample, mni152, synthetic_em
from napari_slicelabel.data.units import parse_unit
from napari_slicelabel.errors import InputError, MissingFileError, SliceLabelError
from napari_slicelabel.gui.layers import KEY, label_colors, volume_placement
from napari_slicelabel.gui.opening import WorkflowDock, bring_to_front, docked

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari

    LayerData = tuple[Any, dict[str, Any], str]

WORKFLOW = "Label from few slices"
"""Name of the workflow widget in the menus."""
_SECTIONS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
DISPLAY_NAME = "SliceLabel"
"""Name of the plugin in the menus."""


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], Any] | None:
    """Return the reader of a project, or of another folder; None for a file.

    napari gives every folder to whoever reads any folder, before its own reader: what is no project must open as well
    as without this plugin.
    """
    if not isinstance(path, list) and (Path(path) / "project.json").is_file():
        return read_project
    first = Path(path[0] if isinstance(path, list) else path)
    return _reader_of_images(path) if first.is_dir() and not _is_project_name(first) else None


def _is_project_name(path: Path) -> bool:
    return path.name.endswith(SUFFIX)


def _reader_of_images(path: str | list[str]) -> Callable[[str | list[str]], Any] | None:
    """Return the reader of an OME-Zarr, lazily and with its voxel size; for any other folder that of napari."""
    if isinstance(path, str) and _is_zarr(Path(path)):
        try:
            volume = open_volume(path)
        except SliceLabelError:
            # several time points, labels, ...: napari may know more
            pass
        else:
            return lambda _path: [(volume.as_dask(), {"name": volume.name, **volume_placement(volume)}, "image")]
    first = Path(path[0] if isinstance(path, list) else path)
    if not _is_zarr(first) and not any(file.suffix.lower() in _SECTIONS for file in first.iterdir()):
        return None
    from napari_builtins.io import napari_get_reader  # type: ignore[import-untyped]

    reader: Callable[[str | list[str]], Any] | None = napari_get_reader(path)
    return reader


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"))


def read_project(path: str | list[str]) -> list[LayerData]:
    """Return the image of a project's first volume, and open the workflow, which goes on with it."""
    project = Project.open(str(path))
    layer = _project_image(project)
    _open_workflow_soon()
    return [layer]


def write_label_layer(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write a labels layer to a file whose ending names the format; block by block, never all at once."""
    try:
        unit, factor = parse_unit(str(meta.get("units", ["pixel"])[-1]))
    except InputError:
        unit, factor = "pixel", 1.0
    sizes = [abs(float(size)) * factor for size in meta["scale"][-3:]]
    about = meta.get("metadata", {}).get(KEY, {})
    classes: tuple[LabelClass, ...] = ()
    if about.get("project"):
        try:
            classes = Project.open(about["project"]).classes
        except (InputError, MissingFileError):
            # moved since: the labels themselves are still there
            classes = ()
    write_labels(path, data, voxel_size=sizes, unit=unit, classes=classes)
    return [path]


# -- sample data ------------------------------------------------------------------------------------------------------


def sample_em() -> list[LayerData]:
    """Return an image that looks like electron microscopy, made by code, and its true labels (hidden)."""
    return _sample_layers(synthetic_em())


def sample_mri() -> list[LayerData]:
    """Return the MNI152 brain with its tissues (hidden). Needs nilearn, whose wheel holds the file."""
    return _sample_layers(mni152())


def sample_vnc() -> list[LayerData]:
    """Return the fly nerve cord and its true labels (hidden): 22 MB, downloaded at first; they fill as they arrive."""
    viewer = _open_viewer()
    if viewer is None:
        return _sample_layers(drosophila_vnc())
    from napari_slicelabel.gui.downloading import fill_soon

    image, labels = np.zeros(VNC_SHAPE, np.uint8), np.zeros(VNC_SHAPE, np.uint8)
    layers = _sample_layers(Sample(VNC_NAME, image, labels, VNC_CLASSES, VNC_VOXEL_SIZE, VNC_UNIT, VNC_SOURCE))
    layers[0][1]["contrast_limits"] = (0, 255)
    fill_soon(viewer, layers)
    return layers


def sample_project() -> list[LayerData]:
    """Return a project in a temporary folder: slices proposed, most of them painted, ready to propagate."""
    # here, since these bring torch: opening another sample must not wait for it
    from napari_slicelabel.engine.annotate import copy_slices
    from napari_slicelabel.engine.select import rank
    from napari_slicelabel.gui.session import SELECTION

    sample = synthetic_em((32, 128, 128))
    folder = Path(tempfile.mkdtemp(prefix="slicelabel-"))
    np.save(folder / "synthetic_em.npy", sample.image)
    np.save(folder / "truth.npy", sample.labels)
    project = Project.create(
        folder / f"half_finished{SUFFIX}",
        [folder / "synthetic_em.npy"],
        voxel_size=sample.voxel_size,
        unit=sample.unit,
        classes=_classes(sample),
    )
    rank(project, "interval", 4, "z", name=SELECTION)
    name = project.names[0]
    proposed = [item["index"] for item in project.ranking(SELECTION)["order"]]
    for _ in copy_slices(project, name, open_labels(folder / "truth.npy"), [SliceRef("z", z) for z in proposed[:3]]):
        pass
    # one that is begun: half of its objects, and a stroke of background
    begun = np.where(np.arange(128) < 64, sample.labels[proposed[3]], 0).astype(np.uint8)
    begun[60:66, 80:110] = PAINTED_BACKGROUND
    project.annotation(name).write_slice(SliceRef("z", proposed[3]), begun)
    _open_workflow_soon()
    return [_project_image(project)]


def _classes(sample: Sample) -> list[LabelClass]:
    return [LabelClass(id=k, name=name, color=default_color(k)) for k, name in enumerate(sample.classes, 1)]


def _sample_layers(sample: Sample) -> list[LayerData]:
    unit = {"nanometer": "nm", "micrometer": "um", "millimeter": "mm"}.get(sample.unit, "pixel")
    place = {"scale": sample.voxel_size, "units": (unit,) * 3, "axis_labels": ("z", "y", "x")}
    # labelling that begins on the image has its classes
    about = {"classes": list(sample.classes), "source": sample.source}
    image = {"name": sample.name, "metadata": {KEY: about}, **place}
    truth = {
        "name": f"{sample.name} truth",
        "visible": False,
        "colormap": label_colors(_classes(sample)),
        "metadata": {KEY: {"source": sample.source}},
        **place,
    }
    return [(sample.image, image, "image"), (sample.labels, truth, "labels")]


def _project_image(project: Project) -> LayerData:
    name = project.names[0]
    volume = project.volume(name)
    intensity = volume.intensity()
    meta = {
        "name": name,
        "contrast_limits": (min(intensity.low), max(intensity.high)),
        "metadata": {KEY: {"project": str(project.path), "volume": name, "role": "image"}},
        **volume_placement(volume),
    }
    return volume.as_dask(), meta, "image"


# -- commands ---------------------------------------------------------------------------------------------------------


def new_sparse_labels(viewer: napari.Viewer) -> None:
    """Begin to label the selected image: a layer for sparse labels, saved while you paint."""
    from napari_slicelabel.gui.starting import suggested_folder
    from napari_slicelabel.gui.workspace import Workspace

    open_workflow(viewer)
    workspace = Workspace.of(viewer)
    images = workspace.images()
    active = viewer.layers.selection.active
    layer = images.get(active.name) if active is not None else None
    layer = layer or next(iter(images.values()), None)
    if layer is None:
        raise InputError("no 3D image is open; open one first")
    if workspace.session is None:
        workspace.start(layer, suggested_folder(layer.name, str(layer.source.path or "")))


def next_proposal(viewer: napari.Viewer) -> None:
    """Go to the next proposed slice."""
    _ask(viewer, "next_proposal")


def mark_complete(viewer: napari.Viewer) -> None:
    """Mark the slice on the canvas complete, or take that back."""
    _ask(viewer, "toggle_complete")


def start_run(viewer: napari.Viewer) -> None:
    """Label the volume from the painted slices."""
    open_workflow(viewer)
    _ask(viewer, "start_run")


def next_review(viewer: napari.Viewer) -> None:
    """Go to the next doubtful slice."""
    _ask(viewer, "next_review")


def open_workflow(viewer: Any) -> None:
    """Open the workflow beside the canvas, or bring it to the front; the same one whatever the way in."""
    widget = docked(viewer, WorkflowDock.kind)
    if widget is None:
        # under the name that it has from napari's menu, which then shows and hides this one
        viewer.window.add_dock_widget(WorkflowDock(viewer), name=f"{WORKFLOW} ({DISPLAY_NAME})")
    else:
        bring_to_front(widget)


def _ask(viewer: Any, name: str) -> None:
    from napari_slicelabel.gui.workspace import Workspace

    session = Workspace.of(viewer).session
    if session is None:
        raise InputError(f"nothing is being labelled here; begin in the widget {WORKFLOW!r}")
    getattr(session, name)()


def _open_workflow_soon() -> None:
    """Open the workflow once napari has added the layers that are being read."""

    def go() -> None:
        viewer = _open_viewer()
        if viewer is not None:
            open_workflow(viewer)

    if QCoreApplication.instance() is not None:
        QTimer.singleShot(0, go)


def _open_viewer() -> Any:
    """Return the viewer whose window is in front; None in a script that has none."""
    from napari import current_viewer

    return current_viewer() if QCoreApplication.instance() is not None else None
