"""Widgets on their own: no viewer. They are dressed in napari's style sheets, as they will be in its docks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from tests.gui.gates import make_patient

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytestqt.qtbot import QtBot
    from qtpy.QtGui import QImage
    from qtpy.QtWidgets import QWidget

    Show = Callable[..., QWidget]
    Shoot = Callable[[QWidget, str], QImage]


@pytest.fixture(params=["dark", "light"])
def theme(request: pytest.FixtureRequest) -> Literal["dark", "light"]:
    """A test that asks for it runs once in each of napari's themes."""
    return request.param


@pytest.fixture
def qtbot(qtbot: QtBot) -> QtBot:
    """That of pytest-qt, in no hurry."""
    return make_patient(qtbot)


@pytest.fixture
def show(qtbot: QtBot) -> Show:
    """Puts a widget into a window with a napari theme and shows it with a width and, if given, a height."""
    from napari.qt import get_qapp, get_stylesheet
    from qtpy.QtWidgets import QVBoxLayout, QWidget

    get_qapp()  # tells Qt where napari's icons are
    windows: list[QWidget] = []

    def do(widget: QWidget, width: int, height: int | None = None, theme: str = "dark") -> QWidget:
        window = QWidget()
        windows.append(window)  # what Python does not hold is deleted at once
        window.setStyleSheet(get_stylesheet(theme))
        layout = QVBoxLayout(window)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.addWidget(widget)
        qtbot.addWidget(window)
        window.resize(width, height or window.sizeHint().height())
        with qtbot.waitExposed(window):
            window.show()
        window.activateWindow()
        qtbot.waitUntil(window.isActiveWindow)
        return window

    return do


@pytest.fixture
def shoot(theme: str) -> Shoot:
    """Returns a picture of a window; keeps it in the folder that SLICELABEL_SHOTS names, if it is set."""

    def do(window: QWidget, name: str) -> QImage:
        image = window.grab().toImage()
        folder = os.environ.get("SLICELABEL_SHOTS")
        if folder:
            image.save(str(Path(folder) / f"{name}-{theme}.png"))
        return image

    return do
