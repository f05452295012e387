"""Does it matter which slices are painted? S3's grid and S5's budgets, on real data; called by `benchmarks.selection`.

`across`: some hippocampi with some painted slices each train a network, which labels ten others (S3). `within`: some
slices of one volume are painted, the others are labelled (S5). Networks and trainings are small: what counts is the
difference between selectors, not the score.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.coverage import cover
from benchmarks.document import read_results, spread
from benchmarks.hippocampus import SOURCE, split
from benchmarks.runs import VOLUMES, make_project, open_pair
from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.project import Project
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.context import run_store
from napari_slicelabel.engine.evaluate import evaluate
from napari_slicelabel.engine.events import Finished
from napari_slicelabel.engine.run import run
from napari_slicelabel.engine.select import rank, ranked_slices
from napari_slicelabel.engine.select.options import SelectOptions
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

TRAINING: Mapping[str, object] = {
    "rounds": 0,
    "width": 8,
    "iterations": 200,
    "crop_px": 64,
    "shapes": "off",
    "flips": "off",
    "mirror": "off",
    "calibrate": "off",
}
WITHIN_TRAINING: Mapping[str, object] = {"rounds": 0, "width": 8, "iterations": 150, "batch": 4, "calibrate": "off"}
SELECTORS: Mapping[str, Mapping[str, str]] = {
    "interval": {"method": "interval"},
    "random": {"method": "random"},
    "intensity": {"method": "representative", "features": "intensity"},
    "pretrained": {"method": "representative", "features": "pretrained"},
    "autoencoder": {"method": "representative", "features": "autoencoder"},
    "mae": {"method": "mae"},
}
QUICK = ("interval", "random", "intensity", "pretrained")
LOOKING = ("intensity", "pretrained", "autoencoder", "mae")
POOLED = "intensity, one budget"
EVEN = ("autoencoder", "mae")
"""Trained on all volumes together, whose slices then share the budget in proportion: one network, not thirty."""

COVERED = (
    "em_vnc_sstem",
    "med_itksnap_mricrop",
    "abide_crop",
    "mni152_third",
    "fib25_corner",
    "med_mni152_tissue",
    "med_abide_subcortical",
    "em_fib25_medulla",
    "med_spine_t1",
)
SMALL = 5
"""Of these features are learned too; the third to fifth are parts of larger ones: see `VOLUMES`."""

WITHIN = ("med_itksnap_mricrop", "abide_crop")
LARGE = ("med_mni152_tissue", "em_fib25_medulla")
"""Whole volumes, by features that need no training."""

EVERY = (5, 10, 20, 40)
GRID = ((3, 10), (10, 3), (30, 1), (3, 3))
"""Volumes, and painted slices in each: the first three are 30 slices."""


def across(volumes: int, slices: int, selector: str, interpolated: bool, seed: int) -> dict[str, Any]:
    """Return the mean Dice on ten volumes of a network trained on `volumes` others with `slices` painted in each."""
    trained, tested = split(seed)
    trained = trained[:volumes]
    began = time.process_time()
    with np.load(SOURCE) as file, tempfile.TemporaryDirectory() as folder:
        truths = {case: file[f"labels_{case}"] for case in (*trained, *tested)}
        project = Project.create(
            Path(folder) / "study.slicelabel",
            [f"{SOURCE}::image_{case}" for case in (*trained, *tested)],
            names=[*trained, *tested],
            voxel_size=(1.0, 1.0, 1.0),
            unit="mm",
            classes=["anterior", "posterior"],
        )
        if selector in (POOLED, *EVEN):
            options = SelectOptions(spread="pooled" if selector == POOLED else "even")
            how = SELECTORS[selector.partition(",")[0]]
            budget = slices * volumes
            ranking = rank(project, budget=budget, volumes=trained, seed=seed, options=options, **how)  # type: ignore[arg-type]
            chosen = {case: ranked_slices(ranking, case) for case in trained}
        else:
            chosen = {
                case: ranked_slices(rank(project, budget=slices, volumes=[case], seed=seed, **SELECTORS[selector]))  # type: ignore[arg-type]
                for case in trained
            }
        for case, refs in chosen.items():
            _paint(project, case, truths[case], refs)
        if interpolated:
            _interpolate(project, trained)
        try:
            run_id = _finish(project, "self-label", {**TRAINING, "seed": seed})
        except InputError:
            dice = None  # a class is in none of the painted slices: there is nothing to learn it from
        else:
            found = [
                evaluate(project, truth=Volume.from_array(truths[case], name=case), run_id=run_id, volume=case)
                for case in tested
            ]
            dice = float(np.mean([scores["mean_dice"] for scores in found]))
    return {
        "kind": "across",
        "order": _across(volumes, slices, selector, interpolated, seed)[1],
        "dice": dice,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def within(name: str, selector: str, method: str, seed: int) -> dict[str, Any]:
    """Return the mean Dice on the unpainted slices of a volume of which one in 5, 10, 20 or 40 is painted."""
    image, truth = open_pair(VOLUMES[name])
    began = time.process_time()
    dice, chosen = [], []
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), image, truth, ())
        annotation = project.annotation(project.names[0])
        for every in EVERY:
            budget = max(1, round(truth.shape[0] / every))
            refs = ranked_slices(rank(project, budget=budget, seed=seed, **SELECTORS[selector]))  # type: ignore[arg-type]
            for ref in refs:
                annotation.write_slice(ref, truth.read_slice(ref)[0, 0], complete=True)
            settings = WITHIN_TRAINING if method == "self-label" else {}
            try:
                run_id = _finish(project, method, {**settings, "seed": seed})
                dice.append(evaluate(project, truth=truth, run_id=run_id)["mean_dice"])
            except InputError:
                dice.append(None)  # as in `across`
            chosen.append(sorted(ref.index for ref in refs))
            for ref in refs:
                annotation.clear_slice(ref)
    return {
        "kind": "within",
        "order": _within(name, selector, method, seed)[1],
        "slices": chosen,
        "dice": dice,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def jobs(seeds: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the whole study, the cheap and the telling parts first; the last may well be left undone."""
    todo: list[tuple[str, dict[str, Any]]] = []
    for name in (*WITHIN, *LARGE):
        todo += [_within(name, selector, "interpolate", 0) for selector in QUICK if selector != "random"]
        todo += [_within(name, "random", "interpolate", seed) for seed in range(5)]
    todo += [_coverage(name, features) for name in COVERED for features in ("intensity", "pretrained")]
    for seed in range(seeds):
        todo += [_across(*size, selector, False, seed) for size in GRID for selector in (*QUICK, POOLED)]
    todo += [_coverage(name, "autoencoder") for name in COVERED[:SMALL]]
    todo += [_within(name, "autoencoder", "interpolate", 0) for name in WITHIN]
    # few slices in many volumes: there selectors differ
    for size in sorted(GRID, key=lambda size: size[1] > 3):
        todo += [_across(*size, selector, False, seed) for selector in EVEN for seed in range(seeds)]
    for seed in range(seeds):
        todo += [_across(*size, "interval", True, seed) for size in GRID if size[1] > 1]
    for seed in range(seeds):
        todo += [_within(WITHIN[0], selector, "self-label", seed) for selector in QUICK]
    todo += [_coverage(name, "mae") for name in COVERED[:SMALL]]
    todo += [_within(WITHIN[0], "autoencoder", "self-label", seed) for seed in range(seeds)]
    todo += [_within(name, "mae", "interpolate", 0) for name in WITHIN]
    return todo


def _within(name: str, selector: str, method: str, seed: int) -> tuple[str, dict[str, Any]]:
    return "within", {"name": name, "selector": selector, "method": method, "seed": seed}


def _across(volumes: int, slices: int, selector: str, interpolated: bool, seed: int) -> tuple[str, dict[str, Any]]:
    order = {"volumes": volumes, "slices": slices, "selector": selector, "interpolated": interpolated, "seed": seed}
    return "across", order


def _coverage(name: str, features: str) -> tuple[str, dict[str, Any]]:
    return "coverage", {"name": name, "features": features}


def study(results: Path, kinds: Collection[str], seeds: int, seconds: float) -> None:
    """Do what is missing, one after the other in this process, until `seconds` of processor time are spent."""
    do = {"across": across, "within": within, "coverage": cover}
    have = {json.dumps([r["kind"], r["order"]]) for r in read_results(results)}
    for kind, order in jobs(seeds):
        if kind not in kinds or json.dumps([kind, order]) in have:
            continue
        if time.process_time() > seconds:
            sys.stderr.write("out of time; call it again to go on\n")
            return
        result = do[kind](**order)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        sys.stderr.write(f"{json.dumps(result)}\n")


def tables(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the results as Markdown tables, by the name of their section."""
    within = defaultdict(list)
    across = defaultdict(list)
    for r in results:
        order = r["order"]
        if r["kind"] == "within":
            within[order["name"], order["method"], order["selector"]].append(r["dice"])
        elif r["kind"] == "across":
            label = order["selector"] + (" + interpolation" if order["interpolated"] else "")
            across[label, order["volumes"], order["slices"]].append(r["dice"])
    lines = [
        f"| volume | labelled by | selector | {' | '.join(f'every {every}' for every in EVERY)} |",
        f"|{'---|' * (3 + len(EVERY))}",
    ]
    for (name, method, selector), dice in sorted(within.items()):
        cells = [_cell(values) for values in zip(*dice, strict=True)]
        lines.append(f"| {name} | {method} | {selector} | {' | '.join(cells)} |")
    sizes = [size for size in GRID if any(key[1:] == size for key in across)]
    head = [f"{volumes} x {slices}" for volumes, slices in sizes]
    grid = [f"| selector | {' | '.join(head)} |", f"|{'---|' * (1 + len(head))}"]
    for label in dict.fromkeys(key[0] for key in across):
        cells = [_cell(across[label, *size]) for size in sizes]
        grid.append(f"| {label} | {' | '.join(cells)} |")
    return {"within": "\n".join(lines), "across": "\n".join(grid)}


def _cell(values: Sequence[float | None]) -> str:
    """Return mean and spread of those that there are, and of how many runs."""
    there = [value for value in values if value is not None]
    if not values:
        return "-"
    return (
        f"{spread(there)} ({len(there)} of {len(values)})"
        if len(there) < len(values)
        else f"{spread(there)} ({len(there)})"
    )


def plot(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw Dice against the budget within volumes, a panel for each volume; random draws as a band."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "selection"  # the same file every time
    names = (*WITHIN, *LARGE)
    figure = Figure((3.6 * len(names), 3.2), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True)
    for panel, name in zip(panels, names, strict=True):
        for selector in ("random", "interval", *LOOKING):
            dice = [
                r["dice"]
                for r in results
                if r["kind"] == "within"
                and (r["order"]["name"], r["order"]["method"], r["order"]["selector"])
                == (name, "interpolate", selector)
            ]
            if not dice:
                continue
            mean, std = np.mean(dice, 0), np.std(dice, 0)  # interpolation never fails
            (line,) = panel.plot(EVERY, mean, "o-", label=f"{selector} ({len(dice)})")
            if len(dice) > 1:
                panel.fill_between(EVERY, mean - std, mean + std, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set(xscale="log", xticks=EVERY, xticklabels=EVERY, title=name, xlabel="one slice painted in")
        panel.minorticks_off()
    panels[0].set_ylabel("Dice of the others, interpolated")
    # the first panel has all selectors
    panels[-1].legend(*panels[0].get_legend_handles_labels(), fontsize="small")
    figure.savefig(file, metadata={"Date": None})


def _paint(project: Project, case: str, truth: np.ndarray, refs: Sequence[SliceRef]) -> None:
    for ref in refs:
        project.annotation(case).write_slice(ref, truth[ref.index], complete=True)


def _interpolate(project: Project, cases: Sequence[str]) -> None:
    """Paint the slices between painted ones by signed-distance interpolation, as S3's mask interpolation does."""
    run_id = _finish(project, "interpolate", {"volumes": ",".join(cases)})
    for case in cases:
        store = run_store(project, project.run_folder(run_id), "prediction", case, "z")
        painted = project.annotation(case).annotated("z")
        for index in range(min(painted) + 1, max(painted)):
            if index not in painted:
                project.annotation(case).write_slice(SliceRef("z", index), store.read(index), complete=True)


def _finish(project: Project, method: str, settings: Mapping[str, object]) -> str:
    for event in run(project, build_config(method, settings)):
        if isinstance(event, Finished):
            return event.run_id
    raise AssertionError("a run ends with Finished")
