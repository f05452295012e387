"""Keeps views in step with a workspace: they hear of a snapshot only when it is another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qtpy.QtCore import QObject, QTimer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_slicelabel.gui.state import Snapshot
    from napari_slicelabel.gui.workspace import Workspace

_SETTLE_MS = 15


class View(Protocol):
    """What the controller keeps up to date."""

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Show what differs between two snapshots."""


class Controller(QObject):
    """Passes each new snapshot of a workspace on to some views, together with the one before.

    Parameters
    ----------
    workspace : Workspace
        Says that something may have changed.
    views : sequence of View
        Compare the two and touch only what differs; that also ends the loops in which widgets answer each other.
    """

    def __init__(self, workspace: Workspace, views: Sequence[View], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.workspace = workspace
        self._views = tuple(views)
        self._before: Snapshot | None = None
        self._applying = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_SETTLE_MS)
        self._timer.timeout.connect(self.update)
        workspace.changed.connect(self._soon)
        workspace.session_changed.connect(self._soon)

    @property
    def snapshot(self) -> Snapshot | None:
        """What the views show."""
        return self._before

    def update(self) -> None:
        """Bring the views up to date now."""
        if self._applying:
            return
        new, old = self.workspace.snapshot, self._before
        if old is not None and new == old and not self._busy_changed():
            return
        self._applying = True
        try:
            for view in self._views:
                view.apply(new, old)
            self._before = new
        finally:
            self._applying = False

    def _busy_changed(self) -> bool:
        before, self._busy = getattr(self, "_busy", ""), self.workspace.busy
        return before != self._busy

    def _soon(self) -> None:
        if not self._timer.isActive():
            self._timer.start()
