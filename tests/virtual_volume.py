"""The whole loop on a volume of 200 GB whose voxels are computed when they are read; prints peak memory in MB.

``python tests/virtual_volume.py FOLDER [START:STOP]``; without a range 100:140, of which test_large.py takes a part. A
process of its own, since peak memory is that of a process.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from napari_slicelabel.cli import main
from napari_slicelabel.data import project as project_module
from napari_slicelabel.data.formats import open_labels, open_volume
from napari_slicelabel.data.volume import Volume

DEPTH, SIZE = 819_200, 512


class Virtual:
    """Discs that drift through z, bright on a dark ground with some texture; uint8, nothing stored."""

    shape = (DEPTH, SIZE, SIZE)
    dtype = np.dtype(np.uint8)
    chunks = (16, 256, 256)

    def __init__(self, *, labels: bool) -> None:
        self._labels = labels

    def __getitem__(self, key: Any) -> np.ndarray:
        z, y, x = np.ogrid[tuple(part if isinstance(part, slice) else slice(part, part + 1) for part in key)]
        inside = ((y - 4 * np.sin(z / 9.0)) % 128 - 64) ** 2 + ((x + z) % 128 - 64) ** 2 < 30**2
        if self._labels:
            return inside.astype(np.uint8)
        return (60 + 120 * inside + (7 * y + 13 * x + 3 * z) % 40).astype(np.uint8)


def command(*words: str) -> Any:
    """Run a command as a shell would and return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            main(list(words))
        except SystemExit as end:
            if end.code:
                raise
    return json.loads(printed.getvalue())


def loop(folder: Path, span: str) -> None:
    """Go through new, select, annotate and run on some slices."""
    image, labels = folder / "image.npy", folder / "labels.npy"
    for path in (image, labels):
        path.touch()
    project = str(folder / "huge.slicelabel")
    command("new", project, str(image), "--classes", "disc")
    chosen = command("select", project, "--method", "interval", "--budget", "5")
    assert len(chosen["order"]) == 5
    command("annotate", project, "--labels", str(labels), "--slices", "102,120,138")
    settings = {
        "range": span,
        **dict.fromkeys(
            ("iterations", "round_iterations", "fold_iterations", "flow_iterations", "transfer_iterations"), 2
        ),
        "rounds": 1,
        "width": 8,
        "batch": 2,
    }
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done = command("run", project, "--method", "self-label", "--device", "cpu", *words)
    assert done["outcome"] == "finished"


def virtual(source: object, **_: object) -> Volume:
    """Stand in for `open_volume` and `open_labels`."""
    name = Path(str(source)).stem
    return Volume.from_array(Virtual(labels=name == "labels"), name=name)


if __name__ == "__main__":
    assert open_volume
    assert open_labels
    with (
        mock.patch.object(project_module, "open_volume", virtual),
        mock.patch("napari_slicelabel.data.formats.open_labels", virtual),
    ):
        loop(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "100:140")
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}\n")
