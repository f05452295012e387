"""The labels of a run as a file that other programs open."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_slicelabel.data.formats import WRITERS, NnunetCase, suffix_of, write_labels, write_nnunet
from napari_slicelabel.engine.context import IGNORE, refuse_lost, run_store
from napari_slicelabel.engine.record import RunRecord
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project


def export(
    project: "Project",
    run_id: str,
    to: str | Path,
    *,
    volume: str | None = None,
    ignore_below: float = 0.5,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write the labels of a run: human voxels as painted, the rest as predicted.

    Parameters
    ----------
    project : Project
        The project of the run.
    run_id : str
        Which run.
    to : str or Path
        A file whose ending names the format (see `write_labels`), or a name without a known ending: a folder for
        nnU-Net. With several volumes each file gets the volume's name before its ending, ``out_left.tif``; an nnU-Net
        folder holds them all, one case each.
    volume : str, optional
        Only this one; by default all volumes of the run.
    ignore_below : float
        For nnU-Net only: voxels whose confidence is lower, 0 to 1, get its ignore label, slices that the run never
        wrote among them.
    overwrite : bool
        Whether a file that exists may be replaced. An nnU-Net folder is never replaced.

    Returns
    -------
    tuple of Path
        What was written.

    Raises
    ------
    InputError
        Unknown run or volume, nothing written yet, or a path that exists.
    MissingFileError, StorageError
        Damaged run, disk full, no permission.

    Notes
    -----
    Works block by block; no volume is ever in memory.
    """
    target = Path(to).expanduser().absolute()
    folder = project.run_folder(run_id)
    record = RunRecord.load(folder)
    if volume is not None and volume not in record.spans:
        raise InputError(f"run {run_id} has no volume {volume!r}; it has {', '.join(record.spans)}")
    names = tuple(record.spans) if volume is None else (volume,)
    for name in names:
        if not run_store(project, folder, "prediction", name, record.axis).exists:
            raise InputError(f"run {run_id} has written nothing to {name} yet ({record.outcome}); finish it first")
        refuse_lost(project, record, name)
    if suffix_of(target, list(WRITERS)) is None:
        _write_nnunet(project, record, target, names, ignore_below)
        return (target,)
    files = {name: _file_for(target, name if len(names) > 1 else "") for name in names}
    for path in files.values():
        if path.exists() and not overwrite:
            raise InputError(f"{path} already exists; choose another name, or allow it to be replaced")
    for name, path in files.items():
        _write_file(project, record, name, path)
    return tuple(files.values())


class CertainLabels:
    """The labels of a run as a lazy array (z, y, x), uint8, with 255 where their confidence is too low."""

    def __init__(self, labels: Any, confidence: Any, ignore_below: float) -> None:
        self.shape: tuple[int, ...] = tuple(labels.shape)
        self.dtype = np.dtype(np.uint8)
        self.chunks = labels.chunks
        self._labels = labels
        self._confidence = confidence
        self._lowest = round(ignore_below * 255)

    def __getitem__(self, index: Any) -> "NDArray[np.uint8]":
        """Return the part that ints and slices name."""
        labels = np.asarray(self._labels[index], np.uint8)
        return np.where(np.asarray(self._confidence[index]) < self._lowest, np.uint8(IGNORE), labels)


def _file_for(target: Path, name: str) -> Path:
    if not name:
        return target
    suffix = suffix_of(target, [".ome.zarr", *WRITERS]) or ""
    stem, ending = target.name[: -len(suffix)], target.name[-len(suffix) :]
    return target.with_name(f"{stem}_{name}{ending}")


def _write_file(project: "Project", record: RunRecord, name: str, path: Path) -> None:
    image = project.volume(name)
    store = run_store(project, project.run_folder(record.run_id), "prediction", name, record.axis)
    # of the formats, NIfTI needs the image for its place in the body; an OME-Zarr would get a copy of all its voxels
    is_nifti = suffix_of(path, [".nii", ".nii.gz"]) is not None
    write_labels(
        path,
        store.lazy(),
        voxel_size=image.voxel_size,
        unit=image.unit,
        classes=project.classes,
        image=image if is_nifti else None,
    )


def _write_nnunet(
    project: "Project", record: RunRecord, target: Path, names: tuple[str, ...], ignore_below: float
) -> None:
    folder = project.run_folder(record.run_id)
    cases = []
    for name in names:
        labels, confidence = (
            run_store(project, folder, kind, name, record.axis).lazy() for kind in ("prediction", "confidence")
        )
        cases.append(NnunetCase(name, project.volume(name), CertainLabels(labels, confidence, ignore_below)))
    write_nnunet(target, cases, project.classes, ignore=ignore_below > 0)
