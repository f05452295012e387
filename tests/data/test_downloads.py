"""Downloads from a server on this machine: the network is never asked."""

from __future__ import annotations

import hashlib
import io
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_slicelabel.data import downloads
from napari_slicelabel.errors import MissingFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.loopback
SIZE = 8


class Handler(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *args: object) -> None:
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


class Site:
    """A web site of small files under the names of the real ones."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_off: set[str] = set()
        self.asked: list[str] = []
        rng = np.random.default_rng(0)
        for index in range(downloads.VNC_SHAPE[0]):
            grey, png = io.BytesIO(), io.BytesIO()
            tifffile.imwrite(grey, rng.integers(0, 255, (SIZE, SIZE), np.uint8))
            values = np.full((SIZE, SIZE), 255, np.uint8)
            values[0, :8] = [0, 32, 64, 96, 128, 191, 223, 159]
            Image.fromarray(values).save(png, "PNG")
            self.files[f"stack1/raw/{index:02d}.tif"] = grey.getvalue()
            self.files[f"stack1/labels/labels{index:08d}.png"] = png.getvalue()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
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
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    published = site.checksums
    monkeypatch.setattr(downloads, "checksums", lambda: published)
    # pooch waits a second before it tries again
    monkeypatch.setattr("pooch.core.time.sleep", lambda _seconds: None)
    # a proxy of the machine is not asked for what is on the machine
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield site
    site.close()


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_files_arrive_and_are_asked_for_once(site: Site, tmp_path: Path) -> None:
    sample = downloads.drosophila_vnc(tmp_path, site.url)
    assert sample.image.shape == sample.labels.shape == (20, SIZE, SIZE)
    np.testing.assert_array_equal(sample.labels[7, 0], [1, 1, 1, 1, 1, 2, 3, 4])
    assert not sample.labels[:, 1:].any()
    first = tifffile.imread(io.BytesIO(site.files["stack1/raw/03.tif"]))
    np.testing.assert_array_equal(sample.image[3], first)
    assert sorted(site.asked) == sorted(site.files)
    again = downloads.drosophila_vnc(tmp_path, site.url)
    assert len(site.asked) == len(site.files), "what is in the cache is not asked for again"
    np.testing.assert_array_equal(again.labels, sample.labels)


def test_a_damaged_file_in_the_cache_is_fetched_again(site: Site, tmp_path: Path) -> None:
    downloads.drosophila_vnc(tmp_path, site.url)
    (tmp_path / "stack1/raw/05.tif").write_bytes(b"half")
    site.asked.clear()
    downloads.drosophila_vnc(tmp_path, site.url)
    assert site.asked == ["stack1/raw/05.tif"]


def test_wrong_checksum(site: Site, tmp_path: Path) -> None:
    site.files["stack1/raw/02.tif"] = b"something else"
    with pytest.raises(MissingFileError, match=r"02\.tif: what arrived has another checksum") as caught:
        downloads.drosophila_vnc(tmp_path, site.url)
    assert str(tmp_path) in str(caught.value), "the message says where files may be put by hand"
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == {f"stack1/{name}" for name in ("raw/00.tif", "raw/01.tif")} | {
        f"stack1/labels/labels{index:08d}.png" for index in range(2)
    }


def test_cut_off_in_the_middle_then_resumed(site: Site, tmp_path: Path) -> None:
    site.cut_off = {"stack1/raw/04.tif"}
    arrived = []
    with pytest.raises(MissingFileError, match=r"04\.tif: the connection broke off"):
        arrived.extend(index for index, _, _ in downloads.vnc_slices(tmp_path, site.url))
    assert arrived == [0, 1, 2, 3]
    assert len(files_in(tmp_path)) == 8, "nothing of the broken file stays"
    site.cut_off = set()
    site.asked.clear()
    downloads.drosophila_vnc(tmp_path, site.url)
    assert len(site.asked) == len(site.files) - 8


def test_the_server_lacks_a_file(site: Site, tmp_path: Path) -> None:
    del site.files["stack1/labels/labels00000000.png"]
    with pytest.raises(MissingFileError, match="the server answers 404 Not Found"):
        downloads.drosophila_vnc(tmp_path, site.url)


def test_connection_refused(site: Site, tmp_path: Path) -> None:
    site.server.server_close()
    with pytest.raises(MissingFileError, match=r"00\.tif: no connection; check the network"):
        downloads.drosophila_vnc(tmp_path, site.url)
    assert not files_in(tmp_path)


def test_the_cache_is_where_the_variable_says(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(downloads.CACHE_VARIABLE, str(tmp_path / "mine"))
    next(iter(downloads.vnc_slices(url=site.url)))
    assert len(files_in(tmp_path / "mine")) == 2


def test_without_pooch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(MissingFileError, match=r"pip install 'napari-slicelabel\[samples\]'"):
        downloads.drosophila_vnc(tmp_path)


def test_what_is_published() -> None:
    published = downloads.checksums()
    names = {
        pattern.format(index)
        for pattern in ("stack1/raw/{:02d}.tif", "stack1/labels/labels{:08d}.png")
        for index in range(20)
    }
    assert set(published) == names
    assert all(len(digest) == 64 for digest in published.values())
    assert len(set(published.values())) == 40
    # an address that cannot change
    assert len(downloads.VNC_URL.rstrip("/").rpartition("/")[2]) == 40
