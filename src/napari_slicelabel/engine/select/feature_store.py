"""Features of slices, kept in the project: what was computed once from the same slices is not computed again."""

import hashlib
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from napari_slicelabel.data.files import make_folder, remove, replacing, storage_errors, sweep
from napari_slicelabel.engine.devices import resolve_device
from napari_slicelabel.engine.events import Metric, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_slicelabel.engine.select.features import Features
    from napari_slicelabel.engine.select.request import Request
    from napari_slicelabel.engine.select.thumbnails import Thumbnails

KEPT = 8
"""Files, and interrupted trainings; older ones are deleted."""

_VERSION = 1


def stored_features(
    request: "Request", provider: "Features", stacks: "Sequence[Thumbnails]"
) -> Generator[Progress | Metric, None, "NDArray[np.float32]"]:
    """Return the features of all slices of some stacks, from the project where it has them.

    Parameters
    ----------
    request : Request
        Project, seed, device and options.
    provider : Features
        What computes them.
    stacks : sequence of Thumbnails
        Of which slices.

    Yields
    ------
    Progress, Metric
        Nothing but one step where they are found.

    Returns
    -------
    ndarray of shape (n, d), float32
        A row per slice, stack after stack.

    Raises
    ------
    InputError
        As the provider.
    StorageError
        Disk full, no permission.

    Notes
    -----
    The key holds all that features follow from: the images with their time of change, the axes, the provider with its
    seed, steps and weights, the kind of device and the version of torch. Annotations and ranges are not among them:
    a ranking made again after a slice was completed, or skipped, finds its features. A training that was interrupted
    lies in a folder of the same name, and goes on.
    """
    device = resolve_device(request.device)
    if not provider.kept:
        return (yield from provider.compute(stacks, device, request.rng, request.options, None))
    facts = json.dumps(
        {
            "version": _VERSION,
            "features": provider.name,
            "torch": torch.__version__,
            "device": device.type,
            "stacks": [[stack.stack.volume, stack.stack.axis, stack.fingerprint] for stack in stacks],
            **provider.depends(request.seed, request.options),
        },
        sort_keys=True,
    )
    folder = request.project.path / "selection" / "features"
    file = folder / f"{provider.name}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.safetensors"
    count = sum(len(stack.pictures) for stack in stacks)
    found = _read(file, facts, count)
    if found is not None:
        yield Progress("compare", count, count)
        return found
    unfinished = file.with_suffix(".training")
    rows = yield from provider.compute(stacks, device, request.rng, request.options, unfinished)
    with storage_errors(file):
        make_folder(folder)
        sweep(folder)
        with replacing(file) as temporary:
            save_file({"features": np.ascontiguousarray(rows)}, temporary, {"facts": facts})
    remove(unfinished)
    _keep_newest(folder)
    return rows


def _read(file: Path, facts: str, count: int) -> "NDArray[np.float32] | None":
    """Return what a file holds; None if there is none, or it is damaged or of something else."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            right = (opened.metadata() or {}).get("facts") == facts
            rows: Any = opened.get_tensor("features") if right else np.empty(0)
    except (OSError, SafetensorError):
        return None
    return rows if rows.ndim == 2 and len(rows) == count else None


def _keep_newest(folder: Path) -> None:
    files = sorted(folder.glob("[!.]*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    for path in files[:-KEPT]:
        remove(path)
    for path in sorted(folder.glob("[!.]*.training"), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
        remove(path)
