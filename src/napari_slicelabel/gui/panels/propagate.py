"""Propagate: let the labels grow from the painted slices into the volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFormLayout, QProgressBar, QWidget

from napari_slicelabel.engine.config import MethodConfig
from napari_slicelabel.engine.methods import METHODS
from napari_slicelabel.gui.curve_plot import CurvePlot
from napari_slicelabel.gui.devices import devices
from napari_slicelabel.gui.exporting import ask_for_file
from napari_slicelabel.gui.forms import ConfigForm
from napari_slicelabel.gui.panels.base import Panel, button, changed, duration, grid, size, text_label
from napari_slicelabel.gui.problem import ProblemLabel
from napari_slicelabel.gui.run_list import RunChoice, RunList
from napari_slicelabel.gui.settings import settings

if TYPE_CHECKING:
    from napari_slicelabel.gui.state import Snapshot, Step
    from napari_slicelabel.gui.workspace import Workspace

_NAMES = {
    "interpolate": "Interpolate (seconds)",
    "flow": "Flow (a minute)",
    "self-label": "Self-label (minutes)",
    "gradual-3d": "Gradual 3D (minutes)",
    "self-train": "Self-train (over lunch)",
}
_PREFERRED = "self-label"
_STAGES = {
    "fit": "Learning from your slices",
    "fill": "Labelling all slices",
    "calibrate": "Measuring confidence",
    "there and back": "Seeing how far labels can be carried",
    "carry": "Carrying your labels along",
    "transfer": "Learning a model for other images",
    "settle": "Learning from the slices that watched",
    "planes": "Learning in 2D",
    "volume": "Learning in 3D",
}


class PropagatePanel(Panel):
    """Method, device, plan, and the run itself."""

    title = "Propagate"
    tip = "Labels for the whole volume, grown from the painted slices."
    steps: ClassVar[tuple[Step, ...]] = ("propagate", "running")

    def __init__(self, workspace: Workspace, parent: QWidget | None = None) -> None:
        super().__init__(workspace, parent)
        self._shown_loss: tuple[tuple[int, float], ...] = ()
        self._shown_dice: tuple[tuple[int, float], ...] = ()
        self._make_choice()
        self._make_run()
        self._choose_method()
        workspace.session_changed.connect(self._new_session)
        self._new_session()

    def _make_choice(self) -> None:
        self.method = QComboBox()
        for name, method in METHODS.items():
            self.method.addItem(_NAMES.get(name, name), name)
            self.method.setItemData(self.method.count() - 1, method.title, Qt.ItemDataRole.ToolTipRole)
        self.method.setCurrentIndex(max(0, self.method.findData(_PREFERRED)))
        self.method.setToolTip("How labels get from slice to slice.")
        self.method.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.method.currentIndexChanged.connect(lambda _index: self._choose_method())
        choice = QFormLayout()
        choice.setContentsMargins(0, 0, 0, 0)
        choice.setSpacing(4)
        choice.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        choice.addRow("Method", self.method)
        self.known = text_label(tip="What we know of this method; figures are in docs/benchmarks.md.")
        self.known.setObjectName("aside")
        choice.addRow(self.known)
        self.column.addLayout(choice)
        self.form: ConfigForm | None = None
        self._forms: dict[str, ConfigForm] = {}
        self.plan = text_label(tip="What the run is going to do; time and memory are estimates.")
        self.devices = text_label(tip="Where it is computed, and how much memory is free there.")

    def _make_run(self) -> None:
        self.column.addWidget(self.plan)
        self.column.addWidget(self.devices)
        self.resume = button(
            "Go on with the interrupted run", "The run goes on where it was.", self._resume, primary=True
        )
        self.column.addWidget(self.resume)
        self.run = button("Run", "Label the volume; you can go on working.", self.ask("start_run"), primary=True)
        self.pause = button("Pause", "Hold the run; nothing is lost.", self._pause)
        self.stop = button("Stop and keep", "End early; labels stay, and it can go on later.", self._stop)
        self.cancel = button("Cancel", "End at once; slices written so far stay.", self._cancel)
        self.column.addWidget(self.run)
        self.column.addLayout(grid([self.pause, self.stop]))
        self.column.addWidget(self.cancel)
        self.stage = text_label()
        self.bar = QProgressBar()
        self.bar.setTextVisible(True)
        self.bar.setToolTip("How far this stage of the run is.")
        self.overall = text_label()
        self.curve = CurvePlot()
        self.curve.setToolTip(
            "Loss: how far the network is from the labels it learns from, lower is better."
            " Held-out Dice: how well it labels painted slices that it was not shown, 1 is perfect."
        )
        self.error = ProblemLabel()
        self.runs = RunList()
        self.runs.show_wanted.connect(lambda run_id: self._ask_of_run("show_run", run_id))
        self.runs.compare_wanted.connect(lambda run_id: self._ask_of_run("compare_run", run_id))
        self.runs.delete_wanted.connect(lambda run_id: self._ask_of_run("delete_run", run_id))
        self.runs.resume_wanted.connect(lambda run_id: self._ask_of_run("resume_run", run_id))
        self.runs.export_wanted.connect(self._export)
        for item in (self.stage, self.bar, self.overall, self.curve, self.error, self.runs):
            self.column.addWidget(item)

    def summary(self, snapshot: Snapshot) -> str:
        """Return how the run stands."""
        run = snapshot.run
        if run.active:
            return f"{run.phase} · {run.written} slices"
        return "" if run.phase == "idle" else run.phase

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Show what differs."""
        self.setEnabled(new.project is not None)
        run, active = new.run, new.run.active
        if old is None or changed(new, old, "project.path"):
            self._config_changed()
        if changed(new, old, "plan", "run.phase", "project.path"):
            self._show_plan(new)
        self.run.setVisible(not active)
        self.run.setEnabled(new.can_run)
        for widget in (self.pause, self.stop, self.cancel, self.stage, self.bar, self.overall):
            widget.setVisible(active)
        self.method.setEnabled(not active)
        if self.form is not None:
            self.form.setVisible(not active)
        self.pause.setText("Go on" if run.phase == "paused" else "Pause")
        self.pause.setEnabled(run.phase in ("running", "paused"))
        self.stop.setEnabled(run.phase not in ("stopping", "cancelling"))
        self.cancel.setEnabled(run.phase != "cancelling")
        self.resume.setVisible(new.resumable is not None)
        if new.resumable is not None:
            word = "killed" if new.resumable.outcome == "running" else new.resumable.outcome
            self.resume.setToolTip(f"Run {new.resumable.run_id} was {word}. It goes on where it was.")
            self.resume.setText(f"Go on with the {word} run")
        if changed(new, old, "run"):
            self._show_progress(new)
        if changed(new, old, "project.runs", "project.alone", "project.compared", "run.run_id", "run.phase"):
            self._show_runs(new)

    def _show_runs(self, snapshot: Snapshot) -> None:
        project, run = snapshot.project, snapshot.run
        self.runs.setVisible(project is not None and bool(project.runs))
        if project is not None:
            running = run.run_id if run.active else ""
            self.runs.set_choice(
                RunChoice(project.runs, project.volume, project.alone, project.compared, running, run.active)
            )

    def _show_plan(self, snapshot: Snapshot) -> None:
        plan = snapshot.plan
        for label in (self.plan, self.devices):
            label.setVisible(not snapshot.run.active)
        wanted = self.form.config().device if self.form is not None and self.form.is_valid else "auto"
        found = [device for device in devices() if wanted in ("auto", device.name)]
        self.devices.setText(found[0].text if found else "No GPU here: choose device auto or cpu.")
        if plan.problem or not plan.slices:
            self.plan.setText(plan.problem)
            return
        rounds = f", {plan.work.rounds} rounds" if plan.work.rounds else ""
        self.plan.setText(
            f"Fills {plan.slices} slices along {plan.axis} from {plan.annotated} painted{rounds}."
            f" About {duration(plan.work.seconds)}, {size(plan.work.memory_bytes)}."
        )

    def _show_progress(self, snapshot: Snapshot) -> None:
        run = snapshot.run
        if run.active:
            stage = _STAGES.get(run.stage, run.stage[:1].upper() + run.stage[1:]) or "Preparing"
            words = {"paused": "Paused", "stopping": "Stopping ...", "cancelling": "Cancelling ..."}
            self.stage.setText(words.get(run.phase, stage) + (f" · {run.message}" if run.message else ""))
            # a bar paints itself at once, and the canvas with it: this way it waits until the window is painted anyway
            self.bar.setUpdatesEnabled(False)
            self.bar.setRange(0, run.total)
            self.bar.setValue(run.done)
            self.bar.setFormat(f"{run.done} / {run.total}")
            self.bar.setUpdatesEnabled(True)
            left = f" · about {duration(run.left_s)} left" if run.left_s else ""
            self.overall.setText(f"{run.written} of {run.slices} slices · {duration(run.seconds)}{left}")
        if run.loss != self._shown_loss or run.held_out != self._shown_dice:
            self._shown_loss, self._shown_dice = run.loss, run.held_out
            self.curve.set_points(run.loss, run.held_out)
        self.curve.setVisible(bool(run.loss or run.held_out))
        self.error.set_problem(run.error if run.phase == "failed" else "")

    # -- config -------------------------------------------------------------------------------------------------------

    def config(self) -> MethodConfig | None:
        """Return the config that the form shows; None while something in it does not fit."""
        if self.form is None or not self.form.is_valid:
            return None
        return self.form.config()

    def _choose_method(self) -> None:
        name, before = self.method.currentData(), self.config()
        self.known.setText(f"{METHODS[name].title}. {METHODS[name].known}")
        if name not in self._forms:
            form = ConfigForm(METHODS[name].config(device=settings().device))
            form.config_changed.connect(lambda _config: self._config_changed())
            form.validity_changed.connect(lambda _valid: self._config_changed())
            self.column.insertWidget(1, form)
            self._forms[name] = form
        self.form = self._forms[name]
        if before is not None and self.form.is_valid:
            # what every method has stays as it was chosen
            shared = {field: getattr(before, field) for field in MethodConfig.model_fields if field != "preset"}
            self.form.set_config(self.form.config().model_copy(update=shared))
        for other in self._forms.values():
            other.setVisible(other is self.form)
        self._config_changed()

    def _config_changed(self) -> None:
        config = self.config()
        if self.session is not None and config is not None:
            self.session.set_config(config)

    def _new_session(self) -> None:
        if self.session is not None:
            self.session.config_wanted.connect(self._set_values)

    def _set_values(self, values: dict[str, object]) -> None:
        if self.form is not None and self.form.is_valid:
            self.form.set_config(self.form.config().model_copy(update=values))
            self._config_changed()

    # -- the run ------------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        session = self.session
        if session is not None and session.snapshot.resumable is not None:
            session.resume_run(session.snapshot.resumable.run_id)

    def _ask_of_run(self, name: str, run_id: str) -> None:
        if self.session is not None:
            getattr(self.session, name)(run_id)

    def _export(self, run_id: str) -> None:
        if self.session is not None:
            ask_for_file(self, self.session, run_id)

    def _pause(self) -> None:
        if self.session is not None:
            worker = self.session.worker
            (worker.go_on if worker.state.phase == "paused" else worker.pause)()

    def _stop(self) -> None:
        if self.session is not None:
            self.session.worker.stop()

    def _cancel(self) -> None:
        if self.session is not None:
            self.session.worker.cancel()
