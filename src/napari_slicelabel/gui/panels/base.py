"""What the panels share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QLabel, QPushButton, QSizePolicy, QVBoxLayout, QWidget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_slicelabel.gui.session import Session
    from napari_slicelabel.gui.state import Snapshot, Step
    from napari_slicelabel.gui.workspace import Workspace


class Panel(QWidget):
    """One step of the workflow.

    Attributes
    ----------
    title : str
        Of its section.
    steps : tuple of Step
        Whose turn brings it to the front.
    """

    title: ClassVar[str] = ""
    tip: ClassVar[str] = ""
    steps: ClassVar[tuple[Step, ...]] = ()

    def __init__(self, workspace: Workspace, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.workspace = workspace
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(6)

    @property
    def session(self) -> Session | None:
        """The labelling that goes on."""
        return self.workspace.session

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Show what differs between two snapshots; `old` is None at first."""
        raise NotImplementedError

    def summary(self, snapshot: Snapshot) -> str:
        """Return a few words for the heading while the panel is folded."""
        return ""

    def ask(self, name: str) -> Callable[[], None]:
        """Return a slot that calls a method of the session, if there is one."""

        def call() -> None:
            if self.session is not None:
                getattr(self.session, name)()

        return call


def changed(new: Snapshot, old: Snapshot | None, *names: str) -> bool:
    """Return whether any of these fields differs; names of the project's fields begin with ``project.``."""
    return old is None or any(_field(new, name) != _field(old, name) for name in names)


def _field(snapshot: object, path: str) -> object:
    value: object = snapshot
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def text_label(text: str = "", *, tip: str = "") -> QLabel:
    """Return a label that wraps and asks for no width."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setToolTip(tip)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.NoTextInteraction)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
    label.setMinimumWidth(1)
    return label


def button(text: str, tip: str, slot: Callable[[], None], *, key: str = "", primary: bool = False) -> QPushButton:
    """Return a button that shows its key."""
    made = QPushButton(f"{text} ({key})" if key else text)
    made.setToolTip(f"{tip} Key: {key}, while the labels layer is selected." if key else tip)
    # a click leaves the focus on the canvas, where the keys are
    made.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    made.clicked.connect(lambda _checked=False: slot())
    made.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    made.setMinimumWidth(60)
    if primary:
        font = made.font()
        font.setBold(True)
        made.setFont(font)
        made.setProperty("primary", True)
    return made


def grid(widgets: Sequence[QWidget], columns: int = 2) -> QGridLayout:
    """Return widgets in equal columns."""
    layout = QGridLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(4)
    for number, widget in enumerate(widgets):
        layout.addWidget(widget, number // columns, number % columns)
    for column in range(columns):
        layout.setColumnStretch(column, 1)
    return layout


def duration(seconds: float) -> str:
    """Return a time in words, such as ``4 min``.

    Examples
    --------
    >>> [duration(s) for s in (3, 50, 100, 5000, 100000)]
    ['3 s', '50 s', '2 min', '1 h 23 min', '28 h']
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 10 else f"{round(seconds / 3600)} h"


def size(nbytes: float) -> str:
    """Return an amount of memory in words, such as ``1.2 GB``."""
    return f"{nbytes / 2**30:.1f} GB" if nbytes >= 2**30 else f"{max(1, round(nbytes / 2**20))} MB"
