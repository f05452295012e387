from __future__ import annotations

import hashlib
import io
import os
import random
import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest
import tifffile
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def tiny_project(folder: Path, image_file: Path, sample: Sample) -> Project:
    """Make a project of one volume in a folder, with the two classes of a sample and nothing painted."""
    from napari_slicelabel.data.project import LabelClass, Project

    colors = ("#e6194b", "#3cb44b")
    classes = tuple(
        LabelClass(id=number, name=name, color=color)
        for number, (name, color) in enumerate(zip(sample.classes, colors, strict=True), start=1)
    )
    return Project.create(
        folder / "tiny.slicelabel",
        [image_file],
        voxel_size=sample.voxel_size,
        unit=sample.unit,
        classes=classes,
    )


@pytest.fixture
def project(tmp_path: Path, image_file: Path, tiny_stack: Sample) -> Project:
    """A project of one volume, ``tiny``, with two classes and nothing painted."""
    return tiny_project(tmp_path, image_file, tiny_stack)


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


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, site: DownloadSite, *args: object) -> None:
        self.site = site
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.site.asked.append(name)
        body = self.site.files.get(name)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if name in self.site.cut_off else body)

    def log_message(self, *_args: object) -> None:
        pass


class DownloadSite:
    """A web site on this machine that holds small files under the names of those of the nerve cord.

    ``files`` is what it sends, only half of those in ``cut_off``; ``asked`` is what it was asked for.
    """

    def __init__(self, px: int = 8) -> None:
        from PIL import Image

        self.px = px
        self.files: dict[str, bytes] = {}
        self.cut_off: set[str] = set()
        self.asked: list[str] = []
        rng = np.random.default_rng(0)
        for index in range(20):
            grey, png = io.BytesIO(), io.BytesIO()
            tifffile.imwrite(grey, rng.integers(0, 255, (self.px, self.px), np.uint8))
            values = np.full((self.px, self.px), 255, np.uint8)
            values[0, :8] = [0, 32, 64, 96, 128, 191, 223, 159]
            Image.fromarray(values).save(png, "PNG")
            self.files[f"stack1/raw/{index:02d}.tif"] = grey.getvalue()
            self.files[f"stack1/labels/labels{index:08d}.png"] = png.getvalue()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def checksums(self) -> dict[str, str]:
        return {name: hashlib.sha256(body).hexdigest() for name, body in self.files.items()}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def download_site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[DownloadSite]:
    """Such a site, whose checksums count as the published ones. The test is marked ``loopback``."""
    from napari_slicelabel.data import downloads

    site = DownloadSite(getattr(request, "param", 8))
    published = site.checksums
    monkeypatch.setattr(downloads, "checksums", lambda: published)
    # pooch waits a second before it tries again
    monkeypatch.setattr("pooch.core.time.sleep", lambda _seconds: None)
    # a proxy is not asked for what is on this machine
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield site
    site.close()
