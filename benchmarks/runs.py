"""One measured run: a dev volume, some of its slices annotated from the truth, a method, a seed."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.formats import open_labels, open_volume
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.evaluate import evaluate
from napari_slicelabel.engine.events import Finished, Metric
from napari_slicelabel.engine.run import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

DATA = Path(os.environ.get("SLICELABEL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


MEASURE = "benchmarks.runs:measure"


@dataclass(frozen=True)
class DevVolume:
    """A labelled volume, or a part of one.

    Attributes
    ----------
    name : str
        File name in the data folder, without suffix.
    labels : str
        Array of the file that holds the truth.
    crop : tuple of slice
        The part to use.
    """

    name: str
    labels: str = "labels"
    crop: tuple[slice, slice, slice] | None = None


VOLUMES: Mapping[str, DevVolume] = {
    "em_vnc_sstem": DevVolume("em_vnc_sstem"),
    "med_mni152_tissue": DevVolume("med_mni152_tissue"),
    "med_itksnap_mricrop": DevVolume("med_itksnap_mricrop"),
    "med_abide_subcortical": DevVolume("med_abide_subcortical"),
    "em_fib25_medulla": DevVolume("em_fib25_medulla", "labels_membrane"),
    "med_spine_t1": DevVolume("med_spine_t1"),
    "vnc_corner": DevVolume("em_vnc_sstem", crop=(slice(None), slice(0, 512), slice(0, 512))),
    "vnc_small": DevVolume("em_vnc_sstem", crop=(slice(None), slice(0, 400), slice(0, 400))),
    "mni152_third": DevVolume("med_mni152_tissue", crop=(slice(50, 102), slice(None), slice(None))),
    "abide_crop": DevVolume("med_abide_subcortical", crop=(slice(40, 110), slice(30, 126), slice(64, 154))),
    "mni152_coarse": DevVolume("med_mni152_tissue", crop=(slice(None, None, 2),) * 3),
    "fib25_small": DevVolume("em_fib25_medulla", "labels_membrane", (slice(0, 80), slice(0, 112), slice(0, 112))),
    "abide_tiny": DevVolume("med_abide_subcortical", crop=(slice(40, 110), slice(30, 126, 2), slice(64, 154, 2))),
    "itksnap_tiny": DevVolume("med_itksnap_mricrop", crop=(slice(None), slice(None, None, 2), slice(None, None, 2))),
    "mni152_tiny": DevVolume(
        "med_mni152_tissue", crop=(slice(None, None, 2), slice(None, None, 3), slice(None, None, 3))
    ),
    "vnc_tiny": DevVolume("em_vnc_sstem", crop=(slice(None), slice(0, 512, 4), slice(0, 512, 4))),
    "fib25_tiny": DevVolume("em_fib25_medulla", "labels_membrane", (slice(0, 64), slice(0, 64), slice(0, 64))),
    "fib25_corner": DevVolume("em_fib25_medulla", "labels_membrane", (slice(0, 100), slice(0, 160), slice(0, 160))),
}


def open_pair(volume: DevVolume) -> tuple[Volume, Volume]:
    """Return image and truth."""
    path = DATA / f"{volume.name}.npz"
    image, labels = open_volume(f"{path}::image"), open_labels(f"{path}::{volume.labels}")
    if volume.crop is None:
        return image, labels
    steps = [part.step or 1 for part in volume.crop]
    size = {"voxel_size": tuple(np.multiply(image.voxel_size, steps).tolist()), "unit": image.unit}
    return tuple(
        Volume.from_array(np.load(path)[name][volume.crop], name=volume.name, **size)
        for name in ("image", volume.labels)
    )


def every(count: int, depth: int) -> tuple[int, ...]:
    """Return every count-th slice, the first one in the middle of its interval; 0 = the single middle slice."""
    return tuple(range(count // 2, depth, count)) if count else (depth // 2,)


def whole(volume: Volume) -> NDArray[Any]:
    """Return all of a volume (z, y, x)."""
    return np.stack([volume.read_slice(SliceRef("z", z))[0, 0] for z in range(volume.shape[0])])


def make_project(
    folder: Path, image: Volume, truth: Volume, slices: tuple[int, ...], others: Sequence[Volume] = ()
) -> Project:
    """Return a project in which `slices` of the first volume along z are complete, as in the truth."""
    ids = [int(value) for value in np.unique(truth.read_slice(SliceRef("z", 0)))]
    ids = sorted(
        {*ids, *(int(v) for z in range(truth.shape[0]) for v in np.unique(truth.read_slice(SliceRef("z", z))))}
    )
    sources = []
    for number, volume in enumerate((image, *others)):
        sources.append(folder / f"image{number}.npy")
        np.save(sources[-1], whole(volume))
    project = Project.create(
        folder / "bench.slicelabel",
        sources,
        voxel_size=image.voxel_size,
        unit=image.unit,
        classes=[f"class {value}" for value in ids if value],
    )
    annotation = project.annotation(project.names[0])
    for index in slices:
        ref = SliceRef("z", index)
        annotation.write_slice(ref, truth.read_slice(ref)[0, 0].astype(np.uint8), complete=True)
    return project


def measure(name: str, interval: int, method: str, settings: Mapping[str, object], seed: int = 0) -> dict[str, Any]:
    """Return scores, seconds and what the run told of one run on one dev volume."""
    image, truth = open_pair(VOLUMES[name])
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), image, truth, every(interval, truth.shape[0]))
        told: dict[str, float] = {}
        began, processor = time.monotonic(), time.process_time()
        for event in run(project, build_config(method, {**settings, "seed": seed})):
            if isinstance(event, Metric):
                told[event.name] = event.value
            elif isinstance(event, Finished):
                run_id = event.run_id
        seconds, processor = time.monotonic() - began, time.process_time() - processor
        scores = evaluate(project, truth=truth, run_id=run_id)
    return {
        "volume": name,
        "every": interval,
        "method": method,
        "settings": dict(settings),
        "seed": seed,
        "dice": scores["mean_dice"],
        "classes": {key: value["dice"] for key, value in scores["classes"].items()},
        "hd95": [value["hd95"] for value in scores["classes"].values()],
        "by_distance": scores["by_distance"],
        "confidence": scores["confidence"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(processor, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "gpu_mb": torch.cuda.max_memory_reserved() // 2**20 if torch.cuda.is_initialized() else 0,
        "threads": torch.get_num_threads(),
        "told": told,
    }
