"""Models that are damaged, or made by somebody who means no good: refused in one line, at no cost."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from napari_slicelabel.engine.model_files import DESCRIPTION_NAME, WEIGHTS_NAME, save_model
from napari_slicelabel.engine.networks import load_model
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def change(folder: Path, **network: Any) -> None:
    record = json.loads((folder / DESCRIPTION_NAME).read_text())
    record["network"].update(network)
    (folder / DESCRIPTION_NAME).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"filters": [100_000] * 5}, "another network"),
        ({"filters": [10**30] * 5}, "cannot be read"),
        ({"classes": [1, 2, 3]}, "another network"),
        ({"classes": list(range(1, 300))}, "classes"),
        ({"encoder": "tu-hf_hub:somebody/model"}, "none that is installed"),
        ({"encoder": "tu-local-dir:/tmp/somewhere"}, "none that is installed"),
        ({"encoder": "tu-nothing"}, "cannot be read|not known"),
    ],
    ids=["large", "huge", "classes", "many classes", "web site", "folder", "unknown"],
)
def test_nothing_is_built_that_the_weights_do_not_fit(
    make_model: Callable[..., Path], network: dict[str, Any], words: str
) -> None:
    folder = make_model(2)
    change(folder, **network)
    tracemalloc.start()
    with pytest.raises(InputError, match=words):
        load_model(folder)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_weights_of_an_encoder_are_never_fetched(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    """The tests have no network: a download would fail."""
    folder = make_model(2)
    change(folder, encoder_weights="imagenet")
    assert load_model(folder)[0].config.encoder_weights == "none"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(make_model: Callable[..., Path], value: float) -> None:
    folder = make_model(3)
    tensors = load_file(folder / WEIGHTS_NAME)
    next(iter(tensors.values())).view(-1)[0] = value
    save_file(tensors, folder / WEIGHTS_NAME)
    with pytest.raises(InputError, match="no finite numbers"):
        load_model(folder)


def test_weights_are_those_that_were_saved(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    network, record = load_model(make_model(2))
    save_model(tmp_path / "saved", network.state_dict(), record)
    again, _ = load_model(tmp_path / "saved")
    for one, other in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    path = tmp_path / "saved" / WEIGHTS_NAME
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="not the file that was saved"):
        load_model(tmp_path / "saved")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"network": 3}', '{"network": {"classes": NaN}}'])
def test_descriptions_that_are_none(make_model: Callable[..., Path], text: str) -> None:
    folder = make_model(2)
    (folder / DESCRIPTION_NAME).write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_values_that_are_no_numbers_are_no_labels(
    make_model: Callable[..., Path], noise_file: Path, tmp_path: Path, dimensions: int
) -> None:
    """Weights that are finite, and logits that are not."""
    from napari_slicelabel.data.formats import open_volume
    from napari_slicelabel.engine.apply import apply

    folder = make_model(dimensions)
    tensors = load_file(folder / WEIGHTS_NAME)
    save_file({name: torch.full_like(tensor, 1e38) for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)
    with pytest.raises(InputError, match="no finite numbers"):
        list(apply(folder, open_volume(noise_file), tmp_path / "out.tif", device="cpu"))
    assert not (tmp_path / "out.tif").exists()


def test_classes_that_are_none(make_model: Callable[..., Path], noise_file: Path, tmp_path: Path) -> None:
    from napari_slicelabel.data.formats import open_volume
    from napari_slicelabel.engine.apply import apply

    folder = make_model(2)
    record = json.loads((folder / DESCRIPTION_NAME).read_text())
    record["classes"][0]["id"] = 999
    (folder / DESCRIPTION_NAME).write_text(json.dumps(record))
    with pytest.raises(InputError, match="cannot be read: id"):
        list(apply(folder, open_volume(noise_file), tmp_path / "out.tif", device="cpu"))
