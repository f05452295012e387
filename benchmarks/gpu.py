"""The long tables on a GPU, in the minutes that there are: ``python -m benchmarks.gpu --minutes 9 --workers 15``.

A small network leaves a large GPU idle, and importing torch and MONAI takes as long as a short run. So some processes
that stay each take the next run that is not in the results yet, in the order of `orders`, until the time is up; what is
under way then is lost. With CUDA's multi-process service (MPS) they share the GPU instead of taking turns. Results go
to ``quality-cuda.jsonl`` and so on in a folder, by default benchmarks/results; the tables are written from these by the
benchmarks themselves, see docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.document import REPOSITORY, read_results
from benchmarks.flow import TASKS
from benchmarks.gradual import CLASSES, PAPER
from benchmarks.quality import ARMS, CHECKED, default_interval
from benchmarks.self_train import FULL, SELECTORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RESULTS = REPOSITORY / "benchmarks" / "results"
DEVICE = {"device": "cuda"}
SELF_TRAIN = {
    **DEVICE,
    **dict.fromkeys(("shapes", "calibrate", "trial"), "off"),
    "iterations": "600",
    "plane_iterations": "300",
}
# Fewer slices do not show every class of med_itksnap_mricrop.
BUDGETS = {"em_fib25_medulla": (5, 10, 20, 40), "med_mni152_tissue": (5, 10, 20, 40), "med_itksnap_mricrop": (5, 10)}
SEEDS = 3


@dataclass(frozen=True)
class Order:
    """One run.

    Attributes
    ----------
    table : str
        File of results, without ``-cuda.jsonl``.
    module : str
        Whose `measure` does it.
    arguments : dict
        Of `measure`.
    more : dict
        What the table wants to know besides.
    """

    table: str
    module: str
    arguments: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)

    def key(self) -> dict[str, Any]:
        """Return what tells its result from others."""
        names = {"name": "volume", "interval": "every"}
        hidden = ("settings", "device", "structures")
        told = {names.get(name, name): value for name, value in self.arguments.items() if name not in hidden}
        return {**told, **self.more}

    def answered_by(self, row: dict[str, Any]) -> bool:
        """Return whether a result is that of this run."""
        structures = {str(structure) for structure in self.arguments.get("structures", ())}
        return structures <= {*row.get("structures", ())} and all(
            row.get(name) == value for name, value in self.key().items()
        )


def orders() -> Iterator[Order]:
    """Yield all runs, those that say most first."""
    for seed in range(SEEDS):
        for volume, arm in product(CHECKED, ("gradual-3d", "self-train", "self-label", "flow")):
            yield quality(volume, default_interval(volume), arm, seed)
        yield from flows(("sli2vol+", "sli2vol"), seed)
        for target, cubes in product(CLASSES, PAPER):
            yield Order("gradual", "gradual", {"target": target, "cubes": cubes, "seed": seed, **DEVICE})
        for volume, budgets in BUDGETS.items():
            settings = {**SELF_TRAIN, "shapes": "auto"} if volume == "med_itksnap_mricrop" else SELF_TRAIN
            runs = [*product(budgets, SELECTORS), *([] if volume == "med_itksnap_mricrop" else [(FULL, "interval")])]
            for budget, selector in runs:
                arguments = {"volume": volume, "budget": budget, "selector": selector, "seed": seed}
                yield Order("self-train", "self_train", {**arguments, "settings": settings})
        for arm in ("sli2vol", "PL", "refined PL", "GEIG", "sli2vol+"):
            yield Order("flow-transfer", "flow_transfer", {"arm": arm, "seed": seed, "settings": DEVICE})
    for seed, interval, volume in product(range(SEEDS), (20, 5), CHECKED[1:]):
        for arm in ("self-label", "gradual-3d", "self-train", "flow"):
            yield quality(volume, interval, arm, seed)
    for seed in range(SEEDS):
        yield from flows(("PL", "refined PL", "GEIG"), seed)


def flows(arms: Iterable[str], seed: int) -> Iterator[Order]:
    """Yield the runs from one annotated slice, of one structure each."""
    for (volume, structures), arm in product(TASKS.items(), arms):
        for structure in structures:
            arguments = {"volume": volume, "arm": arm, "seed": seed, "settings": DEVICE, "structures": [structure]}
            yield Order("flow", "flow", arguments)


def quality(volume: str, interval: int, arm: str, seed: int) -> Order:
    """Return a run of the table of all methods."""
    method, settings = ARMS[arm]
    arguments = {
        "name": volume,
        "interval": interval,
        "method": method,
        "settings": {**settings, **DEVICE},
        "seed": seed,
    }
    return Order("quality", "runs", arguments, {"arm": arm})


def missing(folder: Path) -> list[Order]:
    """Return the runs whose results are in neither of the two folders."""
    tables = {order.table for order in orders()}
    have = {
        table: [row for place in {folder, RESULTS} for row in read_results(place / f"{table}-cuda.jsonl")]
        for table in tables
    }
    return [order for order in orders() if not any(map(order.answered_by, have[order.table]))]


def work(folder: Path, claims: Path, until: float) -> None:
    """Do what nobody else has begun, until the time is up."""
    import torch

    torch.set_num_threads(1)
    for number, order in enumerate(missing_of(claims)):
        if time.time() > until:
            return
        try:
            (claims / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        began = time.monotonic()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        try:
            result = importlib.import_module(f"benchmarks.{order.module}").measure(**order.arguments)
        except Exception:  # noqa: BLE001 - the others go on
            sys.stderr.write(f"{order}\n{traceback.format_exc()}\n")
            continue
        line = json.dumps({**result, **order.more}) + "\n"
        # one write, so that lines of several processes do not mix
        file = os.open(folder / f"{order.table}-cuda.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, line.encode())
        os.close(file)
        told = [*order.key().values(), *order.arguments.get("structures", ())]
        sys.stderr.write(f"{time.monotonic() - began:5.0f} s: {order.table} {told}\n")


def missing_of(claims: Path) -> list[Order]:
    """Return the list that all workers share."""
    return [Order(**order) for order in json.loads((claims / "orders.json").read_text())]


def main() -> None:
    """Start the workers, and end them when the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--workers", type=int, default=15, help="processes; about as many as there are cores")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--list", action="store_true", help="say what is missing, and do nothing")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    until = time.time() + 60 * arguments.minutes
    if arguments.worker:
        work(arguments.results, arguments.worker, until)
        return
    todo = missing(arguments.results)
    if arguments.list:
        for order in todo:
            print(order.table, order.key(), *order.arguments.get("structures", ()))
        return
    arguments.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as claims:
        (Path(claims) / "orders.json").write_text(json.dumps([asdict(order) for order in todo]))
        command = [sys.executable, "-m", "benchmarks.gpu", "--worker", claims, "--results", str(arguments.results)]
        command += ["--minutes", str(arguments.minutes)]
        workers = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(arguments.workers)]
        for worker in workers:
            try:
                worker.wait(max(0.0, until - time.time()))
            except subprocess.TimeoutExpired:
                worker.kill()


if __name__ == "__main__":
    main()
