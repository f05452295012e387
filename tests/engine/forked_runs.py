"""Starts runs in processes of their own and kills them on demand: one line of JSON in, one out.

Everything is imported once, here, where there is a single thread; a fork for each run is then quick and safe. A run is
killed before it touches the disk for the n-th time, so that the same order kills in the same place on every machine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

import segmentation_models_pytorch  # noqa: F401 - what a method imports when it runs takes seconds: not in each fork
import torch
from monai.networks.nets import dynunet, unet  # noqa: F401

from napari_slicelabel.data.project import Project
from napari_slicelabel.engine import unets  # noqa: F401
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.events import Progress, SliceDone
from napari_slicelabel.engine.run import run

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}


class Touches:
    """Counts what this process changes inside a folder, in every thread; kills it before a certain change."""

    def __init__(self, folder: str, kill_at: int | None) -> None:
        self.count = 0
        self._folder, self._kill_at = folder, kill_at
        sys.addaudithook(self._hear)

    def _is_inside(self, path: str) -> bool:
        # relative: to an open folder, which only the project's files are
        return path.startswith(self._folder) or not os.path.isabs(path)

    def _hear(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
        elif name in _CHANGES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | bytes) or not self._is_inside(os.fsdecode(path)):
            return
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def work(order: dict[str, Any], answer: int) -> None:
    """Run as ordered; write the stages, and how often the disk was touched before each, to a pipe."""
    project = Project.open(order["project"])
    touches = Touches(order["project"], order.get("kill_at"))
    if order.get("resume"):
        events = run(project, resume=order["resume"])
    else:
        events = run(project, build_config(order["method"], order["settings"]))
    stages: list[tuple[str, int]] = [("begin", 0)]
    for event in events:
        stage = event.stage if isinstance(event, Progress) else event.provenance if isinstance(event, SliceDone) else ""
        if stage and stage not in [name for name, _ in stages]:
            stages.append((stage, touches.count))
    os.write(answer, json.dumps({"stages": stages, "touches": touches.count}).encode())


def forked(order: dict[str, Any]) -> dict[str, Any]:
    """Run as ordered in a child; return what it said, and its exit status."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(order, writes)
            status = 0
        except Exception:  # noqa: BLE001 - whatever it is, it is told where the test shows it
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writes)
    with os.fdopen(reads) as answer:
        said = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, **(json.loads(said) if said else {"stages": [], "touches": 0})}


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


torch.set_num_threads(1)
say("ready")
for line in sys.stdin:
    say(json.dumps(forked(json.loads(line))))
