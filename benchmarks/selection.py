"""What choosing slices costs, how well they cover, and whether it matters: ``python -m benchmarks.selection``.

Coverage is that of the features which the search looks at, so it says that the search works, not that the labels get
better: that is what the study asks (`benchmarks.study`). The tables go to docs/selection.md.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.coverage import coverage_table
from benchmarks.document import REPOSITORY, read_results, write_section
from benchmarks.jobs import apart
from benchmarks.study import plot, study, tables
from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.select import rank
from napari_slicelabel.engine.select.coverage import best_cover, greedy_cover
from napari_slicelabel.engine.select.similarities import Similarities

if TYPE_CHECKING:
    from typing import Any

DOCUMENT = REPOSITORY / "docs" / "selection.md"
PICTURE = REPOSITORY / "docs" / "images" / "selection.svg"
DENSE = 10_000
"""Slices up to which apricot gets a dense matrix: 400 MB of similarities, and as much again while it is made."""


def wander(count: int, dimensions: int = 128) -> np.ndarray:
    """Return features that wander like those of a stack, shape (count, dimensions), less their mean."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(count, dimensions)), 0) * np.sqrt(20 / count)
    rows = (walk + 0.3 * rng.normal(size=walk.shape)).astype(np.float32)
    found: np.ndarray = rows - rows.mean(0)
    return found


def search(count: int, how: str, budget: int = 50) -> dict[str, Any]:
    """Return seconds, peak memory and coverage of the search alone: ``greedy``, ``best`` or ``apricot``."""
    rows = wander(count)
    spread = [int((2 * part + 1) * count / (2 * budget)) for part in range(budget)]
    if how == "apricot":
        _apricot(wander(200), 3)  # numba compiles when it is first called
    began, processor = time.perf_counter(), time.process_time()
    if how == "apricot":
        order = _apricot(rows, budget)
    elif how == "greedy":
        order = greedy_cover(Similarities(rows), budget).order
    else:
        order = best_cover(Similarities(rows), budget, others=[spread]).order
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "seconds": seconds,
        "cpu_seconds": processor,
        "peak_mb": peak,
        "coverage": greedy_cover(Similarities(rows), 0, annotated=order).start,
        "order": list(order),
    }


def whole(depth: int = 1000, side: int = 512, features: str = "autoencoder", device: str = "cpu") -> dict[str, Any]:
    """Return what it takes to rank a long stack that lies on disk: reading, features, search, then all again."""
    rng = np.random.default_rng(0)
    knots = rng.random((depth // 20 + 2, side // 16 + 1, side // 16 + 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.npy"
        image = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(depth, side, side))
        for z in range(depth):
            share = z % 20 / 20
            coarse = (1 - share) * knots[z // 20] + share * knots[z // 20 + 1]
            plane = np.kron(coarse, np.ones((16, 16)))[:side, :side] + 0.1 * rng.random((side, side))
            image[z] = (230 * plane / 1.1).astype(np.uint8)
        image.flush()
        del image
        project = Project.create(Path(folder) / "long.slicelabel", [path], classes=["one"])
        times = []
        for _ in range(2):
            began, processor = time.perf_counter(), time.process_time()
            ranking = rank(project, "representative", 20, features=features, device=device)
            times.append((time.perf_counter() - began, time.process_time() - processor))
    return {
        "features": features,
        "first": times[0],
        "again": times[1],
        "coverage": ranking.coverage[-1],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def whole_table(threads: int) -> str:
    """Measure whole rankings and return a Markdown table."""
    lines = ["| features | s | CPU s | again, s | peak MB |", "|---|---|---|---|---|"]
    for features in ("intensity", "autoencoder"):
        r = apart("benchmarks.selection:whole", {"features": features}, threads)
        (seconds, processor), (again, _) = r["first"], r["again"]
        lines.append(f"| {features} | {seconds:.0f} | {processor:.0f} | {again:.1f} | {r['peak_mb']} |")
    return "\n".join(lines)


def _apricot(rows: np.ndarray, budget: int) -> tuple[int, ...]:
    """Return what apricot-select's lazy greedy search takes, from a dense matrix of the same cosines in float32."""
    try:
        from apricot import FacilityLocationSelection
    except ImportError as error:
        raise SystemExit(
            "--apricot: install apricot-select next to this package, in an environment to throw away"
        ) from error
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    dense = np.maximum(unit @ unit.T, 0)
    return tuple(map(int, FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy").fit(dense).ranking))


def search_table(counts: list[int], threads: int, *, with_apricot: bool) -> str:
    """Measure the searches, each in a process of its own, and return a Markdown table."""
    head = "| slices | search | s | CPU s | peak MB | coverage | picks as greedy |"
    lines = [head, f"|{'---|' * 7}"]
    for count in counts:
        ways = ["greedy", "best", *(["apricot"] if with_apricot and count <= DENSE else [])]
        found = {how: apart("benchmarks.selection:search", {"count": count, "how": how}, threads) for how in ways}
        for how, r in found.items():
            same = sum(a == b for a, b in zip(r["order"], found["greedy"]["order"], strict=True))
            cells = [count, NAMES[how], f"{r['seconds']:.2f}", f"{r['cpu_seconds']:.2f}", r["peak_mb"]]
            lines.append(f"| {' | '.join(map(str, cells))} | {r['coverage']:.5f} | {same} of {len(r['order'])} |")
    return "\n".join(lines)


NAMES = {"greedy": "greedy", "best": "greedy, equal intervals, exchanges", "apricot": "apricot-select, lazy"}


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["coverage", "search", "whole", "study"])
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 5000, 20_000, 50_000])
    parser.add_argument("--apricot", action="store_true", help=f"beside apricot-select, up to {DENSE} slices")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--results", type=Path, default=Path("selection.jsonl"), help="of study and coverage, which go on there"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the study")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="processor time after which study and coverage stop; 0: tables only"
    )
    arguments = parser.parse_args()
    if "search" in arguments.parts:
        table = search_table(arguments.counts, arguments.threads, with_apricot=arguments.apricot)
        write_section("search", table, DOCUMENT)
    if "whole" in arguments.parts:
        write_section("whole", whole_table(arguments.threads), DOCUMENT)
    kinds = {"study": ("within", "across"), "coverage": ("coverage",)}
    wanted = [kind for part in arguments.parts for kind in kinds.get(part, ())]
    if wanted:
        torch.set_num_threads(arguments.threads)
        study(arguments.results, wanted, arguments.seeds, arguments.seconds)
        found = read_results(arguments.results)
        for name, text in tables(found).items():
            write_section(name, text, DOCUMENT)
        write_section("coverage", coverage_table([r for r in found if r["kind"] == "coverage"]), DOCUMENT)
        plot(found, PICTURE)


if __name__ == "__main__":
    main()
