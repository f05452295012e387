"""Labelling one volume in one viewer: owns project, layers and run, and does what buttons and keys ask for.

A session belongs to its `Workspace`, not to a widget: docks may be closed and opened again while it works.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_slicelabel.data.boxes import AXES, Axis, SliceRef
from napari_slicelabel.data.classes import NOT_PAINTED, PAINTED_BACKGROUND, LabelClass, default_color
from napari_slicelabel.engine.events import Progress, SliceDone
from napari_slicelabel.engine.export import export
from napari_slicelabel.engine.pieces import WHOLE, read_range, read_stops, write_stops
from napari_slicelabel.engine.plan import RunPlan, plan
from napari_slicelabel.engine.run import delete_run
from napari_slicelabel.engine.select import DEFAULT_FEATURES, SELECTORS, Ranking, rank_in_steps
from napari_slicelabel.engine.select.options import NO_OPTIONS, SelectOptions
from napari_slicelabel.errors import InputError, SliceLabelError
from napari_slicelabel.gui import layers as show
from napari_slicelabel.gui.background import be_nice, import_networks
from napari_slicelabel.gui.history import History
from napari_slicelabel.gui.paint import PaintStore
from napari_slicelabel.gui.results import ResultArray
from napari_slicelabel.gui.runs import Shelf, by_id, export_choice, label_of, now, read_run, read_runs
from napari_slicelabel.gui.settings import settings
from napari_slicelabel.gui.shapes import between
from napari_slicelabel.gui.state import Choosing, LayerFacts, ProjectFacts, RunFacts, ScoreBook, Snapshot, resolve
from napari_slicelabel.gui.tasks import Tasks
from napari_slicelabel.gui.worker import RunState, RunWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_slicelabel.data.annotation import Annotation
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.config import MethodConfig
    from napari_slicelabel.engine.events import Metric
    from napari_slicelabel.gui.paint import Change
    from napari_slicelabel.gui.results import Hidden
    from napari_slicelabel.gui.runs import ShelfRun

SELECTION = "selection"
"""Name of the ranking that the widgets show."""

_SETTLE_MS = 60
_PREVIEW_CONTOUR = 2
_TELL_S = 0.1

KEYS: tuple[tuple[str, str], ...] = (
    ("N", "next_proposal"),
    ("D", "toggle_complete"),
    ("T", "copy_previous"),
    ("S", "preview_shapes"),
    ("Q", "paint_background"),
    ("J", "next_review"),
    ("K", "previous_review"),
    ("A", "accept"),
    ("C", "correct"),
    ("G", "flag"),
    ("Control-Z", "undo"),
    ("Control-Shift-Z", "redo"),
)
"""Keys on our labels layer, and the method each one calls. None of them is taken by napari on a Labels layer."""

PREVIEW_KEYS: tuple[tuple[str, str], ...] = (("Enter", "apply_preview"), ("Escape", "discard_preview"))
"""Keys that napari's polygon has otherwise, while a preview is shown."""


class Session(QObject):
    """Labelling one volume of a project in one viewer.

    Parameters
    ----------
    viewer : callable
        Returns the napari viewer, or None once it is closed.
    project : Project
        Open.
    volume : str
        Which of its volumes.
    image : napari layer, optional
        The layer that shows the image; one is added by default.

    Attributes
    ----------
    changed : Signal()
        `snapshot` may be a new one.
    said : Signal(str, bool)
        A message for the user, and whether it is an error.
    removal_asked : Signal(object, int)
        A class is to be removed that is painted in so many slices: somebody has to say what becomes of that.
    config_wanted : Signal(dict)
        Values of the config that were chosen outside of its form, by name.
    """

    changed = Signal()
    said = Signal(str, bool)
    removal_asked = Signal(object, int)
    config_wanted = Signal(dict)
    _saved = Signal()
    _chose = Signal(object)
    _recolored = Signal()
    _plane_loaded = Signal(str)
    _read_failed = Signal(str)

    def __init__(self, viewer: Callable[[], Any], project: Project, volume: str, image: Any = None) -> None:
        super().__init__()
        self._viewer = viewer
        self.project = project
        self.volume = volume
        self.config: MethodConfig | None = None
        self.closed = False
        chosen = settings()
        self._in_view: tuple[str, SliceRef] | None = None
        self.worker = RunWorker(project, self, refresh_ms=chosen.refresh_ms, in_view=lambda: self._in_view)
        self.tasks = Tasks(self)
        self._choice = Tasks(self)
        self._choosing: Choosing | None = None
        self._give_up_choosing = threading.Event()
        self._plan = RunPlan()
        self._planned: object = None
        self._book: ScoreBook | None = None
        self._shelf = Shelf(project, volume)
        self._edited: set[int] = set()
        self._skipped: set[SliceRef] = set()
        self._ranking: Ranking | None = None
        self._runs: tuple[RunFacts, ...] = ()
        self._preview: dict[SliceRef, NDArray[np.uint8]] = {}
        # so that undo brings a class back with its name and colour
        self._removed: dict[int, LabelClass] = {}
        self._again: str = ""
        self._trained = ""
        self._live = ""
        self._on_canvas = ""
        self._contour = 0
        self._hidden: Hidden = {}
        self._reviewed: SliceRef | None = None
        self._run_classes: tuple[LabelClass, ...] = ()
        self.image: Any = image
        self.labels: Any = None
        self.prediction: Any = None
        self.confidence: Any = None
        # signals, since the store calls from its own threads
        self._saved.connect(self._soon)
        self._recolored.connect(self._recolor)
        self._chose.connect(self._choosing_went_on)
        self._plane_loaded.connect(self._refresh)
        self._read_failed.connect(lambda text: self.said.emit(text, True))
        self.store = PaintStore(
            project.annotation(volume),
            add_classes=self._add_classes,
            saved=self._saved.emit,
            loaded=lambda: self._plane_loaded.emit("labels"),
            failed=lambda error: self._read_failed.emit(str(error)),
            looked=self._look_at_classes,
            memory_bytes=chosen.memory_mb * 2**20,
            save_after_s=chosen.autosave_s,
        )
        self._history = History(self.store, self.tasks.start, self._stepped, self._operation_failed)
        shape = project.record(volume).shape
        self._results = {
            role: ResultArray(
                shape,
                loaded=lambda role=role: self._plane_loaded.emit(role),  # type: ignore[misc]
                failed=lambda error: self._read_failed.emit(str(error)),
            )
            for role in ("prediction", "confidence")
        }
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(_SETTLE_MS)
        self._settle.timeout.connect(self._settled)
        self.worker.changed.connect(self._run_changed)
        self.worker.slices_done.connect(self._slices_done)
        self.worker.ended.connect(self._run_ended)
        self.tasks.failed.connect(self._task_failed)
        self._choice.failed.connect(self._choice_failed)
        self._add_layers()
        self._load_ranking()
        self._read_runs()

    # -- layers -------------------------------------------------------------------------------------------------------

    @property
    def about(self) -> dict[str, str]:
        """What the metadata of our layers say."""
        return {"project": str(self.project.path), "volume": self.volume}

    def _add_layers(self) -> None:
        viewer = self._viewer()
        self._is_own_image = self.image is None
        if self._is_own_image:
            self.image = show.add_image(viewer, self.project.volume(self.volume), str(self.project.path))
        # found again by this when another volume was shown in between
        known = self.image.metadata.get(show.KEY, {})
        self.image.metadata[show.KEY] = {**known, **self.about, "role": "image"}
        self.image.visible = True
        self.show_labels()
        viewer.layers.events.removing.connect(self._layer_going)
        viewer.layers.events.removed.connect(self._layer_removed)
        viewer.dims.events.current_step.connect(self._view_moved)
        viewer.dims.events.order.connect(self._view_moved)
        viewer.dims.events.ndisplay.connect(self._view_moved)
        self._view_moved()

    def show_labels(self) -> None:
        """Add the layer to paint in, unless it is there."""
        viewer = self._viewer()
        if viewer is None or self.labels is not None:
            return
        classes = self.project.classes
        self.labels = show.add_labels(viewer, self.store, self.volume, self.image, classes, self.about)
        self._history.layer = self.labels
        self.labels.selected_label = classes[0].id if classes else 1
        self.labels.mode = "paint"
        self.labels.events.paint.connect(self._painted)
        self.labels.events.selected_label.connect(self._soon)
        self.labels.events.visible.connect(self._soon)
        for key, name in KEYS:
            self.labels.bind_key(key, _calling(self, name))
        viewer.layers.selection.active = self.labels
        self._soon()

    def _show_prediction(self) -> None:
        """Add the layer of a run's labels, below the one that is painted in, unless it is there."""
        viewer = self._viewer()
        if viewer is None or self.prediction is not None:
            return
        array, classes = self._results["prediction"], self.project.classes
        with self._as_it_was(viewer):
            self.prediction = show.add_prediction(viewer, array, self.volume, self.image, classes, self.about)
            self._below_labels(viewer, self.prediction)

    def _show_confidence(self) -> None:
        """Add the layer of a run's confidence, below the one that is painted in, unless it is there."""
        viewer = self._viewer()
        if viewer is None or self.closed or self.confidence is not None:
            return
        with self._as_it_was(viewer):
            self.confidence = show.add_confidence(
                viewer, self._results["confidence"], self.volume, self.image, self.about
            )
            self._below_labels(viewer, self.confidence)
        self._soon()

    @contextmanager
    def _as_it_was(self, viewer: Any) -> Iterator[None]:
        """Leave the active layer active: who paints goes on painting."""
        active = viewer.layers.selection.active
        yield
        if active is not None and active in viewer.layers:
            viewer.layers.selection.active = active

    def _below_labels(self, viewer: Any, layer: Any) -> None:
        if self.labels is not None and self.labels in viewer.layers:
            viewer.layers.move(viewer.layers.index(layer), viewer.layers.index(self.labels))

    def remove_layers(self) -> None:
        """Take our layers out of the viewer: once the session is closed, nothing that is painted there is saved."""
        viewer = self._viewer()
        if viewer is None:
            return
        for layer in (self.labels, self.prediction, self.confidence):
            if layer is not None and layer in viewer.layers:
                if layer == self.labels:
                    # see `_layer_going`, which a closed session is no longer called for
                    show.put_brush_away(viewer, layer)
                viewer.layers.remove(layer)

    def _layer_going(self, event: Any) -> None:
        viewer = self._viewer()
        if viewer is not None and self.labels is not None and viewer.layers[event.index] == self.labels:
            show.put_brush_away(viewer, self.labels)

    def _layer_removed(self, event: Any) -> None:
        for role in ("image", "labels", "prediction", "confidence"):
            if getattr(self, role) is not None and getattr(self, role) == event.value and role != "image":
                setattr(self, role, None)
        if self.labels is None:
            # napari's own history went with the layer
            self._history.forget_strokes()
        self._soon()

    def _refresh(self, role: str) -> None:
        layer = getattr(self, role)
        if layer is not None and layer.visible:
            layer.refresh(thumbnail=False, highlight=False, extent=False)

    # -- the view -----------------------------------------------------------------------------------------------------

    @property
    def current(self) -> SliceRef | None:
        """The slice on the canvas."""
        viewer, layer = self._viewer(), self.labels or self.image
        return None if viewer is None or layer is None else show.current_slice(viewer, layer)

    @property
    def axis(self) -> Axis:
        """The axis that the viewer looks along; z in 3D."""
        viewer = self._viewer()
        return (show.view_axis(viewer) if viewer is not None else None) or "z"

    def jump(self, ref: SliceRef) -> None:
        """Show a slice on the canvas."""
        viewer, layer = self._viewer(), self.labels or self.image
        if viewer is not None and layer is not None:
            show.look_at(viewer, layer, ref)

    def _view_moved(self, _event: object = None) -> None:
        self.store.axis = self.axis
        current = self.current
        self._in_view = None if current is None else (self.volume, current)
        self._soon()

    # -- what there is ------------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """Everything that the widgets show, as it is now."""
        return resolve(self.facts(), self.layer_facts(), self.worker.state, self._plan)

    def facts(self) -> ProjectFacts:
        """What the project holds."""
        record = self.project.record(self.volume)
        order, coverage = self._proposed()
        return ProjectFacts(
            path=str(self.project.path),
            volume=self.volume,
            shape=record.shape,
            voxel_size=record.voxel_size,
            unit=record.unit,
            classes=self.project.classes,
            painted={axis: self.store.painted(axis) for axis in AXES},
            complete={axis: self.store.complete(axis) for axis in AXES},
            saving=self.store.save_state,
            order=order,
            coverage=coverage,
            skipped=frozenset(self._skipped),
            runs=self._runs,
            shown_run=next((run.run_id for run in self._shelf.shown), ""),
            alone=self._shelf.alone,
            compared=self._shelf.compared,
            scores=self._book.scores if self._book else None,
            accepted=self._accepted(),
            flagged=self._shelf.said("flagged"),
            edited=frozenset(self._edited if self._book and self._book.axis == self._edits_axis else ()),
            volumes=self.project.names,
            span=read_range(self.config.range) if self.config is not None else None,
            stops=frozenset(read_stops(self.config.stops)) if self.config is not None else frozenset(),
        )

    def layer_facts(self) -> LayerFacts:
        """What the viewer shows."""
        viewer, current = self._viewer(), self.current
        return LayerFacts(
            images=tuple(layer.name for layer in show.images(viewer)) if viewer is not None else (),
            image=self.image is not None,
            labels=self.labels is not None,
            prediction=self.prediction is not None,
            confidence=self.confidence is not None,
            current=current,
            blank=current is not None and self.store.is_blank(current),
            selected=int(self.labels.selected_label) if self.labels is not None else 1,
            preview=len(self._preview),
            choosing=self._choosing,
        )

    def _soon(self, _event: object = None) -> None:
        # many things change at once; the widgets hear of it once
        if not self._settle.isActive() and not self.closed:
            self._settle.start()

    def _settled(self) -> None:
        self._make_plan()
        self._hide_below_paint()
        self.changed.emit()

    def _make_plan(self) -> None:
        """Plan the run anew, in the background, if the config or the annotated slices are other ones."""
        config, status = self.config, self.project.annotation(self.volume).status
        if config is None or self.worker.state.active or self._planned == (config, status):
            return
        self._planned = (config, status)

        def done(made: RunPlan) -> None:
            self._plan = made
            self.changed.emit()

        self.tasks.start(lambda: plan(self.project, config), done)

    def set_config(self, config: MethodConfig) -> None:
        """Take the config that the next run is to have."""
        self.config = config
        self._soon()

    def set_range(self, start: int, stop: int) -> None:
        """Fill only the slices from `start` up to and without `stop` from now on."""
        depth = self.project.record(self.volume).shape[AXES.index(self.axis)]
        self.config_wanted.emit({"range": WHOLE if (start, stop) == (0, depth) else f"{start}:{stop}"})

    def set_stop(self, index: int, is_stop: bool) -> None:
        """Let labels pass a slice from now on, or not."""
        stops = set(read_stops(self.config.stops)) if self.config is not None else set()
        self.config_wanted.emit({"stops": write_stops(stops | {index} if is_stop else stops - {index})})

    # -- classes ------------------------------------------------------------------------------------------------------

    def set_classes(self, classes: Sequence[LabelClass]) -> None:
        """Replace the classes, and show their colours."""
        if tuple(classes) == self.project.classes:
            return
        table = list(classes)
        self.tasks.start(lambda: self.project.set_classes(table), lambda _: self._recolor())

    def choose_class(self, value: int) -> None:
        """Paint with a class from now on."""
        if self.labels is not None:
            self.labels.selected_label = value
            if self.labels.mode not in ("paint", "fill", "polygon"):
                self.labels.mode = "paint"

    def paint_background(self) -> None:
        """Paint background on purpose; again: back to the first class."""
        if self.labels is None:
            return
        first = self.project.classes[0].id if self.project.classes else 1
        chosen = self.labels.selected_label
        self.choose_class(first if chosen == PAINTED_BACKGROUND else PAINTED_BACKGROUND)

    def _recolor(self) -> None:
        colors = show.label_colors(self.project.classes)
        for layer in (self.labels, self.prediction):
            if layer is not None:
                layer.colormap = colors
        self._soon()

    def remove_class(self, value: int, *, becomes: int | None = None) -> None:
        """Take a class out of the project.

        Parameters
        ----------
        value : int
            Its label.
        becomes : int, optional
            What its voxels become: another class, or `NOT_PAINTED`. Without it a class that is painted somewhere stays,
            and `removal_asked` is emitted.
        """
        gone = next((item for item in self.project.classes if item.id == value), None)
        if gone is None:
            return
        if self.worker.state.active:
            self.say("A run goes on with these classes. Stop it first.", error=True)
            return
        elsewhere = [name for name in self.project.names if name != self.volume]

        def find() -> tuple[SliceRef, ...]:
            for name in elsewhere:
                if _painted_with(self.project.annotation(name), value):
                    raise InputError(
                        f"{gone.name} is painted in the volume {name} too; open that one and remove it there first"
                    )
            self.store.flush()
            return _painted_with(self.project.annotation(self.volume), value)

        def found(refs: tuple[SliceRef, ...]) -> None:
            if refs and becomes is None:
                self.removal_asked.emit(gone, len(refs))
            elif refs:
                self._removed[value] = gone
                self._operate(
                    lambda: self._repaint(refs, value, becomes or NOT_PAINTED),
                    f"{gone.name} is removed.",
                    turned=lambda forward: self._drop_class(value) if forward else None,
                )
            else:
                self.set_classes([item for item in self.project.classes if item.id != value])

        self.tasks.start(find, found)

    def _repaint(self, refs: Sequence[SliceRef], value: int, becomes: int) -> tuple[Change, ...]:
        def planes() -> Iterator[tuple[SliceRef, NDArray[np.uint8], None]]:
            for ref in refs:
                # one by one: slices of other axes cross, and each must see what the ones before it became
                plane = self.store.read_plane(ref)
                if (plane == value).any():
                    yield ref, np.where(plane == value, np.uint8(becomes), plane), None

        changes = self.store.change(planes())
        self._drop_class(value)
        return changes

    def _drop_class(self, value: int) -> None:
        # only once the paint is gone from the disk: what is saved with an unknown label would bring the class back
        if self.store.flush():
            self.project.set_classes([item for item in self.project.classes if item.id != value])
        self._recolored.emit()

    def _look_at_classes(self) -> None:
        """Show what another program made of the classes; called in the thread that saves."""
        if self.project.refresh():
            self._recolored.emit()

    def _add_classes(self, values: frozenset[int]) -> None:
        """Give painted values a class; called in the thread that saves."""
        self._look_at_classes()
        known = self.project.classes
        missing = sorted(values - {item.id for item in known})
        if known and missing:
            new = [self._removed.get(v) or LabelClass(id=v, name=f"class {v}", color=default_color(v)) for v in missing]
            self.project.set_classes([*known, *new])
            self._recolored.emit()

    # -- choosing slices ----------------------------------------------------------------------------------------------

    def propose(
        self,
        method: str,
        budget: int,
        axis: Literal["z", "y", "x", "all"],
        *,
        features: str = DEFAULT_FEATURES,
        seed: int = 0,
        options: SelectOptions = NO_OPTIONS,
        all_volumes: bool = False,
    ) -> None:
        """Rank slices to paint, in the background; see `rank_in_steps`.

        Slices skipped in the list are left out besides those that the options name. Without a range of its own the
        ranking keeps to that of the next run.
        """
        if self._choosing is not None:
            return
        self._choosing = Choosing()
        self._give_up_choosing.clear()
        device = settings().device
        same_axis = self.config is not None and axis == self.axis and not all_volumes
        reach_of_run = self.config.range if self.config is not None and same_axis else WHOLE
        skipped = tuple(f"{self.volume}:{ref}" for ref in sorted(self._skipped))
        options = options.model_copy(
            update={
                "range": reach_of_run if options.range == WHOLE else options.range,
                "skip": tuple(dict.fromkeys((*options.skip, *skipped))),
            }
        )
        volumes = self.project.names if all_volumes else (self.volume,)

        def work() -> Ranking | None:
            be_nice()
            self.store.flush(5)
            if method in SELECTORS and SELECTORS[method].compares:
                import_networks()
            steps = rank_in_steps(
                self.project,
                method,
                budget,
                axis,
                seed,
                volumes,
                features=features,
                device=device,
                name=SELECTION,
                options=options,
            )
            return self._watch_choosing(steps)

        # not among the short jobs, which would wait for it
        self._choice.start(work, self._ranked)
        self._soon()

    def give_up_choosing(self) -> None:
        """Stop comparing slices; the proposals stay as they were."""
        self._give_up_choosing.set()

    def _watch_choosing(self, steps: Generator[Progress | Metric, None, Ranking]) -> Ranking | None:
        """Go through the steps, in a thread, telling how far they are; return None when the user gave up."""
        told = 0.0
        with closing(steps):
            while not self._give_up_choosing.is_set():
                try:
                    step = next(steps)
                except StopIteration as end:
                    ranking: Ranking = end.value
                    return ranking
                if isinstance(step, Progress) and time.monotonic() - told > _TELL_S:
                    told = time.monotonic()
                    self._chose.emit(Choosing(step.stage, step.done, step.total))
        return None

    def _choosing_went_on(self, choosing: Choosing) -> None:
        if self._choosing is not None:
            self._choosing = choosing
            self._soon()

    def skip(self, ref: SliceRef) -> None:
        """Leave a proposal out, or take it in again."""
        self._skipped ^= {ref}
        self._soon()

    def next_proposal(self) -> None:
        """Go to the next proposed slice that is not complete."""
        rows = [row.ref for row in self.snapshot.proposals if row.state in ("proposed", "painting")]
        if not rows:
            self.say("No proposed slice is left. Choose more, or run.")
            return
        current = self.current
        after = rows[rows.index(current) + 1 :] if current in rows else []
        self.jump((after or rows)[0])

    def _ranked(self, ranking: Ranking | None) -> None:
        self._choosing = None
        if ranking is None:
            self.say("Given up; the proposals are as before.")
            return
        for note in ranking.notes:
            self.say(note)
        if len(ranking.volumes) > 1:
            counts = {name: sum(item.volume == name for item in ranking.order) for name in ranking.volumes}
            self.say("Proposed: " + ", ".join(f"{count} in {name}" for name, count in counts.items()) + ".")
        self._ranking = ranking
        order, _ = self._proposed()
        if order:
            self.jump(order[0])
        self._soon()

    def _load_ranking(self) -> None:
        names = self.project.ranking_names()
        if names:
            with suppress(SliceLabelError, ValueError):
                name = SELECTION if SELECTION in names else names[-1]
                self._ranking = Ranking.model_validate(self.project.ranking(name))

    def _proposed(self) -> tuple[tuple[SliceRef, ...], tuple[float, ...]]:
        if self._ranking is None:
            return (), ()
        items = [item for item in self._ranking.order if item.volume == self.volume]
        whole = len(items) == len(self._ranking.order)
        return tuple(SliceRef(item.axis, item.index) for item in items), self._ranking.coverage if whole else ()

    # -- painting -----------------------------------------------------------------------------------------------------

    def toggle_complete(self) -> None:
        """Declare the slice on the canvas complete, or take that back."""
        ref = self.current
        if ref is None:
            self.say("Show one slice in 2D first.")
            return
        complete = ref.index not in self.store.complete(ref.axis)
        self._history.mark(ref, complete)
        self._took_edits(())
        if not complete:
            self.say(f"{ref}: no longer complete.")
        elif self.store.is_blank(ref):
            self.say(f"{ref}: complete, all of it is background: nothing is painted there. Undo takes it back.")
        else:
            self.say(f"{ref}: complete, what is unpainted is background.")

    def copy_previous(self) -> None:
        """Copy the nearest annotated slice before this one (or else behind it) to where nothing is settled here."""
        ref = self.current
        if ref is None:
            return
        others = sorted((self.store.painted(ref.axis) | self.store.complete(ref.axis)) - {ref.index})
        before = [index for index in others if index < ref.index]
        source = before[-1] if before else (others[0] if others else None)
        if source is None:
            self.say("No other slice is painted yet.")
            return

        def work() -> tuple[Change, ...]:
            copied = self.store.read_plane(SliceRef(ref.axis, source))
            return self.store.change(self._merged({ref: copied}))

        self._operate(work, f"Copied {ref.axis}{source} to {ref}. Correct it, then mark it complete (D).")

    def preview_shapes(self) -> None:
        """Show the shapes between the annotated slices around this one; called again: put them in."""
        if self._preview:
            self.apply_preview()
            return
        ref = self.current
        if ref is None:
            return
        annotated = sorted(self.store.painted(ref.axis) | self.store.complete(ref.axis))
        record = self.project.record(self.volume)

        def work() -> dict[SliceRef, NDArray[np.uint8]]:
            return between(self.store, ref, annotated, record.voxel_size)

        self.tasks.start(work, self._previewed)

    def apply_preview(self) -> None:
        """Put the previewed shapes into the annotation, where nothing is settled; can be undone."""
        planes = dict(self._preview)
        if not planes:
            return

        self._operate(
            lambda: self.store.change(self._merged(planes)),
            f"Put shapes into {len(planes)} slices.",
        )
        self.discard_preview()

    def _merged(
        self, planes: Mapping[SliceRef, NDArray[np.uint8]], *, complete: bool | None = None
    ) -> Iterator[tuple[SliceRef, NDArray[np.uint8], bool | None]]:
        """Yield planes as the store takes them, with these values where no human settled anything."""
        for ref, values in planes.items():
            yield ref, np.where(self.store.known(ref), self.store.read_plane(ref), values), complete

    def discard_preview(self) -> None:
        """Show the labels of the run again."""
        if not self._preview:
            return
        self._preview = {}
        self._results["prediction"].preview({})
        self._dress_preview()
        self._refresh("prediction")
        self._soon()

    def _dress_preview(self) -> None:
        """Make a preview look like one: outlines, words on the canvas, and keys of its own."""
        if self.prediction is not None:
            self.prediction.contour = _PREVIEW_CONTOUR if self._preview else self._contour
        if self.labels is not None:
            for key, name in PREVIEW_KEYS:
                self.labels.bind_key(key, _calling(self, name) if self._preview else None, overwrite=True)
        self._write_on_canvas()

    def _write_on_canvas(self) -> None:
        viewer, text = self._viewer(), ""
        if self._preview:
            span = f"{min(self._preview)} to {max(self._preview)}"
            text = f"Preview of {span}, not labels yet\nEnter puts it in, Esc discards it"
        elif self._shelf.compared:
            text = "Differences between two runs alone\nGrey: background in the one shown"
        if viewer is not None and text != self._on_canvas:
            self._on_canvas = text
            show.say_on_canvas(viewer, text)

    def _previewed(self, planes: dict[SliceRef, NDArray[np.uint8]]) -> None:
        if not planes:
            self.say("Paint a slice on both sides of this one first.")
            return
        self._show_prediction()
        if not self._preview:
            self._contour = self.prediction.contour
        self._preview = planes
        self._results["prediction"].preview(planes)
        self._dress_preview()
        self.prediction.visible = True
        self._refresh("prediction")
        self.say(f"Preview of {len(planes)} slices: S or Enter puts them in, Esc discards them.")
        self._soon()

    def undo(self) -> None:
        """Take the last stroke or operation back, and show the slice that it changed."""
        if not self._history.undo():
            self.say("Nothing to undo.")

    def redo(self) -> None:
        """Do what was undone again, and show the slice that it changes."""
        if not self._history.redo():
            self.say("Nothing to redo.")

    def _stepped(self, refs: Sequence[SliceRef], forward: bool) -> None:
        self._save_reviews()
        self._took_edits(refs)
        if refs and self.current not in refs:
            self.jump(refs[-1])
        self._refresh("labels")
        places = ", ".join(map(str, refs[:3])) + (" ..." if len(refs) > 3 else "")
        self.say(f"{'Redone' if forward else 'Undone'} in {places}." if refs else "Nothing changed.")

    def _painted(self, _event: object) -> None:
        self._took_edits(self._history.stroke())

    def _operate(
        self, work: Callable[[], tuple[Change, ...]], message: str, turned: Callable[[bool], None] | None = None
    ) -> None:
        """Change planes in the background, so that it can be undone."""

        def done(changes: tuple[Change, ...]) -> None:
            self._save_reviews()
            self._took_edits([change.ref for change in changes])
            self._refresh("labels")
            self.say(message)

        self._history.operate(work, done, turned)

    def _operation_failed(self, error: Exception) -> None:
        self.say(" ".join(str(error).split()) or type(error).__name__, error=True)

    def _took_edits(self, refs: Sequence[SliceRef]) -> None:
        axis = self._edits_axis
        self._edited |= {ref.index for ref in refs if ref.axis == axis}
        self._soon()

    @property
    def _edits_axis(self) -> Axis | None:
        """The axis of the run that goes on, or else of what is shown."""
        live = self._shelf.find(self._live)
        if live is not None:
            return live.record.axis
        return self._book.axis if self._book is not None else None

    # -- runs ---------------------------------------------------------------------------------------------------------

    def start_run(self) -> None:
        """Save what is painted, then run the config."""
        config, size = self.config, self._plan
        if config is None or self.worker.state.active:
            return
        if size.problem:
            self.say(size.problem, error=True)
            return

        def go(saved: bool) -> None:
            if not saved:
                self.say(f"The run was not started: {self.store.save_state.error or 'saving takes long'}", error=True)
                return
            self._run_classes = self.project.classes
            # napari takes a tenth of a second for each layer: rather before the run than while somebody watches it
            self._show_prediction()
            QTimer.singleShot(_SETTLE_MS, lambda: self._begin_run(config, size))

        self.tasks.start(self.store.flush, go)

    def _begin_run(self, config: MethodConfig, size: RunPlan) -> None:
        if not self.closed:
            self._show_confidence()
            self.worker.start(config, work=size.work)

    def resume_run(self, run_id: str) -> None:
        """Go on with a run that was stopped or killed."""
        if self.worker.state.active:
            return
        self._run_classes = self.project.classes
        self.tasks.start(self.store.flush, lambda _: self.worker.start(None, resume=run_id))

    def show_run(self, run_id: str) -> None:
        """Show the labels of one run alone; of an empty id, of every slice the newest ones."""
        if run_id and self._shelf.find(run_id) is None:
            self._read_runs(then=lambda: self.show_run(run_id) if self._shelf.find(run_id) else None)
            return
        self._shelf.alone, self._shelf.compared = run_id, ""
        self._show_labels_of_runs()

    def compare_run(self, run_id: str) -> None:
        """Show where the labels of a run differ from those shown; of an empty id, the labels again."""
        self._shelf.compared = run_id
        self._show_labels_of_runs()

    def delete_run(self, run_id: str) -> None:
        """Remove a run from the disk; what was painted stays."""
        if self.worker.state.active:
            self.say("A run goes on. Stop it first.", error=True)
            return
        self._shelf.drop(run_id)
        self._show_labels_of_runs(again=False)

        def done(error: str) -> None:
            self._read_runs()
            self.say(error or f"The run {run_id} is deleted.", error=bool(error))

        def work() -> str:
            try:
                delete_run(self.project, run_id)
            except SliceLabelError as error:
                return str(error)
            return ""

        self.tasks.start(work, done)

    def _show_labels_of_runs(self, *, again: bool = True) -> None:
        """Show what the shelf has; `again`: add layers that the user has removed, too."""
        again = again or self._book is None
        self._book = self._shelf.book()
        for role, array in self._results.items():
            array.show(self._shelf.sources(role), self._shelf.others() if role == "prediction" else ())
        if self._book is not None and again:
            self._show_prediction()
            # a layer takes napari a tenth of a second: one at a time
            QTimer.singleShot(_SETTLE_MS, self._show_confidence)
        for role in self._results:
            self._refresh(role)
        self._write_on_canvas()
        self._soon()

    def _hide_below_paint(self) -> None:
        """Draw no prediction below what a human has finished, or taken to correct: erasing would seem not to work."""
        painting = self.labels is not None and self.labels.visible and not self._shelf.compared
        hidden = {axis: self.store.complete(axis) for axis in AXES} if painting else {}
        if painting and self._book is not None:
            hidden[self._book.axis] |= self._shelf.said("corrected")
        if hidden != self._hidden:
            self._hidden = hidden
            self._results["prediction"].hide(hidden)
            self._refresh("prediction")

    def _run_changed(self) -> None:
        state = self.worker.state
        if state.run_id and state.run_id != self._live and state.phase == "running":
            with suppress(SliceLabelError):
                run = read_run(self.project, state.run_id, self.volume)
                self._live = state.run_id
                self._edited.clear()
                run.resumed = now() if run.written.any() else ""
                self._shelf.begin(run)
                if run.resumed:
                    self.tasks.start(run.save_review)
                self._show_labels_of_runs()
                self._read_runs()
        self._take_corrections(state)
        self._soon()

    def _take_corrections(self, state: RunState) -> None:
        """Begin the next round anew where something was painted since: a resumed run reads the annotation again."""
        learned = state.stage.endswith(": learn")
        if learned:
            self._trained = state.stage
        elif self._trained and state.stage.startswith("round ") and state.phase == "running":
            self._trained = ""
            if self._edited and self.project.classes != self._run_classes:
                # a network has the classes that it began with
                self.say("There are new classes: what you painted is taken into the next run.")
            elif self._edited:
                self._again = state.run_id
                self.say("What you painted is taken into the next round.")
                self.worker.stop()

    def _slices_done(self, events: list[SliceDone]) -> None:
        mine = [event for event in events if event.volume == self.volume]
        if not mine or not self._live:
            return
        if self._shelf.wrote(self._live, mine):
            self._show_labels_of_runs(again=False)
            return
        if self._book is None or self._shelf.alone not in ("", self._live):
            return
        for event in mine:
            self._book.put(event.index, event.confidence, event.provenance)
        indices = [event.index for event in mine]
        current = self.current
        for role, array in self._results.items():
            array.changed(indices)
            if current is not None and (current.axis != self._book.axis or current.index in indices):
                self._refresh(role)

    def _run_ended(self, state: RunState) -> None:
        again, self._again = self._again, ""
        if again and state.phase == "stopped":
            live = self._shelf.find(self._live)
            if live is not None:
                with suppress(SliceLabelError):
                    live.annotated = self.store.painted(live.record.axis) | self.store.complete(live.record.axis)
                self._show_labels_of_runs(again=False)
            self._edited.clear()
            self.worker.start(None, resume=again)
            return
        self._live = ""
        self._read_runs()
        if state.phase == "failed":
            self.said.emit(state.error, True)
        elif state.phase in ("stopped", "cancelled"):
            self.say(f"The run was {state.phase}; {state.written} slices are kept, and it can go on later.")
        elif state.phase == "finished":
            self.say("The run is finished. Review the doubtful slices, or export.")
        self._soon()

    def _read_runs(self, then: Callable[[], None] = lambda: None) -> None:
        def done(read: tuple[list[ShelfRun], tuple[RunFacts, ...]]) -> None:
            runs, self._runs = read
            before = [(run.run_id, run.record.outcome) for run in self._shelf.shown]
            self._shelf.take(runs, self._live)
            if before != [(run.run_id, run.record.outcome) for run in self._shelf.shown] and not self._live:
                self._show_labels_of_runs(again=False)
            then()
            self._soon()

        self.tasks.start(lambda: read_runs(self.project, self.volume), done)

    # -- review -------------------------------------------------------------------------------------------------------

    def next_review(self) -> None:
        """Go to the next doubtful slice."""
        self._review(1)

    def previous_review(self) -> None:
        """Go back to the doubtful slice before."""
        self._review(-1)

    def accept(self) -> None:
        """Copy the prediction of this slice to where no human settled anything, and count the slice as complete."""
        self._take_prediction(complete=True)

    def correct(self) -> None:
        """Copy the prediction of this slice to where no human settled anything, to be painted over."""
        self._take_prediction(complete=False)

    def _take_prediction(self, *, complete: bool) -> None:
        ref, book = self.current, self._book
        if ref is None or book is None or ref.axis != book.axis or not np.isfinite(book.scores.confidence[ref.index]):
            self.say("No prediction in this slice.")
            return

        def work() -> tuple[Change, ...]:
            predicted = self._results["prediction"].read_plane(ref)
            return self.store.change(self._merged({ref: predicted}, complete=True if complete else None))

        run = self._shelf.review(ref.index)
        if run is None:
            return
        was_flagged = ref.index in run.flagged

        def decide(is_taken: bool) -> None:
            run.decide(ref.index, "accepted" if complete else "corrected", is_taken)
            if complete and was_flagged:
                run.decide(ref.index, "flagged", not is_taken)

        def work_and_decide() -> tuple[Change, ...]:
            changes = work()
            decide(True)
            return changes

        words = (
            f"Accepted {ref}. It counts as painted by you; undo takes it back."
            if complete
            else f"The prediction of {ref} is yours to correct. Then mark it complete (D)."
        )
        self._operate(work_and_decide, words, turned=decide)

    def flag(self) -> None:
        """Keep this slice in the queue for later, or take the flag away."""
        ref, book = self.current, self._book
        run = self._shelf.review(ref.index) if ref is not None and book is not None and ref.axis == book.axis else None
        if ref is None or run is None:
            self.say("No prediction in this slice.")
            return
        run.decide(ref.index, "flagged", ref.index not in run.flagged)
        run.decide(ref.index, "accepted", False)
        self._save_reviews()
        self.say(f"{ref} is flagged for later." if ref.index in run.flagged else f"{ref} is no longer flagged.")
        self._soon()

    def _save_reviews(self) -> None:
        for run in self._shelf.runs:
            if run.is_unsaved:
                run.is_unsaved = False
                self.tasks.start(run.save_review)

    def _accepted(self) -> frozenset[int]:
        """Return the slices that were accepted and are still complete: undo takes that back, too."""
        return self._shelf.said("accepted") & self.store.complete(self._book.axis) if self._book else frozenset()

    def _review(self, step: int) -> None:
        queue, book, current = self.snapshot.queue, self._book, self.current
        if not queue or book is None:
            self.say("No slice is left to review.")
            return
        order = [row.index for row in queue]
        # from where the queue led; wherever else the user looks, the most worthwhile slice is next
        is_in_queue = current is not None and current == self._reviewed and current.index in order
        place = order.index(current.index) + step if is_in_queue and current is not None else 0
        self._reviewed = SliceRef(book.axis, order[place % len(order)])
        self.jump(self._reviewed)

    def export_labels(self, to: str | Path, *, overwrite: bool = False, run_id: str = "") -> None:
        """Write the labels of a run to a file, in the background; see `export_choice` for which one by default."""
        chosen = by_id(self._runs).get(run_id) or export_choice(self._runs, self._shelf.alone)
        if chosen is None:
            self.say("There are no labels yet: run first.", error=True)
            return

        def work() -> tuple[Path, ...]:
            return export(self.project, chosen.run_id, to, volume=self.volume, overwrite=overwrite)

        def done(files: tuple[Path, ...]) -> None:
            self.say(f"Exported {label_of(chosen)} to {files[0].name} in {files[0].parent}.")

        self.tasks.start(work, done)

    # -- the end ------------------------------------------------------------------------------------------------------

    def say(self, text: str, *, error: bool = False) -> None:
        """Tell the user something."""
        self.said.emit(text, error)
        self._soon()

    def _task_failed(self, line: str, whole: str) -> None:
        self.said.emit(line, True)
        self._soon()

    def _choice_failed(self, line: str, whole: str) -> None:
        self._choosing = None
        self._task_failed(line, whole)

    def put_image_away(self) -> None:
        """Make room for another volume: the image that we added goes, the user's own is hidden."""
        viewer = self._viewer()
        if viewer is None or self.image is None or self.image not in viewer.layers:
            return
        if self._is_own_image:
            viewer.layers.remove(self.image)
        else:
            self.image.visible = False

    def close(self) -> None:
        """Stop the run, save what is painted, and end all threads."""
        if self.closed:
            return
        self.closed = True
        self._settle.stop()
        self._forget_viewer()
        self.worker.finish()
        self.give_up_choosing()
        self._choice.close()
        self.tasks.close()
        self.store.close()
        for array in self._results.values():
            array.close()

    def _forget_viewer(self) -> None:
        viewer = self._viewer()
        if viewer is None:
            return
        if self._on_canvas:
            show.say_on_canvas(viewer, "")
        viewer.layers.events.removing.disconnect(self._layer_going)
        viewer.layers.events.removed.disconnect(self._layer_removed)
        for name in ("current_step", "order", "ndisplay"):
            getattr(viewer.dims.events, name).disconnect(self._view_moved)
        if self.labels is not None:
            self.labels.events.paint.disconnect(self._painted)
            self.labels.events.selected_label.disconnect(self._soon)
            self.labels.events.visible.disconnect(self._soon)
            for key, _ in (*KEYS, *(PREVIEW_KEYS if self._preview else ())):
                self.labels.bind_key(key, None)


def _painted_with(annotation: Annotation, value: int) -> tuple[SliceRef, ...]:
    """Return the slices, along all axes, that hold a label."""
    return tuple(
        SliceRef(axis, index)
        for axis in AXES
        for index in annotation.painted(axis)
        if (annotation.read_slice(SliceRef(axis, index)) == value).any()
    )


def _calling(session: Session, name: str) -> Callable[[Any], None]:
    def call(_layer: Any) -> None:
        if not session.closed:
            getattr(session, name)()

    call.__name__ = name
    call.__doc__ = getattr(Session, name).__doc__
    return call


def open_session(viewer: Callable[[], Any], project: Project, volume: str = "", image: Any = None) -> Session:
    """Begin to label a volume of a project.

    Raises
    ------
    InputError
        No such volume.
    MissingFileError
        Its image is not there.
    """
    name = volume or project.names[0]
    if name not in project.names:
        raise InputError(f"volume {name!r}: this project has {', '.join(project.names)}")
    project.volume(name)
    return Session(viewer, project, name, image)
