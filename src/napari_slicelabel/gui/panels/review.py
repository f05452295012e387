"""Review: where to look, and what to do with what is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qtpy.QtWidgets import QCheckBox, QFileDialog, QWidget

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.gui.panels.base import Panel, button, changed, text_label
from napari_slicelabel.gui.review_queue import ReviewItem, ReviewQueue

if TYPE_CHECKING:
    from napari_slicelabel.gui.state import Snapshot, Step
    from napari_slicelabel.gui.workspace import Workspace

_MOST_ROWS = 200
_ENDINGS = "OME-Zarr (*.ome.zarr);;TIFF (*.tif);;NIfTI (*.nii.gz);;HDF5 (*.h5);;nnU-Net folder (*)"


class ReviewPanel(Panel):
    """The queue of doubtful slices, and export."""

    title = "Review && export"
    tip = "Doubtful slices, the most worthwhile first; then the labels as a file."
    steps: ClassVar[tuple[Step, ...]] = ("review",)

    def __init__(self, workspace: Workspace, parent: QWidget | None = None) -> None:
        super().__init__(workspace, parent)
        self.status = text_label(
            tip="Expected Dice: the overlap with the true labels that the method expects, 0 to 1, measured on painted"
            " slices that it was not shown (flow, from one or two slices: on labels that it carries away and back)."
            " Not measured: fewer than three are painted, or calibrate is off, and the method says how sure it is of"
            " itself."
        )
        self.column.addWidget(self.status)
        self.show_confidence = QCheckBox("Show confidence on the canvas")
        self.show_confidence.setToolTip("Bright: the label of the voxel is probably right. Dark: doubtful.")
        self.show_confidence.toggled.connect(self._show_confidence)
        self.column.addWidget(self.show_confidence)
        self.queue = ReviewQueue()
        self.queue.slice_chosen.connect(lambda _volume, axis, index: self._jump(SliceRef(axis, index)))
        for signal, name in (
            (self.queue.slice_accepted, "accept"),
            (self.queue.slice_corrected, "correct"),
            (self.queue.slice_flagged, "flag"),
        ):
            signal.connect(lambda _volume, axis, index, name=name: self._decide(name, SliceRef(axis, index)))
        self.column.addWidget(self.queue)
        self.export = button("Export labels …", "Write the labels to a file that other programs open.", self._export)
        self.column.addWidget(self.export)

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
        if changed(new, old, "mean_confidence", "measured", "stale", "queue", "project.scores"):
            self.status.setText(_status(new) if has_scores else "Nothing is predicted yet.")
        if changed(new, old, "queue", "project.scores", "project.accepted") and project is not None and project.scores:
            self.queue.set_items(
                [
                    ReviewItem(
                        project.volume,
                        project.scores.axis,
                        row.index,
                        row.confidence,
                        row.gain,
                        "flagged" if row.flagged else "to do",
                    )
                    for row in new.queue[:_MOST_ROWS]
                ]
            )
            self.queue.setVisible(bool(new.queue))
        current = new.layers.current
        if changed(new, old, "layers.current") and current is not None and project is not None:
            self.queue.set_current(project.volume, current.axis, current.index)

    def _jump(self, ref: SliceRef) -> None:
        if self.session is not None:
            self.session.jump(ref)

    def _decide(self, name: str, ref: SliceRef) -> None:
        if self.session is not None:
            if self.session.current != ref:
                self.session.jump(ref)
            getattr(self.session, name)()

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
    mean = ""
    if snapshot.mean_confidence is not None:
        mean = f"Expected Dice {snapshot.mean_confidence:.2f} on average"
        if not snapshot.measured:
            mean += ", not measured"
    stale = f"{len(snapshot.stale)} slices are stale: run again to take in what you painted" if snapshot.stale else ""
    return ". ".join(part for part in (mean, stale) if part) or "All slices are yours."
