"""How well chosen slices cover a volume, and what choosing costs: ``python -m benchmarks.selection``.

Coverage is that of the features which the greedy search looks at, so it says that the search works, not that the labels
get better. The tables go to docs/selection.md.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.document import REPOSITORY, write_section
from benchmarks.jobs import apart
from benchmarks.runs import VOLUMES, make_project, open_pair
from napari_slicelabel.engine.events import drain
from napari_slicelabel.engine.select.candidates import Candidates
from napari_slicelabel.engine.select.coverage import greedy_cover
from napari_slicelabel.engine.select.features import FEATURES
from napari_slicelabel.engine.select.interval import interval
from napari_slicelabel.engine.select.similarities import Similarities
from napari_slicelabel.engine.select.thumbnails import make_thumbnails

if TYPE_CHECKING:
    from typing import Any

DOCUMENT = REPOSITORY / "docs" / "selection.md"
BUDGETS = (1, 2, 3, 5, 10, 20)
DRAWS = 20


def cover(name: str, features: str) -> dict[str, Any]:
    """Return coverage by budget of the greedy pick, of equal intervals and of random slices."""
    image, truth = open_pair(VOLUMES[name])
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), image, truth, ())
        candidates = Candidates.of(project, project.names, ("z",))
        thumbnails = drain(make_thumbnails(project, candidates.stacks[0]))
        began = time.process_time()
        rows = drain(FEATURES[features].compute([thumbnails], torch.device("cpu"), np.random.default_rng(0)))
        seconds = time.process_time() - began
        similarities = Similarities(rows - rows.mean(0))
        depth, rng = len(rows), np.random.default_rng(0)
        budgets = [budget for budget in BUDGETS if budget < depth]
        greedy = greedy_cover(similarities, budgets[-1])

        def start(slices: Any) -> float:
            return greedy_cover(similarities, 0, annotated=[int(z) for z in slices]).start

        return {
            "volume": name,
            "features": features,
            "feature_seconds": seconds,
            "budgets": budgets,
            "greedy": [greedy.coverage[budget - 1] for budget in budgets],
            "interval": [start(ref.index for _, ref in interval(candidates, budget, rng)) for budget in budgets],
            "random": [
                float(np.mean([start(rng.choice(depth, budget, replace=False)) for _ in range(DRAWS)]))
                for budget in budgets
            ],
            "optimum_ratio": _against_optimum(rows),
        }


def _against_optimum(rows: np.ndarray) -> float:
    """Return greedy over exact coverage, the worst of budgets 2 and 3, on 40 slices spread over the stack."""
    few = rows[np.linspace(0, len(rows) - 1, min(40, len(rows))).astype(int)]
    similarities = Similarities(few - few.mean(0))
    sims = similarities.to_all(np.arange(len(few))).astype(np.float64)
    ratios = []
    for budget in (2, 3):
        best = max(sims[list(chosen)].max(0).sum() for chosen in combinations(range(len(few)), budget))
        ratios.append(sims[list(greedy_cover(similarities, budget).order)].max(0).sum() / best)
    return float(min(ratios))


def search(count: int, budget: int = 50, dimensions: int = 128) -> dict[str, Any]:
    """Return seconds and peak memory of the search alone, on features that wander like those of a stack."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(count, dimensions)), 0) * np.sqrt(20 / count)
    rows = (walk + 0.3 * rng.normal(size=walk.shape)).astype(np.float32)
    began = time.perf_counter()
    found = greedy_cover(Similarities(rows - rows.mean(0)), budget)
    return {
        "count": count,
        "seconds": time.perf_counter() - began,
        "coverage": found.coverage[-1],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def coverage_table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table: greedy / interval / random for every budget."""
    head = ["volume", "features", *(f"{budget} slices" for budget in BUDGETS), "greedy / optimum", "features, CPU s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for r in results:
        cells = [
            f"{g:.3f} / {i:.3f} / {d:.3f}" for g, i, d in zip(r["greedy"], r["interval"], r["random"], strict=True)
        ]
        cells += ["-"] * (len(BUDGETS) - len(cells))
        tail = [f"{r['optimum_ratio']:.3f}", f"{r['feature_seconds']:.0f}"]
        lines.append(f"| {' | '.join([r['volume'], r['features'], *cells, *tail])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", nargs="+", default=[name for name in VOLUMES if name.startswith(("em_", "med_"))])
    parser.add_argument("--features", nargs="+", default=list(FEATURES), choices=list(FEATURES))
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 5000, 20_000, 50_000])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    results = [
        apart("benchmarks.selection:cover", {"name": name, "features": features}, arguments.threads)
        for name in arguments.volumes
        for features in arguments.features
    ]
    write_section("coverage", coverage_table(results), DOCUMENT)
    lines = ["| slices | seconds | peak MB | coverage |", "|---|---|---|---|"]
    for count in arguments.counts:
        found = apart("benchmarks.selection:search", {"count": count}, arguments.threads)
        lines.append(f"| {count} | {found['seconds']:.1f} | {found['peak_mb']} | {found['coverage']:.3f} |")
    write_section("search", "\n".join(lines), DOCUMENT)


if __name__ == "__main__":
    main()
