"""How fast the networks train and predict: ``python -m benchmarks.speed``.

Variants of the same work take turns in one process, so that a ratio compares what ran under the same load; a ratio is
the median over the turns. Speed is also given as the share of the matrix-product rate that the device reached in the
same minute, which says more than seconds do on a machine that others use. The table goes to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import resource
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.document import write_section
from napari_slicelabel.data.samples import synthetic_em
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine import blocks, fit, predict
from napari_slicelabel.engine.augment import Augmentation
from napari_slicelabel.engine.fit import FitConfig, Trainer, working_dtype
from napari_slicelabel.engine.methods.self_label import SelfLabelConfig
from napari_slicelabel.engine.networks import NetworkConfig, SliceNetwork
from napari_slicelabel.engine.planes import PlaneReader
from napari_slicelabel.engine.predict import predict_bands
from napari_slicelabel.engine.sampling import Batch, Plane, PlanePool, SamplingConfig
from napari_slicelabel.engine.volume_networks import VolumeNetwork, VolumeNetworkConfig, levels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLASSES = (1, 2)
BLOCK = (8, 128, 128)


@dataclass
class Timed:
    """Something that is timed in turns with others.

    Attributes
    ----------
    name, unit : str
        What it is, and what it does one of at a time.
    work : callable
        Does `count` of them.
    count : int
        Per turn.
    flop : float
        Floating-point operations of one; 0 = not counted.
    """

    name: str
    unit: str
    work: Callable[[], None]
    count: int
    flop: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def turn(self, device: torch.device) -> None:
        """Do it once more, and note how long one took."""
        wait(device)
        began = time.perf_counter()
        self.work()
        wait(device)
        self.seconds.append((time.perf_counter() - began) / self.count)


@dataclass(frozen=True)
class Same:
    """Draws always the same crops.

    Attributes
    ----------
    batch : Batch
        Those.
    """

    batch: Batch
    crop = BLOCK

    def draw(self, count: int) -> Batch:
        """Return them."""
        return self.batch


def wait(device: torch.device) -> None:
    """Return when the device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def single_precision() -> Iterator[None]:
    """Let networks run in float32."""
    with patch.object(fit, "working_dtype", lambda device: torch.float32):
        yield


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return floating-point operations per second of a product of square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(7):
        wait(device)
        began = time.perf_counter()
        for _ in range(3):
            a @ b
        wait(device)
        rates.append(3 * 2 * size**3 / (time.perf_counter() - began))
    return median(rates)


def planes(volume: Volume, labels: np.ndarray, network: NetworkConfig) -> Iterator[Plane]:
    """Yield a few annotated slices."""
    reader = PlaneReader(volume, "z", network)
    for index in range(0, len(labels), 4):
        yield Plane(reader.read_whole(index), labels[index].astype(np.uint8), 1.0, human=True)


def workloads(device: torch.device, size: int, steps: int) -> list[Timed]:
    """Return what is timed."""
    sample = synthetic_em((16, size, size))
    volume = Volume.from_array(sample.image, name="em", voxel_size=sample.voxel_size, unit=sample.unit)
    config = SelfLabelConfig(device=device.type)
    network = NetworkConfig(classes=CLASSES)
    mirrored = network.model_copy(update={"mirror": True})
    sampling = SamplingConfig(
        (config.crop_px, config.crop_px), config.foreground_share, config.human_share, (0.4, 0.8), Augmentation()
    )
    rng = np.random.default_rng(0)
    pool = PlanePool(planes(volume, sample.labels, network), network.image_planes, sampling, device, 2**30, rng)
    trainer = Trainer(SliceNetwork(network), FitConfig(steps=10**6), config.crops, device)
    reader = PlaneReader(volume, "z", network)

    def train() -> None:
        for _ in trainer.steps(pool, steps):
            pass

    def train_single() -> None:
        with single_precision():
            train()

    def draw() -> None:
        for _ in range(steps):
            pool.draw(config.crops)

    def fill(network: NetworkConfig) -> Callable[[], None]:
        def work() -> None:
            predictor = trainer.predictor
            predictor.config = network
            for index in range(4):
                for _ in predict_bands(
                    predictor,
                    lambda rows, columns, index=index: reader.read(index, rows, columns),
                    (size, size),
                    device,
                ):
                    pass

        return work

    def fill_single() -> None:
        with single_precision(), patch.object(predict, "autocast", fit.autocast):
            fill(network)()

    x = rng.standard_normal((2, 1, *BLOCK)).astype(np.float16)
    kernels, strides = levels((1, 1, 1), BLOCK, 4)
    volumes = VolumeNetwork(VolumeNetworkConfig(classes=CLASSES, kernels=kernels, strides=strides, tile=BLOCK))
    volumes.to(device).eval()

    def label_blocks(*, together: bool) -> Callable[[], None]:
        def work() -> None:
            with (
                single_precision(),
                patch.object(blocks, "autocast", fit.autocast),
                patch.object(blocks, "_goes_in_pairs", lambda _: together),
            ):
                for part in (x,) if together else (x[:1], x[1:]):
                    blocks.predict_blocks(volumes, part, device, stride=volumes.config.stride)

        return work

    cubes = torch.randn(2, 1, *BLOCK, device=device)
    truth = torch.randint(1 + len(CLASSES), (2, *BLOCK), dtype=torch.uint8, device=device)
    same = Same(Batch(cubes, truth, torch.ones(truth.shape, device=device)))
    deep = Trainer(VolumeNetwork(volumes.config), FitConfig(steps=10**6), 2, device)

    def train_in_3d() -> None:
        for _ in deep.steps(same, steps):
            pass

    with FlopCounterMode(display=False) as counter:
        next(deep.steps(same, 1))
    cube_flop = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        label_blocks(together=True)()
    block_flop = counter.get_total_flops() / 2
    with FlopCounterMode(display=False) as counter:
        next(trainer.steps(pool, 1))
    step_flop = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        fill(network)()
    slice_flop = counter.get_total_flops() / 4
    step = f"step of {config.crops} crops of {config.crop_px} px"
    plane = f"slice of {size} px"
    cube = f"step of 2 crops of {' x '.join(map(str, BLOCK))}"
    block = f"block of {' x '.join(map(str, BLOCK))}"
    return [
        Timed("fit", step, train, steps, step_flop),
        Timed("fit, float32", step, train_single, steps, step_flop),
        Timed("fit: drawing crops alone", step, draw, steps),
        Timed("predict", plane, fill(network), 4, slice_flop),
        Timed("predict, float32", plane, fill_single, 4, slice_flop),
        Timed("predict, mirror images", plane, fill(mirrored), 4, 4 * slice_flop),
        Timed("training in 3D", cube, train_in_3d, steps, cube_flop),
        Timed("blocks, float32, in pairs", block, label_blocks(together=True), 2, block_flop),
        Timed("blocks, float32, one at a time", block, label_blocks(together=False), 2, block_flop),
    ]


def table(timed: list[Timed], device: torch.device, rate: float, rate_single: float) -> str:
    """Return a Markdown table; ratios are to the first row of the same stage."""
    dtype = str(working_dtype(device)).removeprefix("torch.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    peak = (
        torch.cuda.max_memory_allocated(device) // 2**20
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    )
    lines = [
        f"{name}: matrix products at {rate / 1e9:.0f} Gflop/s in {dtype}, {rate_single / 1e9:.0f} in float32;"
        f" peak memory {peak} MiB; crops of a step take {100 * _ratio(timed[2], timed[0]):.0f} % of it to draw.",
        "",
        "| stage | one | per s | Gflop | share of the matrix rate | time against the first of the stage |",
        "|---|---|---|---|---|---|",
    ]
    for entry in timed:
        first = next(other for other in timed if other.name.split(",")[0].split(":")[0] in entry.name)
        peak_rate = rate_single if "float32" in entry.name else rate
        share = f"{entry.flop / median(entry.seconds) / peak_rate:.2f}" if entry.flop else "-"
        lines.append(
            f"| {entry.name} | {entry.unit} | {1 / median(entry.seconds):.2f} | {entry.flop / 1e9:.1f} | {share}"
            f" | {_ratio(entry, first):.2f} |"
        )
    return "\n".join(lines)


def _ratio(entry: Timed, other: Timed) -> float:
    return median(a / b for a, b in zip(entry.seconds, other.seconds, strict=True))


def main() -> None:
    """Time everything in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=512, help="of a slice, in pixels")
    parser.add_argument("--steps", type=int, default=5, help="of training per turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-table", action="store_true", help="leave docs/benchmarks.md alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    timed = workloads(device, arguments.size, arguments.steps)
    for entry in timed:
        entry.turn(device)  # what only the first time takes
        entry.seconds.clear()
    for _ in range(arguments.turns):
        for entry in timed:
            entry.turn(device)
    size = 8192 if device.type == "cuda" else 1024
    rates = [matrix_rate(device, dtype, size) for dtype in (working_dtype(device), torch.float32)]
    text = table(timed, device, *rates)
    print(text)
    if not arguments.no_table:
        write_section(f"speed {device.type}", text)


if __name__ == "__main__":
    main()
