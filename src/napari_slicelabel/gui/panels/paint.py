"""Paint: what to do with the slice on the canvas."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from napari_slicelabel.data.boxes import AXES
from napari_slicelabel.data.classes import PAINTED_BACKGROUND
from napari_slicelabel.gui.panels.base import Panel, button, changed, grid, text_label

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

    from napari_slicelabel.gui.state import Snapshot, Step
    from napari_slicelabel.gui.workspace import Workspace


class PaintPanel(Panel):
    """Actions for the slice on the canvas. The brushes themselves are napari's."""

    title = "Paint"
    tip = "Paint with napari's brush, fill, polygon and eraser; these help with whole slices."
    steps: ClassVar[tuple[Step, ...]] = ("paint",)

    def __init__(self, workspace: Workspace, parent: QWidget | None = None) -> None:
        super().__init__(workspace, parent)
        self.status = text_label(
            tip="Complete: every object in the slice is painted, and what is unpainted is background. Until then the"
            " unpainted part counts as unknown."
        )
        self.column.addWidget(self.status)
        self.complete = button(
            "Mark complete",
            "All objects in this slice are painted: from now on the unpainted part is background. Again: take it back.",
            self.ask("toggle_complete"),
            key="D",
            primary=True,
        )
        self.next = button("Next slice", "Go to the next proposed slice.", self.ask("next_proposal"), key="N")
        self.column.addWidget(self.complete)
        self.copy = button(
            "Copy previous",
            "Copy the painted slice before this one to where nothing is painted here.",
            self.ask("copy_previous"),
            key="T",
        )
        self.background = button(
            "Background",
            "Paint background on purpose (grey): here is no object. Useful in slices that are not complete.",
            self.ask("paint_background"),
            key="Q",
        )
        self.background.setCheckable(True)
        self.shapes = button(
            "Interpolate",
            "Preview the shapes between the painted slices on both sides of this one.",
            self.ask("preview_shapes"),
            key="S",
        )
        self.undo = button(
            "Undo", "Take the last change back and show the slice that it was in.", self.ask("undo"), key="Ctrl+Z"
        )
        self.column.addLayout(grid([self.next, self.undo, self.copy, self.shapes, self.background]))
        self.previewed = text_label()
        self.put_in = button(
            "Put in", "Copy the previewed shapes into the annotation.", self.ask("apply_preview"), key="S"
        )
        self.discard = button("Discard", "Forget the preview. Key: Esc.", self.ask("discard_preview"))
        self.column.addWidget(self.previewed)
        self.column.addLayout(grid([self.put_in, self.discard]))

    def summary(self, snapshot: Snapshot) -> str:
        """Return how many slices are painted."""
        if snapshot.project is None:
            return ""
        project = snapshot.project
        count = sum(len(project.painted[axis] | project.complete[axis]) for axis in AXES)
        return f"{count} painted" if count else ""

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Show what differs."""
        self.setEnabled(new.project is not None)
        if changed(new, old, "layers.current", "current_complete", "current_painted", "layers.blank", "project"):
            self.status.setText(_status(new))
            self.complete.setText(f"{'Not complete' if new.current_complete else 'Mark complete'} (D)")
        for widget in (self.complete, self.copy, self.shapes):
            widget.setEnabled(new.layers.current is not None)
        self.next.setEnabled(new.next_proposal is not None)
        self.background.setChecked(new.layers.selected == PAINTED_BACKGROUND)
        if changed(new, old, "layers.preview"):
            count = new.layers.preview
            self.previewed.setText(f"Preview of {count} slices. Scroll through, then:" if count else "")
            for shown in (self.previewed, self.put_in, self.discard):
                shown.setVisible(bool(count))


def _status(snapshot: Snapshot) -> str:
    ref = snapshot.layers.current
    if snapshot.project is None:
        return ""
    if ref is None:
        return "Show one slice in 2D to paint."
    if snapshot.current_complete and snapshot.layers.blank:
        return f"Slice <b>{ref}</b>: ● complete, all background"
    if snapshot.current_complete:
        return f"Slice <b>{ref}</b>: ● complete, unpainted is background"
    if snapshot.current_painted:
        return f"Slice <b>{ref}</b>: ◐ begun, unpainted is unknown"
    return f"Slice <b>{ref}</b>: ○ nothing painted"
