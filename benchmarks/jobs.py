"""Runs in processes of their own, so that each has its own peak memory; their results as JSON lines."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.document import REPOSITORY

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

_CODE = """
import importlib, json, sys
import torch
module, function, order, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
print(json.dumps(getattr(importlib.import_module(module), function)(**json.loads(order))))
"""


def apart(function: str, order: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return what a function gives for ``order``, from a process of its own.

    Parameters
    ----------
    function : str
        ``module:name``; takes and returns what JSON can hold.
    order : dict
        Its arguments.
    threads : int
        Of torch.
    """
    process = subprocess.run(
        [sys.executable, "-c", _CODE, *function.split(":"), json.dumps(order), str(threads)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"{function}({order}) failed:\n{process.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


def collect(todo: Sequence[Callable[[], dict[str, Any]]], results: Path, parallel: int) -> None:
    """Do everything in `todo`, `parallel` at a time, and append each result to a file when it is there."""
    with ThreadPoolExecutor(parallel) as pool, results.open("a", encoding="utf-8") as file:
        for number, future in enumerate(as_completed([pool.submit(job) for job in todo]), 1):
            result = future.result()
            file.write(json.dumps(result) + "\n")
            file.flush()
            sys.stderr.write(f"{number} of {len(todo)}: {json.dumps(result)[:160]}\n")


def measure_all(function: str, orders: Iterable[dict[str, Any]], arguments: Namespace) -> None:
    """Do what a function does for each of `orders` as the command line says: `threads`, `parallel`, `results`."""
    jobs = [partial(apart, function, order, arguments.threads) for order in orders]
    collect(jobs, arguments.results, arguments.parallel)
