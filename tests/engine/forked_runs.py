"""Starts runs in processes of their own and kills them on demand: one line of JSON in, the exit status out.

Everything is imported once, here, where there is a single thread; a fork for each run is then quick and safe.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import torch
from monai.networks.nets import dynunet  # noqa: F401 - what a method imports when it runs takes seconds: not in each fork

from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.config import build_config
from napari_slicelabel.engine.run import run


def work(order: dict[str, object]) -> None:
    project = Project.open(str(order["project"]))
    if order.get("resume"):
        events = run(project, resume=str(order["resume"]))
    else:
        settings = order["settings"]
        assert isinstance(settings, dict)
        events = run(project, build_config(str(order["method"]), settings))
    for _ in events:
        pass


def say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


torch.set_num_threads(1)
say("ready")
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(order)
            status = 0
        finally:
            os._exit(status)
    if order.get("kill_after") is not None:
        time.sleep(order["kill_after"])
        # not waited for yet, so the number is still the child's, even if it has ended by itself
        os.kill(child, signal.SIGKILL)
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
