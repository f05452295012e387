"""The examples in the docstrings of the package."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import napari_slicelabel

MODULES = ["napari_slicelabel"] + [
    module.name
    for module in pkgutil.walk_packages(napari_slicelabel.__path__, "napari_slicelabel.")
    if ".gui" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
