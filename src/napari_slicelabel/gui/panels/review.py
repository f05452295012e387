"""Review: where to look, and what to do with what is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QCheckBox, QFileDialog, QListWidget, QListWidgetItem, QWidget

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.gui.panels.base import Panel, button, changed, grid, text_label

if TYPE_CHECKING:
    from napari_slicelabel.gui.state import ReviewRow, Snapshot, Step
    from napari_slicelabel.gui.workspace import Workspace

_MOST_ROWS = 200
_ENDINGS = "OME-Zarr (*.ome.zarr);;TIFF (*.tif);;NIfTI (*.nii.gz);;HDF5 (*.h5);;nnU-Net folder (*)"


class ReviewPanel(Panel):
    """The queue of doubtful slices, and export."""

    title = "Review && export"
    tip = "Doubtful slices, the most worthwhile first; then the labels as a file."
    steps: tuple[Step, ...] = ("review",)

    def __init__(self, workspace: Workspace, parent: QWidget | None = None) -> None:
        super().__init__(workspace, parent)
        self.status = text_label(
            tip="Expected Dice: the overlap with the true labels that the method expects, 0 to 1, measured on painted"
            " slices that it was not shown."
        )
        self.column.addWidget(self.status)
        self.show_confidence = QCheckBox("Show confidence on the canvas")
        self.show_confidence.setToolTip("Bright: the label of the voxel is probably right. Dark: doubtful.")
        self.show_confidence.toggled.connect(self._show_confidence)
        self.column.addWidget(self.show_confidence)
        self.list = QListWidget()
        self.list.setToolTip("Slices to review, by what correcting one would add to the volume. Click to go there.")
        self.list.setUniformItemSizes(True)
        self.list.itemClicked.connect(self._jump)
        self.column.addWidget(self.list)
        self.previous = button("Back", "The doubtful slice before.", self.ask("previous_review"), key="K")
        self.next = button("Next", "The next doubtful slice.", self.ask("next_review"), key="J")
        self.accept = button(
            "Accept",
            "The prediction of this slice is right, or you corrected it: copy it to where you did not paint, and count"
            " the slice as complete. Undo takes it back.",
            self.ask("accept"),
            key="A",
            primary=True,
        )
        self.flag = button("Flag", "Keep the slice in the list for later.", self.ask("flag"), key="G")
        self.column.addLayout(grid([self.previous, self.next, self.accept, self.flag]))
        self.export = button("Export labels …", "Write the labels to a file that other programs open.", self._export)
        self.column.addWidget(self.export)
        self._rows: tuple[ReviewRow, ...] = ()

    def summary(self, snapshot: Snapshot) -> str:
        """Return how many slices are doubtful."""
        if snapshot.project is None or snapshot.project.scores is None:
            return ""
        return f"{len(snapshot.queue)} doubtful" if snapshot.queue else "nothing doubtful"

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Show what differs."""
        project = new.project
        has_scores = project is not None and project.scores is not None
        self.setEnabled(has_scores)
        self.show_confidence.setEnabled(new.layers.confidence)
        if changed(new, old, "mean_confidence", "stale", "queue", "project.scores"):
            self.status.setText(_status(new) if has_scores else "Nothing is predicted yet.")
        if changed(new, old, "queue"):
            self._fill(new.queue)
        if changed(new, old, "layers.current", "queue") and new.layers.current is not None:
            place = next((k for k, row in enumerate(self._rows) if row.index == new.layers.current.index), -1)
            self.list.setCurrentRow(place)
        self.next.setEnabled(bool(new.queue))
        self.previous.setEnabled(bool(new.queue))

    def _fill(self, queue: tuple[ReviewRow, ...]) -> None:
        self._rows = queue[:_MOST_ROWS]
        self.list.clear()
        for row in self._rows:
            mark = "⚑ " if row.flagged else ""
            item = QListWidgetItem(f"{mark}slice {row.index}   expected Dice {row.confidence:.2f}")
            item.setToolTip(f"Correcting it would repair about {row.gain:.1f} slices around it.")
            self.list.addItem(item)
        self.list.setVisible(bool(queue))
        height = self.list.sizeHintForRow(0) if queue else 20
        self.list.setFixedHeight(min(len(self._rows), 6) * max(18, height) + 6)

    def _jump(self, item: QListWidgetItem) -> None:
        session = self.session
        if session is not None and session.snapshot.project is not None and session.snapshot.project.scores:
            axis = session.snapshot.project.scores.axis
            session.jump(SliceRef(axis, self._rows[self.list.row(item)].index))

    def _show_confidence(self, shown: bool) -> None:
        if self.session is not None and self.session.confidence is not None:
            self.session.confidence.visible = shown

    def _export(self) -> None:
        session = self.session
        if session is None:
            return
        suggestion = f"{session.volume}_labels.ome.zarr"
        path, _ = QFileDialog.getSaveFileName(self, "Export labels", suggestion, _ENDINGS)
        if path:
            # the dialog has asked about a file that is there
            session.export_labels(path, overwrite=True)


def _status(snapshot: Snapshot) -> str:
    mean = f"Expected Dice {snapshot.mean_confidence:.2f} on average" if snapshot.mean_confidence is not None else ""
    stale = f"{len(snapshot.stale)} slices are stale: run again to take in what you painted" if snapshot.stale else ""
    return ". ".join(part for part in (mean, stale) if part) or "All slices are yours."


