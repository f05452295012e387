"""A model on another image, on a cluster of two worker processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest

from napari_slicelabel.cli import main
from napari_slicelabel.data.formats import open_volume
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine import cluster as cluster_module
from napari_slicelabel.engine.apply import apply
from napari_slicelabel.engine.cluster import connected, results
from napari_slicelabel.errors import DeviceError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Read = Callable[[Path], NDArray[np.integer]]

distributed = pytest.importorskip("distributed")
# one cluster is enough: with xdist all go to one process
pytestmark = [pytest.mark.loopback, pytest.mark.xdist_group("cluster")]

# What a second process runs until it kills itself: the same call as that of the test.
SCRIPT = """
import os, signal, sys
from napari_slicelabel.data.formats import open_volume
from napari_slicelabel.engine.apply import apply
model, image, out, scheduler = sys.argv[1:]
for event in apply(model, open_volume(image), out, device="cpu", scheduler=scheduler):
    if event.done:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_CONNECT_S", 120)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as made:
        yield made


@pytest.fixture
def expected(
    make_model: Callable[..., Path], noise_file: Path, tmp_path: Path, read_labels: Read
) -> Callable[[int], NDArray[np.integer]]:
    """What a single process says; the model is then at ``model<dimensions>-0-z``."""

    def label(dimensions: int) -> NDArray[np.integer]:
        out = tmp_path / f"single{dimensions}.zarr"
        list(apply(make_model(dimensions), open_volume(noise_file), out, device="cpu"))
        return read_labels(out)

    return label


@pytest.mark.parametrize("dimensions", [2, 3])
def test_labels_are_those_of_a_single_process(
    cluster: Any,
    expected: Callable[[int], NDArray[np.integer]],
    noise_file: Path,
    tmp_path: Path,
    read_labels: Read,
    dimensions: int,
) -> None:
    wanted, out = expected(dimensions), tmp_path / "out.zarr"
    model = tmp_path / f"model{dimensions}-0-z"
    command = ["apply", str(model), str(noise_file), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--scheduler", cluster.scheduler_address]) == 0
    np.testing.assert_array_equal(read_labels(out), wanted)
    assert not list(tmp_path.glob(".*"))


def test_a_worker_that_is_killed_changes_nothing(
    cluster: Any,
    expected: Callable[[int], NDArray[np.integer]],
    noise_file: Path,
    tmp_path: Path,
    read_labels: Read,
) -> None:
    wanted, out = expected(3), tmp_path / "out.zarr"
    killed = False
    for event in apply(
        tmp_path / "model3-0-z", open_volume(noise_file), out, device="cpu", scheduler=cluster.scheduler_address
    ):
        if not killed and 0 < event.done < event.total - 1:  # type: ignore[union-attr]
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
            killed = True
    assert killed
    np.testing.assert_array_equal(read_labels(out), wanted)


def wait_until_idle(cluster: Any) -> None:
    """Wait until no worker is at a part: after the end of who asked for it, it ends that one."""
    with connected(cluster.scheduler_address) as client:
        while any(client.run(lambda dask_worker: len(dask_worker.active_threads)).values()):
            time.sleep(0.05)


def test_after_the_client_was_killed_only_the_rest_is_done(
    cluster: Any,
    expected: Callable[[int], NDArray[np.integer]],
    noise_file: Path,
    tmp_path: Path,
    read_labels: Read,
) -> None:
    wanted, out = expected(2), tmp_path / "out.zarr"
    model, marks = tmp_path / "model2-0-z", tmp_path / ".out.zarr.apply" / "done"
    command = [sys.executable, "-c", SCRIPT, model, noise_file, out, cluster.scheduler_address]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    wait_until_idle(cluster)
    before = {mark.name: mark.stat().st_mtime_ns for mark in marks.iterdir()}
    assert 0 < len(before) < 8
    events = []
    for event in apply(model, open_volume(noise_file), out, device="cpu", scheduler=cluster.scheduler_address):
        events.append(event)
        assert before == {name: (marks / name).stat().st_mtime_ns for name in before}
    assert (events[0].done, events[-1].done) == (len(before), 8)  # type: ignore[union-attr]
    np.testing.assert_array_equal(read_labels(out), wanted)
    assert not marks.exists()


def test_an_error_of_a_worker_is_told_as_it_is(
    cluster: Any, make_model: Callable[..., Path], noise_file: Path, tmp_path: Path
) -> None:
    image = tmp_path / "nan.npy"
    values = np.load(noise_file).astype(np.float32)
    values[50, 1, 1] = np.nan
    np.save(image, values)
    volume = open_volume(image, nan="refuse")
    # the sample that the range is taken from would show it to the client
    volume._intensity = open_volume(noise_file).intensity()
    with pytest.raises(InputError, match="NaN or infinite"):
        list(apply(make_model(2), volume, tmp_path / "out.tif", device="cpu", scheduler=cluster.scheduler_address))


def test_a_task_that_kills_every_worker_ends_in_one_line(cluster: Any) -> None:
    with (
        connected(cluster.scheduler_address) as client,
        mock.patch.object(cluster.scheduler, "allowed_failures", 0),
        pytest.raises(DeviceError, match="several workers"),
    ):
        list(results(client, os._exit, [(1,)]))


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("tcp://127.0.0.1:1", DeviceError, "no dask scheduler answers at tcp://127.0.0.1:1"),
        ("local:none", InputError, "number of processes"),
        ("nothing", InputError, "expected an address"),
    ],
)
def test_a_wrong_address_is_said(
    make_model: Callable[..., Path],
    noise_file: Path,
    tmp_path: Path,
    address: str,
    error: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_module, "_CONNECT_S", 1)
    with pytest.raises(error, match=words):
        list(apply(make_model(2), open_volume(noise_file), tmp_path / "out.tif", scheduler=address))
    assert not list(tmp_path.glob(".*"))


def test_without_distributed_the_error_says_what_to_install(
    make_model: Callable[..., Path], noise_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'napari-slicelabel\[distributed\]'"):
        list(apply(make_model(2), open_volume(noise_file), tmp_path / "out.tif", scheduler="local:2"))


def test_an_array_in_memory_is_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    volume = Volume.from_array(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    with pytest.raises(InputError, match="is in no file"):
        list(apply(make_model(2), volume, tmp_path / "out.tif", scheduler="local:2"))


def test_a_cluster_of_this_machine_lets_nobody_else_in() -> None:
    with cluster_module.connected("local:1") as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        with pytest.raises((OSError, TypeError, RuntimeError)):
            distributed.Client(address, timeout=3, set_as_default=False)
