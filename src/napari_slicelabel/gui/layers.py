"""The layers that we add to a viewer, and what a viewer looks at. The only module that knows how napari spells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.colormaps import DirectLabelColormap
from napari.utils.transforms import Affine

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.data.classes import MAX_CLASS, PAINTED_BACKGROUND, LabelClass, default_color

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.gui.paint import PaintStore
    from napari_slicelabel.gui.results import ResultArray

KEY = "slicelabel"
"""Under this key the metadata of a layer say what it is: ``project``, ``volume`` and ``role``."""

_BACKGROUND_COLOR = "#8a8f98"
_UNITS = {"nanometer": "nm", "micrometer": "um", "millimeter": "mm", "pixel": "pixel"}


def role(layer: Any) -> str:
    """Return what a layer is to us: ``image``, ``labels``, ``prediction`` or ``confidence``; empty for a stranger."""
    return str(dict(layer.metadata.get(KEY, {})).get("role", ""))


def images(viewer: Any) -> list[Any]:
    """Return the layers that show a stack and belong to no project."""
    return [layer for layer in viewer.layers if is_stack(layer) and not role(layer)]


def is_stack(layer: Any) -> bool:
    """Return whether a layer is an image with three axes or more."""
    return hasattr(layer, "contrast_limits") and layer.ndim >= 3


def placement(image: Any) -> dict[str, Any]:
    """Return scale, units and the like of an image layer, for a layer over its last three axes."""
    last = list(range(image.ndim - 3, image.ndim))
    # a matrix, or its entries above the diagonal: those of the last three axes come last
    shear = np.asarray(image.shear)
    return {
        "scale": tuple(image.scale[-3:]),
        "translate": tuple(image.translate[-3:]),
        "rotate": np.asarray(image.rotate)[-3:, -3:],
        "shear": shear[-3:] if shear.ndim == 1 else shear[-3:, -3:],
        "affine": image.affine.set_slice(last).affine_matrix,
        "units": tuple(image.units[-3:]),
        "axis_labels": tuple(image.axis_labels[-3:]),
    }


def voxel_edges(image: Any) -> tuple[float, ...]:
    """Return how long a voxel of an image layer is along each of its axes, in the units of the layer."""
    inner = Affine(scale=image.scale, rotate=image.rotate, shear=image.shear, ndim=image.ndim)
    edges = np.asarray(image.affine.linear_matrix) @ inner.linear_matrix
    return tuple(np.linalg.norm(edges, axis=0).tolist())


def volume_placement(volume: Volume) -> dict[str, Any]:
    """Return scale, units and axis labels of a volume for an image layer that shows it."""
    more = int(volume.channels > 1)
    return {
        "scale": (1.0,) * more + volume.voxel_size,
        "units": ("pixel",) * more + (_UNITS[volume.unit],) * 3,
        "axis_labels": ("c",) * more + AXES,
    }


def label_colors(classes: Sequence[LabelClass]) -> DirectLabelColormap:
    """Return the colours of the classes; values without a class get their default, painted background is grey."""
    named = {item.id: item.color for item in classes}
    colors: dict[int | None, str] = {None: "#00000000", 0: "#00000000", PAINTED_BACKGROUND: _BACKGROUND_COLOR}
    colors.update({value: named.get(value, default_color(value)) for value in range(1, MAX_CLASS + 1)})
    return DirectLabelColormap(color_dict=colors)


def add_image(viewer: Any, volume: Volume, project: str) -> Any:
    """Add the image of a volume, read lazily, and return its layer."""
    intensity = volume.intensity()
    return viewer.add_image(
        volume.as_dask(),
        name=volume.name,
        contrast_limits=(min(intensity.low), max(intensity.high)),
        metadata={KEY: {"project": project, "volume": volume.name, "role": "image"}},
        **volume_placement(volume),
    )


def add_labels(
    viewer: Any, store: PaintStore, name: str, image: Any, classes: Sequence[LabelClass], about: dict[str, str]
) -> Any:
    """Add the layer to paint in, on top, and return it."""
    layer = viewer.add_labels(
        store,
        name=f"{name} labels",
        colormap=label_colors(classes),
        opacity=0.6,
        cache=False,
        metadata={KEY: {**about, "role": "labels"}},
        **placement(image),
    )
    layer.brush_size = 12
    return layer


def add_prediction(
    viewer: Any, result: ResultArray, name: str, image: Any, classes: Sequence[LabelClass], about: dict[str, str]
) -> Any:
    """Add the layer that shows what a run predicts, and return it."""
    layer = viewer.add_labels(
        result,
        name=f"{name} prediction",
        colormap=label_colors(classes),
        opacity=0.4,
        cache=False,
        metadata={KEY: {**about, "role": "prediction"}},
        **placement(image),
    )
    layer.editable = False
    return layer


def add_confidence(viewer: Any, result: ResultArray, name: str, image: Any, about: dict[str, str]) -> Any:
    """Add the layer that shows how sure a run is, hidden at first, and return it. 0 is 0, 255 is certain."""
    return viewer.add_image(
        result,
        name=f"{name} confidence",
        colormap="inferno",
        contrast_limits=(0, 255),
        opacity=0.5,
        blending="translucent",
        visible=False,
        cache=False,
        metadata={KEY: {**about, "role": "confidence"}},
        **placement(image),
    )


def say_on_canvas(viewer: Any, text: str) -> None:
    """Show a line over the canvas; with an empty text, take it away."""
    # 0.9 on; before it the viewer itself has the overlay
    overlay = viewer.canvas.overlays.text if hasattr(viewer, "canvas") else viewer.text_overlay
    overlay.text = text
    overlay.visible = bool(text)


def put_brush_away(viewer: Any, layer: Any) -> None:
    """End painting in a labels layer that is about to be removed.

    Where the layer goes while its brush is on the canvas, napari 0.9.2 crashes in OpenGL as soon as another one comes.
    """
    if layer.mode != "pan_zoom":
        layer.mode = "pan_zoom"
        # the canvas has to be drawn without the brush before the layer is gone
        viewer.screenshot(canvas_only=True, flash=False)


def current_slice(viewer: Any, layer: Any) -> SliceRef | None:
    """Return the slice of the layer's last three axes that is on the canvas; None in 3D or outside of it."""
    dims = viewer.dims
    if dims.ndisplay != 2:
        return None
    more = dims.ndim - 3
    hidden = [number - more for number in dims.not_displayed if number >= more]
    if len(hidden) != 1:
        return None
    # current_step counts steps of the finest layer; only the layer knows which of its own planes is shown
    inside = layer.world_to_data(dims.point[-layer.ndim :])
    index = round(float(inside[-3:][hidden[0]]))
    axis: Axis = AXES[hidden[0]]
    return SliceRef(axis, index) if 0 <= index < layer.data.shape[hidden[0] - 3] else None


def view_axis(viewer: Any) -> Axis | None:
    """Return the axis that the viewer looks along; None in 3D."""
    dims = viewer.dims
    hidden = [number - (dims.ndim - 3) for number in dims.not_displayed if number >= dims.ndim - 3]
    return AXES[hidden[0]] if dims.ndisplay == 2 and len(hidden) == 1 else None


def look_at(viewer: Any, layer: Any, ref: SliceRef) -> None:
    """Show a slice on the canvas, turning the stack where that is needed."""
    dims = viewer.dims
    more = dims.ndim - 3
    if dims.ndisplay != 2:
        dims.ndisplay = 2
    number = more + ref.axis_number
    if number not in dims.not_displayed:
        rest = [more + n for n in range(3) if n != ref.axis_number]
        dims.order = (*range(more), number, *rest)
    inside = np.asarray(layer.world_to_data(dims.point[-layer.ndim :]), float)
    inside[ref.axis_number - 3] = ref.index
    dims.set_point(number, float(layer.data_to_world(inside)[ref.axis_number - 3]))
