"""What a fresh interpreter loads: the package must start fast, and without a screen."""

from __future__ import annotations

import subprocess
import sys

import pytest

GUI = {"napari", "qtpy", "magicgui", "superqt", "PyQt5", "PyQt6", "PySide2", "PySide6"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after `code` has run in a new interpreter."""
    script = f"{code}\nimport sys; sys.stderr.write('LOADED ' + ' '.join(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return {name.partition(".")[0] for name in result.stderr.partition("LOADED ")[2].split()}


def test_package_is_light() -> None:
    loaded = loaded_by("import napari_slicelabel; dir(napari_slicelabel)")
    assert not loaded & (GUI | {"torch", "zarr", "dask", "numpy", "scipy", "monai"})


@pytest.mark.parametrize("argument", ["--help", "--version", "methods"])
def test_command_line_needs_no_gui(argument: str) -> None:
    loaded = loaded_by(f"from napari_slicelabel.cli import main; assert main([{argument!r}]) == 0")
    assert not loaded & GUI
    if argument != "methods":
        assert "torch" not in loaded, "help must not wait for torch"


def test_every_public_name_resolves() -> None:
    code = "import napari_slicelabel as n; [getattr(n, name) for name in n.__all__]"
    assert not loaded_by(code) & GUI
