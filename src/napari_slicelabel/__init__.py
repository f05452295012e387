"""Label a whole 3D image from a few painted slices.

The names below are the scripting interface. They are looked up when they are first used, so that importing the package
loads neither torch nor napari.

Examples
--------
>>> import napari_slicelabel
>>> napari_slicelabel.SliceRef("z", 12)
SliceRef(axis='z', index=12)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_slicelabel._version import __version__
    from napari_slicelabel.data.annotation import Annotation
    from napari_slicelabel.data.boxes import SliceRef
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.engine.apply import apply
    from napari_slicelabel.engine.config import build_config
    from napari_slicelabel.engine.evaluate import evaluate
    from napari_slicelabel.engine.export import export
    from napari_slicelabel.engine.run import run
    from napari_slicelabel.engine.select import rank
    from napari_slicelabel.engine.select.options import SelectOptions

__all__ = [
    "Annotation",
    "Project",
    "SelectOptions",
    "SliceRef",
    "Volume",
    "__version__",
    "apply",
    "build_config",
    "evaluate",
    "export",
    "rank",
    "run",
]

_HOME = {
    "Annotation": "data.annotation",
    "Project": "data.project",
    "SelectOptions": "engine.select.options",
    "SliceRef": "data.boxes",
    "Volume": "data.volume",
    "__version__": "_version",
    "apply": "engine.apply",
    "build_config": "engine.config",
    "evaluate": "engine.evaluate",
    "export": "engine.export",
    "rank": "engine.select",
    "run": "engine.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
