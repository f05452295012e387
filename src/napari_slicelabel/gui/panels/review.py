"""Review: where to look, and what to do with what is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qtpy.QtWidgets import QCheckBox, QComboBox, QWidget

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.gui.exporting import ask_for_file
from napari_slicelabel.gui.panels.base import Panel, button, changed, text_label
from napari_slicelabel.gui.review_queue import ReviewItem, ReviewQueue, ReviewState
from napari_slicelabel.gui.runs import export_choice, label_of, outcome_word

if TYPE_CHECKING:
    from napari_slicelabel.gui.state import ReviewRow, RunFacts, Snapshot, Step
    from napari_slicelabel.gui.workspace import Workspace

_MOST_ROWS = 200


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
        self.which = text_label()
        self.run = QComboBox()
        self.run.setToolTip("The run whose labels are written.")
        self.run.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.export = button("Export labels …", "Write the labels to a file that other programs open.", self._export)
        for item in (self.which, self.run, self.export):
            self.column.addWidget(item)

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
        shown = ("queue", "reviewed", "project.scores", "project.accepted")
        if changed(new, old, *shown) and project is not None and project.scores:
            self.queue.set_items(_items(new))
            self.queue.setVisible(bool(new.queue or new.reviewed))
        if changed(new, old, "project.runs", "project.alone", "run.active"):
            self._show_exportable(new)
        current = new.layers.current
        if changed(new, old, "layers.current") and current is not None and project is not None:
            self.queue.set_current(project.volume, current.axis, current.index)

    def _show_exportable(self, snapshot: Snapshot) -> None:
        project = snapshot.project
        mine = [run for run in project.runs if run.slices] if project is not None else []
        runs = [run for run in mine if run.written]
        running = snapshot.run.run_id if snapshot.run.active else ""
        chosen = export_choice(runs, project.alone) if project is not None else None
        self.run.clear()
        for run in reversed(runs):
            self.run.addItem(label_of(run, running), run.run_id)
        if chosen is not None:
            self.run.setCurrentIndex(self.run.findData(chosen.run_id))
        is_partial = bool(runs) and mine[-1].outcome != "finished"
        self.run.setVisible(len(runs) > 1)
        self.which.setVisible(is_partial)
        if is_partial:
            self.which.setText(_about_partial(mine[-1], chosen, running))

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
        if self.session is not None:
            ask_for_file(self, self.session, self.run.currentData() or "")


def _items(snapshot: Snapshot) -> list[ReviewItem]:
    """Return the rows of the queue: what is to do, then what is done."""
    project = snapshot.project
    assert project is not None
    assert project.scores is not None

    to_do = {row.index for row in snapshot.queue}

    def state(row: ReviewRow) -> ReviewState:
        if row.index in to_do:
            return "flagged" if row.flagged else "to do"
        return "accepted" if row.index in project.accepted else "corrected"

    rows = (*snapshot.queue, *snapshot.reviewed)[:_MOST_ROWS]
    axis = project.scores.axis
    return [ReviewItem(project.volume, axis, row.index, row.confidence, row.gain, state(row)) for row in rows]


def _about_partial(newest: RunFacts, chosen: RunFacts | None, running: str) -> str:
    """Return what has to be known before labels are written while the newest run has not finished."""
    state = f"The newest run ({newest.method}) has written {newest.written} of {newest.slices} slices"
    word = outcome_word(newest, running)
    if chosen is None or chosen.run_id == newest.run_id:
        return f"{state} ({word}): the rest of the file will be empty."
    return f"{state} ({word}). Export writes the run chosen here, not the mixture that is shown."


def _status(snapshot: Snapshot) -> str:
    mean = ""
    if snapshot.mean_confidence is not None:
        mean = f"Expected Dice {snapshot.mean_confidence:.2f} on average"
        if not snapshot.measured:
            mean += ", not measured"
    stale = f"{len(snapshot.stale)} slices are stale: run again to take in what you painted" if snapshot.stale else ""
    return ". ".join(part for part in (mean, stale) if part) or "All slices are yours."
