"""The widgets that napari docks: the workflow with all its steps in one column, and each step alone."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from napari.utils.theme import get_theme
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QColor, QKeySequence, QPainter, QShortcut
from qtpy.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_slicelabel.data.boxes import AXES, SliceRef
from napari_slicelabel.gui.controller import Controller
from napari_slicelabel.gui.opening import bring_to_front, dock_of
from napari_slicelabel.gui.panels.base import Panel, changed, text_label
from napari_slicelabel.gui.panels.paint import PaintPanel
from napari_slicelabel.gui.panels.propagate import PropagatePanel
from napari_slicelabel.gui.panels.review import ReviewPanel
from napari_slicelabel.gui.panels.select import SelectPanel
from napari_slicelabel.gui.panels.volume import VolumePanel
from napari_slicelabel.gui.problem import ProblemLabel
from napari_slicelabel.gui.session import KEYS
from napari_slicelabel.gui.slice_strip import SliceStrip
from napari_slicelabel.gui.strip_snapshot import SliceStatus, StripSnapshot
from napari_slicelabel.gui.theme import contrast, css, mix
from napari_slicelabel.gui.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari
    from qtpy.QtGui import QPaintEvent

    from napari_slicelabel.gui.state import Snapshot

_MESSAGE_MS = 12_000


class _Elided(QLabel):
    """One line of text that ends in dots where the room ends."""

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Paint as much of the text as there is room for."""
        painter = QPainter(self)
        box = self.contentsRect()
        text = self.fontMetrics().elidedText(self.text(), Qt.TextElideMode.ElideMiddle, box.width())
        painter.setPen(self.palette().color(self.foregroundRole()))
        painter.drawText(box, int(self.alignment()), text)


class Section(QFrame):
    """A panel under a heading that folds it away; folded, the heading says how things stand."""

    def __init__(self, number: int, panel: Panel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.panel = panel
        self.by_hand = False
        self.button = QToolButton()
        self.button.setText(f"{number}  {panel.title}" if number else panel.title)
        self.button.setToolTip(panel.tip)
        self.button.setCheckable(True)
        self.button.setAutoRaise(True)
        self.button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.button.setObjectName("sectionHeading")
        self.button.clicked.connect(self._clicked)
        self.said = _Elided()
        self.said.setObjectName("sectionSummary")
        self.said.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.said.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        heading = QHBoxLayout()
        heading.setContentsMargins(0, 0, 0, 0)
        heading.addWidget(self.button)
        heading.addWidget(self.said, 1)
        self._body = QWidget()
        body = QVBoxLayout(self._body)
        body.setContentsMargins(8, 2, 2, 8)
        body.addWidget(panel)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addLayout(heading)
        column.addWidget(self._body)
        self.set_open(False)

    @property
    def is_open(self) -> bool:
        """Whether the panel is on the screen."""
        return bool(self.button.isChecked())

    def set_open(self, is_open: bool) -> None:
        """Show or hide the panel."""
        self.button.setChecked(is_open)
        self.button.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self._body.setVisible(is_open)

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Show what differs in heading and panel."""
        self.panel.apply(new, old)
        text = self.panel.summary(new)
        if text != self.said.text():
            self.said.setText(text)
            self.said.setToolTip(text)

    def _clicked(self) -> None:
        self.by_hand = True
        self.set_open(self.button.isChecked())


class _Widget(QWidget):
    """What the docked widgets share: a workspace, its messages, and keys while the focus is in the dock."""

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.workspace = Workspace.of(viewer)
        viewer.events.theme.connect(self._dress)
        self.setObjectName("slicelabel")
        own = {"N", "S", "J", "K", "A", "C", "G"}  # the lists have these themselves
        for key, name in (*((key, name) for key, name in KEYS if key not in own), ("Escape", "discard_preview")):
            shortcut = QShortcut(QKeySequence(key.replace("Control", "Ctrl").replace("-", "+")), self)
            shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(lambda name=name: self._call(name))

    def _messages(self) -> tuple[QWidget, QWidget]:
        """Return the lines that say what happened, and what went wrong."""
        self.message = text_label()
        self.message.setObjectName("message")
        self.message.setVisible(False)
        self.problem = ProblemLabel()
        self._fade = QTimer(self)
        self._fade.setSingleShot(True)
        self._fade.setInterval(_MESSAGE_MS)
        self._fade.timeout.connect(lambda: self.message.setVisible(False))
        self.workspace.said.connect(self._say)
        return self.problem, self.message

    def _stack(self, widgets: Sequence[QWidget], *, spacing: int) -> None:
        """Put widgets below each other, in a column that scrolls where the window is too low for them."""
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(6, 6, 6, 6)
        column.setSpacing(spacing)
        for widget in widgets:
            column.addWidget(widget)
        column.addStretch()
        area = QScrollArea()
        area.setWidget(inside)
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(area)
        self.setMinimumWidth(310)

    def _call(self, name: str) -> None:
        if self.workspace.session is not None:
            getattr(self.workspace.session, name)()

    def _say(self, text: str, is_error: bool) -> None:
        self.problem.set_problem(text if is_error else "")
        self.message.setText("" if is_error else text)
        self.message.setVisible(bool(text) and not is_error)
        self._fade.start()

    def showEvent(self, event: Any) -> None:
        """Take note of the window: its end is the end of the session."""
        super().showEvent(event)
        self.workspace.watch_window(self.window())

    def _dress(self, _event: object = None) -> None:
        # from napari's theme by its name: the palette changes with every style sheet, also with this one
        viewer = self.workspace.viewer
        if viewer is None:
            return
        theme = get_theme(viewer.theme)
        background, text, highlight = (
            QColor(color.as_hex(format="long")) for color in (theme.background, theme.text, theme.current)
        )
        self.setStyleSheet(
            f"QPushButton[primary='true']:enabled {{ background-color: {css(mix(background, highlight, 0.85))};"
            f" color: {css(readable_on(mix(background, highlight, 0.85)))}; }}"
            f"QPushButton[primary='true']:enabled:hover {{ background-color: {css(highlight)}; }}"
            f"QPushButton:checked {{ background-color: {css(mix(background, text, 0.35))}; }}"
            f"QToolButton#sectionHeading {{ font-weight: bold; border: none; padding: 5px 2px; }}"
            f"QLabel#sectionSummary, QLabel#message, QLabel#aside"
            f" {{ color: {css(mix(text, background, 0.3))}; padding-right: 4px; }}"
            f"QLabel#hint {{ border-radius: 4px; background-color: {css(mix(background, text, 0.12))}; }}"
        )


def readable_on(color: QColor) -> QColor:
    """Return black or white, whichever stands out more from a colour."""
    black, white = QColor("black"), QColor("white")
    return black if contrast(black, color) > contrast(white, color) else white


class WorkflowDock(_Widget):
    """Everything from choosing slices to export, in one column. The section whose turn it is opens by itself."""

    def __init__(self, viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(viewer, parent)
        kinds = (VolumePanel, SelectPanel, PaintPanel, PropagatePanel, ReviewPanel)
        self.sections = [Section(number, kind(self.workspace)) for number, kind in enumerate(kinds, 1)]
        self.hint = text_label()
        self.hint.setObjectName("hint")
        # not as padding in the style sheet: Qt takes that off twice, and makes room for one line too many
        self.hint.setMargin(7)
        self._stack([self.hint, *self._messages(), *self.sections], spacing=4)
        self._opens = True
        self.controller = Controller(self.workspace, [*self.sections, self], self)
        self._dress()
        self.controller.update()
        self.workspace.adopt()

    def panel(self, kind: type[Panel]) -> Any:
        """Return the panel of a kind."""
        return next(section.panel for section in self.sections if isinstance(section.panel, kind))

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Open the section whose turn it is, when the turn changes."""
        if changed(new, old, "hint"):
            self.hint.setText(new.hint)
        if changed(new, old, "step"):
            for section in self.sections:
                section.set_open(new.step in section.panel.steps or self._stays(section, new))
        if new.project is not None and (changed(new, old, "project.path") or self._opens):
            self._opens = False
            self._add_strip()

    def _stays(self, section: Section, new: Snapshot) -> bool:
        # the classes and what to do with a slice are wanted all along
        if isinstance(section.panel, PaintPanel):
            return new.step in ("select", "paint")
        return isinstance(section.panel, VolumePanel) and new.step in ("select", "paint", "open")

    def _add_strip(self) -> None:
        viewer = self.workspace.viewer
        if viewer is None:
            return
        # it outlives this dock: opened again, the workflow goes on with it
        strip = self.workspace.strip() if self.workspace.strip is not None else None
        if strip is None or dock_of(strip) is None:
            strip = SliceBar(viewer)
            self.workspace.strip = weakref.ref(strip)
            viewer.window.add_dock_widget(strip, area="bottom", name="Slices")
        bring_to_front(strip)


class SliceBar(_Widget):
    """The bar under the canvas: what every slice is, and how sure its labels are."""

    def __init__(self, viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(viewer, parent)
        self.strip = SliceStrip()
        self.strip.slice_chosen.connect(self._jump)
        self.strip.range_changed.connect(self._set_range)
        self.strip.stop_toggled.connect(self._set_stop)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 2, 4, 4)
        layout.addWidget(self.strip)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.controller = Controller(self.workspace, [self], self)
        self._dress()
        self.controller.update()

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Show what differs."""
        if new.project is None:
            return
        current = new.layers.current
        if current is not None and not changed(
            new,
            old,
            "project.painted",
            "project.complete",
            "project.scores",
            "proposals",
            "stale",
            "project.accepted",
            "project.span",
            "project.stops",
        ):
            before = old.layers.current if old is not None else None
            if before is not None and before.axis == current.axis:
                if before != current:
                    self.strip.set_current(current.index)
                return
        self.strip.set_snapshot(strip_snapshot(new))

    def _jump(self, index: int) -> None:
        session = self.workspace.session
        if session is not None:
            session.jump(SliceRef(session.axis, index))

    def _set_range(self, start: int, stop: int) -> None:
        if self.workspace.session is not None:
            self.workspace.session.set_range(start, stop)

    def _set_stop(self, index: int, is_stop: bool) -> None:
        if self.workspace.session is not None:
            self.workspace.session.set_stop(index, is_stop)


def strip_snapshot(snapshot: Snapshot) -> StripSnapshot:
    """Return what the strip shows of a snapshot that has a project."""
    project = snapshot.project
    assert project is not None
    axis = snapshot.layers.current.axis if snapshot.layers.current else "z"
    depth = project.shape[AXES.index(axis)]
    status = np.zeros(depth, np.uint8)
    confidence = np.full(depth, np.nan)
    origins: tuple[str, ...] = ()
    if project.scores is not None and project.scores.axis == axis:
        scores = project.scores
        confidence, origins = scores.confidence, scores.origins
        status[np.isfinite(scores.confidence) & ~scores.human] |= SliceStatus.PREDICTED
        status[sorted(project.accepted)] |= SliceStatus.REVIEWED
        status[sorted(snapshot.stale)] |= SliceStatus.STALE
    status[sorted(project.painted[axis] - project.complete[axis])] |= SliceStatus.PARTLY
    status[sorted(project.complete[axis])] |= SliceStatus.COMPLETE
    proposed = [row.ref.index for row in snapshot.proposals if row.ref.axis == axis and row.state == "proposed"]
    status[proposed] |= SliceStatus.PROPOSED
    current = snapshot.layers.current.index if snapshot.layers.current else 0
    span = project.span if project.span and project.span[1] <= depth else None
    stops = frozenset(index for index in project.stops if index < depth)
    return StripSnapshot(axis, status, confidence, current, span, stops, origins=origins)


class _Single(_Widget):
    """One step alone. It says how to begin where nothing has begun."""

    kind: ClassVar[type[Panel]] = SelectPanel

    def __init__(self, viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(viewer, parent)
        self.beginning = VolumePanel(self.workspace)
        self.panel = self.kind(self.workspace)
        self._stack([*self._messages(), self.beginning, self.panel], spacing=6)
        self.controller = Controller(self.workspace, [self.beginning, self.panel, self], self)
        self._dress()
        self.controller.update()
        self.workspace.adopt()

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Leave the beginning out once it is over."""
        self.beginning.setVisible(new.project is None)
        self.panel.setVisible(new.project is not None)


class SelectWidget(_Single):
    """Choose slices to paint."""

    kind = SelectPanel


class PaintWidget(_Single):
    """Paint slices."""

    kind = PaintPanel


class PropagateWidget(_Single):
    """Label the volume."""

    kind = PropagatePanel


class ReviewWidget(_Single):
    """Review slices and export."""

    kind = ReviewPanel
