"""Seconds per slice of correspondence flow, beside the released code of Sli2Vol: ``python -m benchmarks.flow_speed``.

What is timed is one step of a chain on a slice of 256 x 256: profile, features, and labels carried from the slice
before. The released code (pakheiyeung/Sli2Vol, not ours to copy) encodes both slices at every step; ours encodes each
slice once. Give its folder with ``--released``. Variants take turns in one process, so that ratios compare what ran
under the same load. Below the table stands the answer to a correction: a stack of 100 slices with every tenth
annotated, and one more slice.

``--device cuda``: a slice of 512 x 512 on a GPU, with what the correlation moves through its memory at least (features,
labels and what comes of them, once each) as a share of what a plain copy moves in the same time, and slices per second
of a whole run.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.document import write_section
from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.samples import synthetic_em
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.correspondence import CorrespondenceConfig, CorrespondenceNetwork, edge_profile
from napari_slicelabel.engine.events import Progress
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


def on_gpu(size: int, turns: int) -> str:
    """Return what features and correlation of a slice take on a GPU, as a Markdown table."""
    device = torch.device("cuda")
    block = torch.rand(2**28, device=device)
    copy_rate = 2 * block.nbytes / gpu_seconds(block.clone, turns)
    lines = [
        f"{torch.cuda.get_device_name(device)}: a copy moves {copy_rate / 1e12:.2f} TB/s. Slices of {size} x {size},"
        f" {CLASSES} classes, one slice that labels come from.",
        "",
        "| | features, ms | correlation, ms | least MB | of the copy rate | Gflop | Tflop/s | slices/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    published = {"encoder": "resnet", "profile": "edges", "stride": 1}
    for name, settings in (
        ("sli2vol", published),
        *((f"default at stride {stride}", {"stride": stride}) for stride in (1, 2, 4)),
    ):
        network = CorrespondenceNetwork(CorrespondenceConfig(**settings)).eval().to(device)  # type: ignore[arg-type]
        images = torch.rand(2, 1, size, size, device=device)
        # what is carried beside the classes: background, unknown, doubt, place, intensity
        values = torch.rand(1, 1, CLASSES + 6, size, size, device=device)
        with torch.inference_mode():
            query, key = network.features(images).split(1)
            encode = gpu_seconds(lambda network=network, images=images: network.features(images[:1]), turns)
            attend = partial(network.attend, query, key[:, None], values)
            with FlopCounterMode(display=False) as counter:
                attend()
            flop = counter.get_total_flops()
            carry = gpu_seconds(attend, turns)
        least = query.nbytes + key.nbytes + 2 * values.nbytes
        lines.append(
            f"| {name} | {1e3 * encode:.2f} | {1e3 * carry:.2f} | {least / 1e6:.0f} | {least / carry / copy_rate:.3f}"
            f" | {flop / 1e9:.0f} | {flop / carry / 1e12:.1f} | {1 / (encode + carry):.0f} |"
        )
    return "\n".join(lines)


def gpu_seconds(work: Callable[[], object], turns: int) -> float:
    """Return the seconds that something takes on the GPU, the median."""
    found = []
    for _ in range(3 + turns):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return median(found[3:])


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


def corrected(depth: int, size: int, device: str = "cpu") -> tuple[float, float, float]:
    """Return the seconds of a first run, of what of it came after training, and of one after a slice was added."""
    sample = synthetic_em((depth, size, size), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "image.npy", sample.image)
        project = Project.create(
            Path(folder) / "bench.slicelabel", [Path(folder) / "image.npy"], names=["a"], classes=sample.classes
        )
        annotation = project.annotation("a")
        for index in range(5, depth, 10):
            annotation.write_slice(SliceRef("z", index), sample.labels[index], complete=True)
        config = build_config("flow", {"device": device})
        taken, filling = [], []
        for _ in range(2):
            began = filled = time.perf_counter()
            for event in run(project, config):
                if isinstance(event, Progress) and event.stage != "carry":
                    filled = time.perf_counter()
            taken.append(time.perf_counter() - began)
            filling.append(time.perf_counter() - filled)
            annotation.write_slice(SliceRef("z", depth // 2), sample.labels[depth // 2], complete=True)
    return taken[0], filling[0], taken[1]


def of_a_stack(depth: int, size: int, device: str) -> str:
    """Return what a run takes, and the answer to a correction, in a sentence."""
    first, filling, again = corrected(depth, size, device)
    return (
        f"A stack of {depth} x {size} x {size}, every tenth slice annotated: first run {first:.1f} s, of which"
        f" {filling:.1f} s ({depth / filling:.0f} slices/s) after training and calibration; with one more slice"
        f" annotated: {again:.2f} s."
    )


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", type=Path, help="a checkout of pakheiyeung/Sli2Vol")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-table", action="store_true", help="leave docs/benchmarks.md alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        show(on_gpu(512, 4 * arguments.turns), "flow-speed cuda", arguments)
        # the first one also starts the GPU
        stacks = [of_a_stack(100, size, "cuda") for size in (32, SIZE, 512)]
        show("\n\n".join(stacks[1:]), "flow-speed cuda stacks", arguments)
        return
    steps = {"Sli2Vol, released code": released_step(arguments.released)} if arguments.released else {}
    steps["preset sli2vol"] = our_step(encoder="resnet", profile="edges", stride=1)
    for stride in (1, 2, 4):
        steps[f"preset default at stride {stride}"] = our_step(stride=stride)
    text = steps_table(timed(steps, arguments.turns))
    text += f"\n\n{of_a_stack(100, SIZE, 'cpu')}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    show(f"{text} Peak of the whole {peak} MB.", "flow-speed", arguments)


def show(text: str, section: str, arguments: argparse.Namespace) -> None:
    """Print a table, and put it into the document unless that is not wanted."""
    print(text, flush=True)
    if not arguments.no_table:
        write_section(section, text)


if __name__ == "__main__":
    main()
