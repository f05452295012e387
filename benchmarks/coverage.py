"""How well chosen slices cover their volume, by features; called by `benchmarks.study`."""

from __future__ import annotations

import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.runs import VOLUMES, make_project, open_pair
from napari_slicelabel.engine.events import drain
from napari_slicelabel.engine.select.candidates import Candidates
from napari_slicelabel.engine.select.coverage import best_cover, greedy_cover
from napari_slicelabel.engine.select.features import FEATURES
from napari_slicelabel.engine.select.interval import interval
from napari_slicelabel.engine.select.options import SelectOptions
from napari_slicelabel.engine.select.similarities import Similarities
from napari_slicelabel.engine.select.thumbnails import make_thumbnails

if TYPE_CHECKING:
    from typing import Any

BUDGETS = (1, 2, 3, 5, 10, 20)
DRAWS = 20


def cover(name: str, features: str) -> dict[str, Any]:
    """Return coverage by budget of what `representative` takes, of greedy search, equal intervals and random slices."""
    image, truth = open_pair(VOLUMES[name])
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), image, truth, ())
        candidates = Candidates.of(project, project.names, ("z",))
        thumbnails = drain(make_thumbnails(project, candidates.stacks[0]))
        began = time.process_time()
        rng, options = np.random.default_rng(0), SelectOptions()
        rows = drain(FEATURES[features].compute([thumbnails], torch.device("cpu"), rng, options, None))
        seconds = time.process_time() - began
    similarities = Similarities(rows - rows.mean(0))
    depth, rng = len(rows), np.random.default_rng(0)

    def covered(slices: Any) -> float:
        return greedy_cover(similarities, 0, annotated=[int(z) for z in slices]).start

    found: dict[str, list[float]] = {"best": [], "greedy": [], "interval": [], "random": []}
    budgets = [budget for budget in BUDGETS if budget < depth]
    greedy = greedy_cover(similarities, budgets[-1])
    for budget in budgets:
        spread = [ref.index for _, ref in interval(candidates, budget, rng)]
        found["best"].append(best_cover(similarities, budget, others=[spread]).coverage[-1])
        found["greedy"].append(greedy.coverage[budget - 1])
        found["interval"].append(covered(spread))
        draws = [covered(rng.choice(depth, budget, replace=False)) for _ in range(DRAWS)]
        found["random"].append(float(np.mean(draws)))
    optimum = _against_optimum(rows)
    order = {"name": name, "features": features}
    return {"kind": "coverage", "order": order, "cpu_seconds": seconds, **found, "optimum": optimum}


def _against_optimum(rows: np.ndarray) -> float:
    """Return coverage over the best possible one, the worst of budgets 2 and 3, on 40 slices spread over the stack."""
    few = rows[np.linspace(0, len(rows) - 1, min(40, len(rows))).astype(int)]
    similarities = Similarities(few - few.mean(0))
    sims = similarities.to_all(np.arange(len(few))).astype(np.float64)
    ratios = []
    for budget in (2, 3):
        best = max(sims[list(chosen)].max(0).sum() for chosen in combinations(range(len(few)), budget))
        ratios.append(sims[list(best_cover(similarities, budget).order)].max(0).sum() / best)
    return float(min(ratios))


def coverage_table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table: representative / greedy alone / interval / random for every budget."""
    places = list(VOLUMES)
    head = ["volume", "features", *(f"{budget} slices" for budget in BUDGETS), "of the optimum", "features, CPU s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for r in sorted(results, key=lambda r: places.index(r["order"]["name"])):
        rows = zip(r["best"], r["greedy"], r["interval"], r["random"], strict=True)
        cells = [" / ".join(f"{value:.3f}".removeprefix("0") for value in row) for row in rows]
        cells += ["-"] * (len(BUDGETS) - len(cells))
        tail = [f"{r['optimum']:.3f}", f"{r['cpu_seconds']:.0f}"]
        lines.append(f"| {' | '.join([*r['order'].values(), *cells, *tail])} |")
    return "\n".join(lines)
