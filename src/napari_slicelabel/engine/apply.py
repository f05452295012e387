"""A finished model on another volume, out of core: in this process, or on the workers of a dask cluster."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from napari_slicelabel.data.boxes import Box
from napari_slicelabel.data.files import remove, storage_errors, sweep
from napari_slicelabel.data.formats import WRITERS, suffix_of, write_labels
from napari_slicelabel.engine.apply_job import LOCK_NAME, Job, JobRecord, Labeller, label_part
from napari_slicelabel.engine.cluster import connected, results
from napari_slicelabel.engine.devices import resolve_device
from napari_slicelabel.engine.events import Event, Progress
from napari_slicelabel.engine.networks import load_model
from napari_slicelabel.engine.record import run_lock
from napari_slicelabel.errors import BusyError, InputError

if TYPE_CHECKING:
    import torch

    from napari_slicelabel.data.volume import Volume
    from napari_slicelabel.engine.apply_job import Network


def apply(
    model: str | Path,
    volume: "Volume",
    out: str | Path,
    *,
    device: str = "auto",
    scheduler: str | None = None,
) -> Iterator[Event]:
    """Label a volume with the model of a finished run and write the labels to a file.

    Parameters
    ----------
    model : str or Path
        The folder ``model`` of a run.
    volume : Volume
        The image, with as many channels as those of the run.
    out : str or Path
        A file whose ending names the format; see `write_labels`. What is there is replaced.
    device : {"auto", "cpu", "cuda"}
        Where the network runs; with a scheduler, what each worker resolves for itself.
    scheduler : str, optional
        Address of a dask scheduler (``tcp://host:8786``) whose workers do the work, or ``local:N`` for N processes of
        this machine that are started for it. Model, image and `out` must have the same path for all of them.

    Yields
    ------
    Event
        A `Progress` for each slice; with a scheduler, for each part.

    Raises
    ------
    MissingFileError
        No model in the folder.
    InputError
        A damaged model, another number of channels, an unknown ending, a constant image; with a scheduler an image
        that is in no file.
    DeviceError
        No GPU, or its memory is full; no scheduler there, or its workers die.
    BusyError
        Another process writes the same file.
    StorageError
        Disk full, no permission.

    Notes
    -----
    Slices lie along the axis that the model was trained on. They go to a zarr in a folder beside `out`, from which the
    file is written at the end; memory holds one row of tiles (as many planes as a tile is deep for a 3D network). The
    folder notes which parts are done. When this ends early, whatever the reason, it stays, and the next call with the
    same model, image and `out` goes on, with a scheduler or without. Labels are the same either way.

    A script that uses ``local:N`` must be guarded by ``if __name__ == "__main__":``, as always where Python starts
    processes.
    """
    target = Path(out).expanduser().absolute()
    if suffix_of(target, list(WRITERS)) is None:
        raise InputError(f"{target}: labels are written to {', '.join(WRITERS)}; choose one of these endings")
    network, description = load_model(Path(model))
    if volume.channels != network.config.image_channels:
        raise InputError(
            f"{volume.source} has {volume.channels} channels, the model was trained on {network.config.image_channels};"
            " give an image with the same channels"
        )
    if scheduler is not None and not volume.source:
        raise InputError(f"volume {volume.name!r} is in no file, and workers read it from there; save it first")
    # the cluster looks for its own
    where = resolve_device(device) if scheduler is None else None
    record = JobRecord.of(Path(model), network, description, volume)
    with _folder(target, record, volume) as (job, anew):
        if anew:
            yield Progress("apply", 0, len(job.boxes), "begins anew: what was done is of another model or image")
        if where is not None:
            yield from _here(job, network, volume, where)
        else:
            yield from _on_cluster(job, volume.name, str(scheduler), device)
        write_labels(
            target,
            job.store.lazy(),
            voxel_size=volume.voxel_size,
            unit=volume.unit,
            classes=record.classes,
            image=_affine(volume, target),
        )


@contextmanager
def _folder(target: Path, record: JobRecord, volume: "Volume") -> Iterator[tuple[Job, bool]]:
    """Hold the folder of a job beside a file; it stays when the block fails after something was done."""
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is no folder; create it first")
    folder = _folder_of(target)
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
    keep = True
    try:
        with run_lock(folder / LOCK_NAME):
            job, anew = Job.begin(folder, record, volume)
            try:
                yield job, anew
                keep = False
            finally:
                keep = keep and record.resumable and len(job.pending()) < len(job.boxes)
    finally:
        if not keep:
            remove(folder)


def sweep_finished(target: Path) -> None:
    """Remove the folder of a job beside a file that it has written, if it was killed before it could."""
    folder = _folder_of(target)
    marks = folder / "done"
    with suppress(OSError, BusyError):
        if marks.is_dir() and target.stat().st_mtime_ns >= marks.stat().st_mtime_ns:
            with run_lock(folder / LOCK_NAME):
                pass
            remove(folder)
    sweep(target.parent)


def _folder_of(target: Path) -> Path:
    return target.parent / f".{target.name}.apply"


def _here(job: Job, network: "Network", volume: "Volume", device: "torch.device") -> Iterator[Progress]:
    """Do what is left in this process, whole planes at a time: no tile is predicted twice."""
    axis = job.record.axis
    depth = volume.depth(axis)
    network.to(device)
    box = Box.whole((depth, *volume.plane_shape(axis)))
    pending = set(job.pending())
    with closing(Labeller(network, volume, axis, device, box, job.folder / "sums.part.zarr")) as labeller:
        for (first, end), numbers in _slabs(job).items():
            if pending.isdisjoint(numbers):
                continue
            for index in range(first, end):
                name = f"{volume.name} {axis}{index}"
                for done, total in labeller.prepare(index):
                    yield Progress("apply", index, depth, f"{name}, tile {done} of {total}")
                job.store.write(index, labeller.labels(index))
                yield Progress("apply", index + 1, depth, name)
            for number in numbers:
                job.mark(number)


def _slabs(job: Job) -> Mapping[tuple[int, int], list[int]]:
    """Return the numbers of the parts of each run of planes."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, box in enumerate(job.boxes):
        found.setdefault((box.start[0], box.stop[0]), []).append(number)
    return found


def _on_cluster(job: Job, name: str, scheduler: str, device: str) -> Iterator[Progress]:
    """Let the workers of a cluster do what is left."""
    pending, total = job.pending(), len(job.boxes)
    if not pending:
        return
    tasks = [(str(job.folder), job.record.token, number, device) for number in pending]
    done = total - len(tasks)
    yield Progress("apply", done, total, f"{name}, asking {scheduler} for workers")
    with connected(scheduler) as client, closing(results(client, label_part, tasks)) as found:
        for workers, finished in found:
            done += finished
            busy = f"{workers} worker{'s' * (workers != 1)}" if workers else "waiting for workers"
            yield Progress("apply", done, total, f"{name}, {busy}")


def _affine(volume: "Volume", target: Path) -> "Volume | None":
    # NIfTI needs the image for its place in the body; an OME-Zarr would get a copy of all its voxels
    return volume if suffix_of(target, [".nii", ".nii.gz"]) else None
