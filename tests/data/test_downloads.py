"""Downloads from a server on this machine: the network is never asked."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from napari_slicelabel.data import downloads
from napari_slicelabel.errors import MissingFileError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.loopback


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_files_arrive_and_are_asked_for_once(download_site: Any, tmp_path: Path) -> None:
    sample = downloads.drosophila_vnc(tmp_path, download_site.url)
    assert sample.image.shape == sample.labels.shape == (20, 8, 8)
    np.testing.assert_array_equal(sample.labels[7, 0], [1, 1, 1, 1, 1, 2, 3, 4])
    assert not sample.labels[:, 1:].any()
    first = tifffile.imread(io.BytesIO(download_site.files["stack1/raw/03.tif"]))
    np.testing.assert_array_equal(sample.image[3], first)
    assert sorted(download_site.asked) == sorted(download_site.files)
    again = downloads.drosophila_vnc(tmp_path, download_site.url)
    assert len(download_site.asked) == len(download_site.files), "what is in the cache is not asked for again"
    np.testing.assert_array_equal(again.labels, sample.labels)


def test_a_damaged_file_in_the_cache_is_fetched_again(download_site: Any, tmp_path: Path) -> None:
    downloads.drosophila_vnc(tmp_path, download_site.url)
    (tmp_path / "stack1/raw/05.tif").write_bytes(b"half")
    download_site.asked.clear()
    downloads.drosophila_vnc(tmp_path, download_site.url)
    assert download_site.asked == ["stack1/raw/05.tif"]


def test_wrong_checksum(download_site: Any, tmp_path: Path) -> None:
    download_site.files["stack1/raw/02.tif"] = b"something else"
    with pytest.raises(MissingFileError, match=r"02\.tif: what arrived has another checksum") as caught:
        downloads.drosophila_vnc(tmp_path, download_site.url)
    assert str(tmp_path) in str(caught.value), "the message says where files may be put by hand"
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == {f"stack1/{name}" for name in ("raw/00.tif", "raw/01.tif")} | {
        f"stack1/labels/labels{index:08d}.png" for index in range(2)
    }


def test_cut_off_in_the_middle_then_resumed(download_site: Any, tmp_path: Path) -> None:
    download_site.cut_off = {"stack1/raw/04.tif"}
    arrived = []
    with pytest.raises(MissingFileError, match=r"04\.tif: the connection broke off"):
        arrived.extend(index for index, _, _ in downloads.vnc_slices(tmp_path, download_site.url))
    assert arrived == [0, 1, 2, 3]
    assert len(files_in(tmp_path)) == 8, "nothing of the broken file stays"
    download_site.cut_off = set()
    download_site.asked.clear()
    downloads.drosophila_vnc(tmp_path, download_site.url)
    assert len(download_site.asked) == len(download_site.files) - 8


def test_the_server_lacks_a_file(download_site: Any, tmp_path: Path) -> None:
    del download_site.files["stack1/labels/labels00000000.png"]
    with pytest.raises(MissingFileError, match="the server answers 404 Not Found"):
        downloads.drosophila_vnc(tmp_path, download_site.url)


def test_connection_refused(download_site: Any, tmp_path: Path) -> None:
    download_site.server.server_close()
    with pytest.raises(MissingFileError, match=r"00\.tif: no connection; check the network"):
        downloads.drosophila_vnc(tmp_path, download_site.url)
    assert not files_in(tmp_path)


def test_the_cache_is_where_the_variable_says(
    download_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(downloads.CACHE_VARIABLE, str(tmp_path / "mine"))
    next(iter(downloads.vnc_slices(url=download_site.url)))
    assert len(files_in(tmp_path / "mine")) == 2


def test_without_pooch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
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
