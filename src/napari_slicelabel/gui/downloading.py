"""A sample that is downloaded: its layers are there at once, and fill while the sections arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QTimer

from napari_slicelabel.data.downloads import VNC_MEGABYTES, VNC_NAME, VNC_SHAPE, VncSlice, vnc_slices
from napari_slicelabel.errors import SliceLabelError
from napari_slicelabel.gui.layers import KEY

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    LayerData = tuple[Any, dict[str, Any], str]


def fill_soon(viewer: Any, layers: Sequence[LayerData]) -> None:
    """Fill the image and the labels that napari is about to show with the sections of the nerve cord.

    napari wants the layers of a sample from its own thread at once, and a download takes as long as it takes. Without
    a connection the layers go again, and a message says what to do. Until it is over, their metadata say ``loading``.
    """
    for _, meta, _ in layers:
        meta["metadata"][KEY]["loading"] = True
    # after the function that returns the layers has returned
    QTimer.singleShot(0, lambda: _Filling(viewer, layers).begin())


class _Filling:
    """One download into the layers that show it."""

    def __init__(self, viewer: Any, layers: Sequence[LayerData]) -> None:
        self._viewer = viewer
        self._arrays = tuple(data for data, _, _ in layers)
        self._about = tuple(meta["metadata"][KEY] for _, meta, _ in layers)
        # none where the sample was opened in a viewer that is not in front; the arrays are filled all the same
        self._layers = [layer for layer in viewer.layers if any(layer.data is array for array in self._arrays)]

    def begin(self) -> None:
        show_info(f"Downloading {VNC_NAME}: {VNC_MEGABYTES} MB, once.")
        self._worker = create_worker(
            _arrive,
            # functions, since Qt holds bound methods weakly and nobody else holds this object
            _connect={"yielded": lambda item: self._take(item), "returned": lambda problem: self._end(problem)},
            _progress={"total": VNC_SHAPE[0], "desc": VNC_NAME},
        )

    def _take(self, arrived: VncSlice) -> None:
        if self._layers and not self._shown():
            self._worker.quit()
            return
        index, *planes = arrived
        for array, plane in zip(self._arrays, planes, strict=True):
            array[index] = plane
        for layer in self._shown():
            if self._viewer.dims.current_step[-3] == index:
                layer.refresh()

    def _end(self, problem: str) -> None:
        if problem:
            for layer in self._shown():
                self._viewer.layers.remove(layer)
            show_error(problem)
            return
        for about in self._about:
            about.pop("loading", None)
        for layer in self._shown():
            layer.refresh()

    def _shown(self) -> list[Any]:
        return [layer for layer in self._layers if layer in self._viewer.layers]


def _arrive() -> Generator[VncSlice, None, str]:
    # text, since an error that is raised or returned here would be shown with its traceback
    try:
        yield from vnc_slices()
    except SliceLabelError as error:
        return str(error)
    return ""
