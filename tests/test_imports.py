"""The layers of docs/architecture.md, read from the source: nothing is imported."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "napari_slicelabel"
SOURCE = Path(__file__).resolve().parent.parent / "src" / PACKAGE
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "_version.py")

# What each layer may import of the package, and of the world outside the standard library.
INSIDE = {
    "errors": set(),
    "data": {"errors", "data", "_version"},
    "engine": {"errors", "data", "engine", "_version"},
    "gui": {"errors", "data", "engine", "gui", "_version"},
    "cli": {"errors", "data", "engine", "cli", "_version"},
    "root": {"data", "engine", "_version"},
}
DATA = {"numpy", "zarr", "dask", "pydantic", "yaozarrs", "tifffile", "nibabel", "mrcfile", "h5py", "hdf5plugin", "PIL"}
ENGINE = DATA | {"torch", "segmentation_models_pytorch", "monai", "scipy", "skimage", "safetensors", "threadpoolctl"}
OUTSIDE = {
    "errors": set(),
    "data": DATA,
    "engine": ENGINE,
    "gui": ENGINE | {"napari", "qtpy", "magicgui", "superqt"},
    "cli": ENGINE | {"rich", "cyclopts", "matplotlib"},
    "root": set(),
}
EXCEPTIONS = {
    ("plugin.py", "napari_builtins"),  # napari's own reader, part of napari: opens folders that are no projects
    ("demo.py", "napari"),  # the demo opens its result in napari where that is installed
    ("samples.py", "scipy"),  # blur and noise of the synthetic sample
    ("downloads.py", "pooch"),  # fetches and checks files; comes with napari
    ("downloads.py", "requests"),  # names the errors of pooch
    ("cluster.py", "distributed"),  # only where a scheduler is given
    ("several_devices.py", "lightning_fabric"),  # only where there is more than one device
    ("fit.py", "lightning_fabric"),  # the type
    ("downloads.py", "PIL"),  # the labels are PNG; comes with scikit-image
}
CLI_FILES = {"cli", "terminal", "demo"}


def layer(parts: tuple[str, ...]) -> str:
    """The layer of a module, from its path inside the package."""
    if not parts or parts == ("__init__",):
        return "root"
    return "cli" if parts[0] in CLI_FILES else parts[0]


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from package.folder import module` names the module only in the alias.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def where(path: Path) -> tuple[str, ...]:
    return path.relative_to(SOURCE).with_suffix("").parts


@pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(where(p)))
def test_layers(path: Path) -> None:
    own = layer(where(path))
    for name in imported(path):
        top, *rest = name.split(".")
        if top == PACKAGE:
            target = layer(tuple(rest))
            assert target in INSIDE[own], f"{own} must not import {target} ({name})"
        elif top not in sys.stdlib_module_names and (path.name, top) not in EXCEPTIONS:
            assert top in OUTSIDE[own], f"{own} must not import {top}"


@pytest.mark.parametrize("path", sorted((SOURCE / "engine" / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_no_method_imports_another(path: Path) -> None:
    if path.stem == "__init__":
        pytest.skip("the table of methods names them all")
    methods = f"{PACKAGE}.engine.methods"
    others = [
        name for name in imported(path) if name.startswith(methods) and not name.startswith(f"{methods}.{path.stem}")
    ]
    assert not others, "what two methods share moves up into engine/"


@pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(where(p)))
def test_no_text_annotations_where_pydantic_reads_them(path: Path) -> None:
    classes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
    bases = {ast.unparse(base).split(".")[-1] for node in classes for base in node.bases}
    if bases & {"BaseModel", "MethodConfig"}:
        assert "__future__.annotations" not in set(imported(path))
