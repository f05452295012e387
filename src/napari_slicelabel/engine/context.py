"""All that a method may touch: `RunContext`."""

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from napari_slicelabel.data.boxes import AXES, Axis, Box, SliceRef
from napari_slicelabel.data.files import write_text
from napari_slicelabel.engine.config import MethodConfig
from napari_slicelabel.engine.earlier import EarlierRun, earlier_run
from napari_slicelabel.engine.events import SliceDone
from napari_slicelabel.engine.model_files import save_model
from napari_slicelabel.engine.pieces import Piece
from napari_slicelabel.engine.record import JOURNAL_NAME, RunRecord, read_events
from napari_slicelabel.engine.state import (
    RANDOM,
    load_state,
    random_state,
    restore_random_state,
    save_state,
)
from napari_slicelabel.engine.stores import SliceStore
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from napari_slicelabel.data.annotation import Annotation
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.volume import Volume

REVIEW_BELOW = 0.8
"""A predicted slice whose expected Dice is lower needs review: below it, correcting takes about as long as painting."""

HUMAN = "human"
"""Provenance of a slice in which a human settled every voxel."""

IGNORE = 255
"""In accepted pseudo-labels: a voxel that no loss looks at."""

SLICES_NAME = "slices.csv"
_COLUMNS = ("volume", "axis", "index", "confidence", "provenance", "needs_review")


@dataclass(frozen=True, order=True, slots=True)
class Slot:
    """A slice of a volume of the project, along the axis of the run."""

    volume: str
    index: int


def fill_state(filled: Iterable[Slot], digest: str) -> dict[str, JsonValue]:
    """Return what a method keeps of its last stage: the slices that are filled, and the annotation they follow from."""
    return {"filled": [asdict(slot) for slot in sorted(filled)], "annotation": digest}


def filled_before(extra: Mapping[str, JsonValue], digest: str) -> tuple[Slot, ...]:
    """Return what need not be filled again: nothing, once something was painted that speaks for its neighbours."""
    kept = extra.get("filled")
    if not isinstance(kept, list) or extra.get("annotation") != digest:
        return ()
    return tuple(Slot(**slot) for slot in kept if isinstance(slot, dict))  # type: ignore[arg-type]


class RunContext:
    """What a method gets: the data it may read, and the only way to write.

    Parameters
    ----------
    project : Project
        Volumes, classes and the annotation, which a run never writes.
    config : MethodConfig
        The run's config.
    folder : Path
        The run's folder.
    record : RunRecord
        Axis and spans, resolved.
    device : torch.device
        Where networks run.
    stop : callable
        Returns True once the user wants what there is. A method asks it between units of work.
    done : iterable of SliceDone
        Slices that an earlier part of this run wrote.
    in_view : callable
        Returns volume and slice that somebody looks at, or None.

    Attributes
    ----------
    rng : numpy.random.Generator
        Seeded; its state is saved and restored together with the method's own.
    volumes : tuple of str
        The volumes to fill.
    axis : {"z", "y", "x"}
        The slices of the run are perpendicular to it.
    """

    def __init__(
        self,
        project: "Project",
        config: MethodConfig,
        folder: Path,
        record: RunRecord,
        device: torch.device,
        stop: Callable[[], bool],
        done: "Iterable[SliceDone]" = (),
        in_view: Callable[[], tuple[str, SliceRef] | None] = lambda: None,
    ) -> None:
        self.project = project
        self.config = config
        self.folder = folder
        self.device = device
        self.stop = stop
        self.rng = np.random.default_rng(config.seed)
        self.volumes = tuple(record.spans)
        self.axis: Axis = record.axis
        self._in_view = in_view
        self._record = record
        self._rows = {(event.volume, event.index): event for event in done}
        self._stores: dict[tuple[Path, str, str], SliceStore] = {}
        self._pieces: dict[str, tuple[Piece, ...]] = {}

    @cached_property
    def class_ids(self) -> tuple[int, ...]:
        """Label values of the classes: the project's, or those that were painted when it declares none."""
        declared = tuple(label_class.id for label_class in self.project.classes)
        return declared or self._painted_ids()

    def need_annotated(self, purpose: str) -> None:
        """Refuse volumes without an annotated slice, for a method that goes from slice to slice.

        Raises
        ------
        InputError
            Names the first one; `purpose` says what the slice is wanted for.
        """
        for name in self.volumes:
            if not self.annotated(name):
                raise InputError(
                    f"volume {name} has no annotated slice along {self.axis} to {purpose}; paint one, or"
                    " leave the volume out with volumes=..."
                )

    def need_classes(self) -> None:
        """Refuse an annotation of nothing but background.

        Raises
        ------
        InputError
            No class is painted.
        """
        if not self.class_ids:
            raise InputError("no class is painted anywhere, only background; paint the objects of at least one slice")

    def image_channels(self) -> int:
        """Return how many channels the images have.

        Raises
        ------
        InputError
            Not all have the same number.
        """
        channels = {self.volume(name).channels for name in self.volumes}
        if len(channels) > 1:
            raise InputError(f"the volumes have {sorted(channels)} channels; one network needs the same number in all")
        return channels.pop()

    def slices(self, volume: str) -> tuple[int, ...]:
        """Return the slices of `volume` to fill, sorted."""
        return self._record.slices(volume)

    def pieces(self, volume: str) -> tuple[Piece, ...]:
        """Return the pieces that the stop slices leave of `volume`; none where it has no annotated slice."""
        if volume not in self._pieces:
            self._pieces[volume] = self._record.pieces(volume)
        return self._pieces[volume]

    def piece(self, volume: str, index: int) -> Piece | None:
        """Return the piece that a slice lies in; None where it is reached from no annotated slice."""
        return next((piece for piece in self.pieces(volume) if index in piece.slices), None)

    def in_view_first(self, slots: "Iterable[Slot]") -> "Iterator[Slot]":
        """Yield slices in their order, but whichever somebody looks at next.

        Parameters
        ----------
        slots : iterable of Slot
            Each once.

        Yields
        ------
        Slot
            All of them.
        """
        order = list(slots)
        left = set(order)
        for slot in order:
            while slot in left:
                watched = self._in_view()
                looked_at = Slot(watched[0], watched[1].index) if watched and watched[1].axis == self.axis else slot
                chosen = looked_at if looked_at in left else slot
                left.discard(chosen)
                yield chosen

    def annotated(self, volume: str) -> tuple[int, ...]:
        """Return the slices inside the span that a human painted or completed, sorted, as they were at the start."""
        return self._record.annotated[volume]

    def earlier(self) -> EarlierRun | None:
        """Return the newest finished run that was asked for the same; see `earlier_run`."""
        return earlier_run(self.project, self._record)

    def done(self, volume: str) -> frozenset[int]:
        """Return the slices of `volume` that are written, by this part of the run or by one before a resume."""
        return frozenset(index for name, index in self._rows if name == volume)

    def volume(self, name: str) -> "Volume":
        """Return a volume of the project."""
        return self.project.volume(name)

    def annotation(self, name: str) -> "Annotation":
        """Return the annotation of a volume. For reading."""
        return self.project.annotation(name)

    def annotation_digest(self) -> str:
        """Return a text that changes whenever anything is painted or completed in the run's volumes, along any axis.

        A resume whose digest is another one cannot trust the slices that were written before.
        """
        digest = hashlib.sha256()
        for name in self.volumes:
            annotation = self.annotation(name)
            for axis in AXES:
                complete = annotation.complete(axis)
                for index in annotation.annotated(axis):
                    digest.update(f"{name} {axis}{index} {index in complete}".encode())
                    digest.update(annotation.read_slice(SliceRef(axis, index)).tobytes())
        return digest.hexdigest()

    def write_slice(
        self,
        volume: str,
        index: int,
        labels: "NDArray[np.uint8]",
        confidence: "NDArray[np.uint8]",
        *,
        provenance: str,
        score: float,
    ) -> SliceDone:
        """Put a predicted slice on disk and return the event to yield.

        Parameters
        ----------
        volume : str
            Name of the volume.
        index : int
            Position along the run's axis.
        labels : ndarray of shape (h, w), uint8
            0 = background, 1 to 254 = class. Not changed.
        confidence : ndarray of shape (h, w), uint8
            Probability that the label is right, times 255. Not changed.
        provenance : str
            Where the labels come from: ``round 3``, or the method's name.
        score : float
            Expected Dice of the slice, 0 to 1.

        Returns
        -------
        SliceDone
            The method yields it; only then the journal knows of the slice.

        Raises
        ------
        StorageError
            Disk full, no permission.

        Notes
        -----
        What a human settled is pasted over the labels first, with confidence 255. Where that is the whole slice, its
        provenance becomes ``human`` and its score 1.
        """
        supervision = self.annotation(volume).supervision(SliceRef(self.axis, index))
        self._store("prediction", volume).write(index, np.where(supervision.known, supervision.target, labels))
        self._store("confidence", volume).write(index, np.where(supervision.known, np.uint8(255), confidence))
        if supervision.known.all():
            provenance, score = HUMAN, 1.0
        event = SliceDone(volume, self.axis, index, float(score), provenance)
        self._rows[volume, index] = event
        return event

    def take_slice(self, earlier: "EarlierRun", volume: str, index: int) -> SliceDone:
        """Put a slice on disk as an earlier run left it, and return the event to yield; see `write_slice`.

        The annotation that it is pasted over with must be the same.

        Raises
        ------
        StorageError
            Disk full, no permission, or the earlier run is damaged.
        """
        for kind in ("prediction", "confidence"):
            self._store(kind, volume).take(self._store(kind, volume, earlier.folder), index)
        event = earlier.rows[volume, index]
        self._rows[volume, index] = event
        return event

    def read_prediction(self, volume: str, index: int) -> "NDArray[np.uint8]":
        """Return the labels written to a slice, shape (h, w); 0 where nothing was written."""
        return self._store("prediction", volume).read(index)

    def read_confidence(self, volume: str, index: int) -> "NDArray[np.uint8]":
        """Return the confidence written to a slice, shape (h, w); 0 where nothing was written."""
        return self._store("confidence", volume).read(index)

    def write_accepted(self, volume: str, index: int, target: "NDArray[np.uint8]") -> None:
        """Keep the pseudo-labels of a slice, shape (h, w), 255 = ignore, so that a killed run can go on with them.

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        self._store("accepted", volume).write(index, target)

    def read_accepted(self, volume: str, index: int) -> "NDArray[np.uint8]":
        """Return the pseudo-labels of a slice, shape (h, w); 255 = ignore, also where nothing was written."""
        return self._store("accepted", volume).read(index)

    def read_accepted_box(self, volume: str, box: Box) -> "NDArray[np.uint8]":
        """Return the pseudo-labels of a box (z, y, x); 255 = ignore, also where nothing was written."""
        return self._store("accepted", volume).read_box(box)

    def save_state(self, tensors: Mapping[str, Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Replace the state that a resume starts from, and bring slices.csv up to date.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Weights and such. Names must not begin with ``random.``.
        extra : mapping
            Anything else; JSON.

        Raises
        ------
        StorageError
            Disk full. The old state is then unchanged.

        Notes
        -----
        The state of `rng` and of torch's generators goes along by itself. A kill at any moment leaves the old state or
        the new one.
        """
        generators, state = random_state(self.rng)
        everything = {**tensors, **{RANDOM + name: tensor for name, tensor in generators.items()}}
        save_state(self.folder / "state", everything, {"method": dict(extra), "rng": state})
        self.save_slices()

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, JsonValue]] | None:
        """Return what `save_state` got last and set the generators back to that moment; None when there is none.

        Returns
        -------
        tuple of (dict of str to Tensor, dict), or None
            Tensors on the CPU, and the extra values.

        Raises
        ------
        StorageError
            The state is damaged.
        """
        loaded = load_state(self.folder / "state")
        if loaded is None:
            return None
        tensors, extra = loaded
        generators = {name.removeprefix(RANDOM): t for name, t in tensors.items() if name.startswith(RANDOM)}
        method, state = extra["method"], extra["rng"]
        assert isinstance(method, dict)
        assert isinstance(state, dict)
        restore_random_state(self.rng, generators, state)
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(RANDOM)}, method

    def save_model(self, tensors: Mapping[str, Tensor], description: Mapping[str, JsonValue]) -> None:
        """Replace the model that `apply` takes to another volume.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Weights, to ``model/weights.safetensors``.
        description : mapping
            Architecture, normalisation, classes and temperature, to ``model/network.json``.

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        save_model(self.folder / "model", tensors, description)

    def rows(self) -> tuple[SliceDone, ...]:
        """Return the slices written so far, by volume in the order of the run, then by index."""
        order = {name: number for number, name in enumerate(self.volumes)}
        return tuple(sorted(self._rows.values(), key=lambda row: (order[row.volume], row.index)))

    def save_slices(self) -> None:
        """Replace slices.csv in one step.

        Raises
        ------
        StorageError
            Disk full, no permission.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row in self.rows():
            review = "yes" if needs_review(row) else "no"
            writer.writerow((row.volume, row.axis, row.index, f"{row.confidence:.6f}", row.provenance, review))
        write_text(self.folder / SLICES_NAME, text.getvalue())

    def _store(self, kind: str, volume: str, folder: Path | None = None) -> SliceStore:
        """Return an array of this run, or of the one in `folder`."""
        key = (folder or self.folder, kind, volume)
        if key not in self._stores:
            self._stores[key] = run_store(self.project, key[0], kind, volume, self.axis)
        return self._stores[key]

    def _painted_ids(self) -> tuple[int, ...]:
        found: set[int] = set()
        for name in self.volumes:
            for index in self.annotated(name):
                found |= set(np.unique(self.annotation(name).supervision(SliceRef(self.axis, index)).target).tolist())
        return tuple(sorted(found - {0}))


def run_store(project: "Project", folder: Path, kind: str, volume: str, axis: Axis) -> SliceStore:
    """Return a label array of a run.

    Parameters
    ----------
    project : Project
        The project of the run.
    folder : Path
        The run's folder.
    kind : {"prediction", "confidence", "accepted"}
        Which array.
    volume : str
        Name of the volume.
    axis : {"z", "y", "x"}
        The run's axis.

    Returns
    -------
    SliceStore
        Exists on disk once something was written.
    """
    classes = () if kind == "confidence" else project.classes
    fill = IGNORE if kind == "accepted" else 0
    path = folder / kind / f"{volume}.zarr"
    return SliceStore(path, project.volume(volume), axis, fill=fill, classes=classes)


def refuse_lost(project: "Project", record: RunRecord, volume: str) -> None:
    """Raise `StorageError` if labels or confidence of a slice that a run has written are no longer there."""
    folder = project.run_folder(record.run_id)
    written = set(record.slices(volume)) if record.outcome == "finished" else _written(folder, volume)
    for kind in ("prediction", "confidence"):
        if written:
            run_store(project, folder, kind, volume, record.axis).refuse_lost(sorted(written))


def _written(folder: Path, volume: str) -> set[int]:
    events = read_events(folder / JOURNAL_NAME)
    return {event.index for event in events if isinstance(event, SliceDone) and event.volume == volume}


def needs_review(row: SliceDone) -> bool:
    """Return whether a person should look at the slice: predicted, with an expected Dice below `REVIEW_BELOW`."""
    return row.provenance != HUMAN and row.confidence < REVIEW_BELOW
