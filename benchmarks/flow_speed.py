"""Seconds per slice of correspondence flow, beside the released code of Sli2Vol: ``python -m benchmarks.flow_speed``.

What is timed is one step of a chain on a slice of 256 x 256: profile, features, and labels carried from the slice
before. The released code (pakheiyeung/Sli2Vol, not ours to copy) encodes both slices at every step; ours encodes each
slice once. Give its folder with ``--released``. Variants take turns in one process, so that ratios compare what ran
under the same load. Below the table stands the answer to a correction: a stack of 100 slices with every tenth
annotated, and one more slice.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.document import write_section
from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.samples import synthetic_em
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.correspondence import CorrespondenceConfig, CorrespondenceNetwork, edge_profile
from napari_slicelabel.engine.run import run

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 256
# The released code makes 7 classes of any mask.
CLASSES = 7


def released_step(folder: Path) -> Callable[[], object]:
    """Return a step of the released code."""
    spec = importlib.util.spec_from_file_location("released", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.Correspondence_Flow_Net(in_channels=48, is_training=False, R=6).eval()
    one, other = torch.rand(2, 1, 1, SIZE, SIZE) * 255
    mask = torch.randint(CLASSES, (1, 1, SIZE, SIZE)).float()
    return lambda: network(edge_profile(one), edge_profile(other), mask).argmax(1)


def our_step(**settings: Any) -> Callable[[], object]:
    """Return a step of ours."""
    network = CorrespondenceNetwork(CorrespondenceConfig(**settings)).eval()
    one, other = torch.rand(2, 1, 1, SIZE, SIZE)
    with torch.inference_mode():
        before = network.features(one)[:, None]
    labels = torch.rand(1, 1, CLASSES, SIZE, SIZE).softmax(2)
    return lambda: network.attend(network.features(other), before, labels).argmax(1)


def timed(steps: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return the seconds of every step, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with torch.inference_mode():
        for turn in range(turns + 1):
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    return seconds


def steps_table(seconds: dict[str, list[float]]) -> str:
    """Return medians, and ratios to the first as medians over the turns."""
    first = next(iter(seconds.values()))
    lines = ["| step | s per slice | times as fast |", "|---|---|---|"]
    for name, values in seconds.items():
        ratio = median(one / other for one, other in zip(first, values, strict=True))
        lines.append(f"| {name} | {median(values):.3f} | {ratio:.1f} |")
    return "\n".join(lines)


def corrected(depth: int, size: int) -> tuple[float, float]:
    """Return the seconds of a first run, and of one after a slice was added."""
    sample = synthetic_em((depth, size, size), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "image.npy", sample.image)
        project = Project.create(
            Path(folder) / "bench.slicelabel", [Path(folder) / "image.npy"], names=["a"], classes=sample.classes
        )
        annotation = project.annotation("a")
        for index in range(5, depth, 10):
            annotation.write_slice(SliceRef("z", index), sample.labels[index], complete=True)
        config = build_config("flow", {"device": "cpu"})
        taken = []
        for _ in range(2):
            began = time.perf_counter()
            list(run(project, config))
            taken.append(time.perf_counter() - began)
            annotation.write_slice(SliceRef("z", depth // 2), sample.labels[depth // 2], complete=True)
    return taken[0], taken[1]


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", type=Path, help="a checkout of pakheiyeung/Sli2Vol")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = {"Sli2Vol, released code": released_step(arguments.released)} if arguments.released else {}
    steps["preset sli2vol"] = our_step(encoder="resnet", profile="edges", stride=1)
    for stride in (1, 2, 4):
        steps[f"preset default at stride {stride}"] = our_step(stride=stride)
    text = steps_table(timed(steps, arguments.turns))
    first, again = corrected(100, SIZE)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    text += (
        f"\n\nA stack of 100 x 256 x 256, every tenth slice annotated: first run {first:.1f} s; with one more slice"
        f" annotated: {again:.1f} s. Peak of the whole {peak} MB."
    )
    write_section("flow-speed", text)


if __name__ == "__main__":
    main()
