from __future__ import annotations

import os
import random
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_slicelabel.data.project import Project
    from napari_slicelabel.data.samples import Sample

# Where napari is not installed (the base install) or no window can be shown, the tests of the windows are left out.
_CAN_SHOW = find_spec("napari") is not None and find_spec("pytestqt") is not None
if not _CAN_SHOW and os.environ.get("SLICELABEL_NEEDS_WINDOWS"):
    raise RuntimeError("the tests of the windows need napari and pytest-qt")
collect_ignore = [] if _CAN_SHOW else ["gui", "gui_parts"]

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# The same examples every time, and no deadline: a busy machine must not make a test fail.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("loopback"):
        _only_loopback(monkeypatch)
        return
    connect = socket.socket.connect

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("A test tried to reach the network.")

    def local_only(self: socket.socket, address: object) -> None:
        # Event loops and worker processes talk over AF_UNIX; nothing else is anyone's business.
        if self.family != socket.AF_UNIX:
            refuse()
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)
    monkeypatch.setattr(socket.socket, "connect_ex", local_only)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test talk to the server that it has started itself."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        assert self.family == socket.AF_UNIX or (isinstance(address, tuple) and address[0] == "127.0.0.1"), address
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session")
def _tiny_sample() -> Sample:
    from napari_slicelabel.data.samples import synthetic_em

    sample = synthetic_em((16, 64, 64), seed=0)
    # Shared by the whole session: a test that writes into it would change the others.
    sample.image.flags.writeable = False
    sample.labels.flags.writeable = False
    return sample


@pytest.fixture
def tiny_stack(_tiny_sample: Sample) -> Sample:
    """16 x 64 x 64 synthetic EM: .image and .labels uint8 (z, y, x), .classes, .voxel_size, .unit; read-only."""
    return _tiny_sample


@pytest.fixture
def image_file(tmp_path: Path, tiny_stack: Sample) -> Path:
    """The image of ``tiny_stack`` as tiny.npy."""
    path = tmp_path / "tiny.npy"
    np.save(path, tiny_stack.image)
    return path


@pytest.fixture
def labels_file(tmp_path: Path, tiny_stack: Sample) -> Path:
    """The truth of ``tiny_stack`` as tiny_labels.npy."""
    path = tmp_path / "tiny_labels.npy"
    np.save(path, tiny_stack.labels)
    return path


@pytest.fixture
def project(tmp_path: Path, image_file: Path, tiny_stack: Sample) -> Project:
    """A project of one volume, ``tiny``, with two classes and nothing painted."""
    from napari_slicelabel.data.project import LabelClass, Project

    colors = ("#e6194b", "#3cb44b")
    classes = tuple(
        LabelClass(id=number, name=name, color=color)
        for number, (name, color) in enumerate(zip(tiny_stack.classes, colors, strict=True), start=1)
    )
    return Project.create(
        tmp_path / "tiny.slicelabel",
        [image_file],
        voxel_size=tiny_stack.voxel_size,
        unit=tiny_stack.unit,
        classes=classes,
    )


@pytest.fixture
def shared_volume() -> Callable[[str], dict[str, NDArray[np.generic]]]:
    """Loads ``name`` of ../shared/data as a dict of arrays; skips the test where the folder is absent."""

    def load(name: str) -> dict[str, NDArray[np.generic]]:
        path = SHARED_DATA / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"{path} is not here")
        with np.load(path) as arrays:
            return dict(arrays)

    return load
