"""A model applied to a large lazy volume by workers: ``python -m benchmarks.apply_large --size 256 512``.

The volume (N x N x N, uint8, zarr in chunks of 64) is written slab by slab before, and the network is small and
untrained: what is measured is memory, and what goes on beside the network. First a corner of the volume is labelled by
one process and by the workers, and compared. Peak memory is that of each worker process (VmHWM, Linux).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from distributed import Client, LocalCluster
from safetensors.torch import save_file

from benchmarks.document import read_results, write_section
from napari_slicelabel.data.boxes import Box
from napari_slicelabel.data.formats import open_labels, open_volume
from napari_slicelabel.engine.apply import apply
from napari_slicelabel.engine.networks import NetworkConfig, SliceNetwork
from napari_slicelabel.engine.volume_networks import VolumeNetwork, VolumeNetworkConfig

CHUNK = 64
TILE = (32, 128, 128)


def write_image(path: Path, shape: tuple[int, int, int]) -> None:
    """Write discs that drift through z, on ground with some texture."""
    array = zarr.create_array(path, shape=shape, chunks=(CHUNK,) * 3, dtype=np.uint8)
    y, x = np.ogrid[: shape[1], : shape[2]]
    texture = (7 * y + 13 * x) % 40
    for first in range(0, shape[0], CHUNK):
        slab = np.empty((min(CHUNK, shape[0] - first), *shape[1:]), np.uint8)
        for place, z in enumerate(range(first, first + len(slab))):
            inside = ((y - 4 * np.sin(z / 9)) % 128 - 64) ** 2 + ((x + z) % 128 - 64) ** 2 < 900
            slab[place] = 60 + 120 * inside + (texture + 3 * z) % 40
        array[first : first + len(slab)] = slab


def write_model(folder: Path, dimensions: int) -> None:
    """Write a small network with the weights that it starts with."""
    torch.manual_seed(0)
    network: SliceNetwork | VolumeNetwork
    if dimensions == 2:
        network, key = SliceNetwork(NetworkConfig(classes=(1, 2), filters=(4, 8, 8, 8, 8))), "network"
    else:
        config = VolumeNetworkConfig(
            architecture="unet",
            filters=(4, 8),
            kernels=((3, 3, 3),) * 2,
            strides=((1, 1, 1), (2, 2, 2)),
            classes=(1, 2),
            tile=TILE,
        )
        network, key = VolumeNetwork(config), "volume_network"
    folder.mkdir()
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, folder / "weights.safetensors"
    )
    classes = [{"id": 1, "name": "a", "color": "#e69f00"}, {"id": 2, "name": "b", "color": "#56b4e9"}]
    record = {key: network.config.model_dump(mode="json"), "axis": "z", "classes": classes}
    (folder / "network.json").write_text(json.dumps(record))


def timed(model: Path, image: Path, out: Path, scheduler: str | None = None) -> float:
    """Return the seconds that a call takes, saying every minute how far it is."""
    began = said = time.monotonic()
    for event in apply(model, open_volume(image), out, device="cpu", scheduler=scheduler):
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"{event.done} of {event.total} after {said - began:.0f} s", flush=True)
    return time.monotonic() - began


def peak_mb() -> int:
    """Return the most memory that this process ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def whole(path: Path) -> Any:
    """Return the labels of a file."""
    volume = open_labels(path)
    return volume.read(Box.whole(volume.shape))[0]


def measure(size: int, dimensions: int, workers: int, crop: int, folder: Path) -> dict[str, Any]:
    """Label a volume of `size` cubed with workers, and a corner of it in both ways."""
    model, image, corner = folder / "model", folder / "image.zarr", folder / "corner.zarr"
    write_model(model, dimensions)
    write_image(corner, (crop,) * 3)
    write_image(image, (size,) * 3)
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        address = cluster.scheduler_address
        single = timed(model, corner, folder / "single.zarr")
        shared = timed(model, corner, folder / "shared.zarr", address)
        same = np.array_equal(whole(folder / "single.zarr"), whole(folder / "shared.zarr"))
        values = np.bincount(whole(folder / "single.zarr").ravel()).tolist()
        before = sorted(client.run(peak_mb).values())
        seconds = timed(model, image, folder / "out.zarr", address)
        peaks = sorted(client.run(peak_mb).values())
    return {
        "size": size,
        "dimensions": dimensions,
        "workers": workers,
        "seconds": round(seconds),
        "peaks": peaks,
        "peaks_corner": before,
        "client": peak_mb(),
        "crop": crop,
        "same": same,
        "values": values,
        "corner_single": round(single, 1),
        "corner_workers": round(shared, 1),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| volume | network | workers | s | Mvoxel/s | peak MB of each worker | of the client | corner the same |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda r: (r["dimensions"], r["size"])):
        size, seconds = result["size"], result["seconds"]
        cells = [
            f"{size}^3",
            f"{result['dimensions']}D",
            result["workers"],
            seconds,
            f"{size**3 / seconds / 1e6:.2f}",
            ", ".join(str(peak) for peak in result["peaks"]),
            result["client"],
            f"{'yes' if result['same'] else 'no'} ({result['crop']}^3)",
        ]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[256])
    parser.add_argument("--dimensions", type=int, choices=(2, 3), nargs="+", default=[3])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--folder", type=Path, default=None, help="for some GB, for the time of the measurement")
    parser.add_argument("--results", type=Path, default=Path("apply_large.jsonl"))
    arguments = parser.parse_args()
    have = {(result["size"], result["dimensions"], result["workers"]) for result in read_results(arguments.results)}
    for size in arguments.size:
        for dimensions in arguments.dimensions:
            if (size, dimensions, arguments.workers) in have:
                continue
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                result = measure(size, dimensions, arguments.workers, arguments.crop, Path(folder))
            print(json.dumps(result), flush=True)
            with arguments.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
    write_section("apply", table(read_results(arguments.results)))


if __name__ == "__main__":
    main()
