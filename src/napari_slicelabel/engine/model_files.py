"""A network on disk: weights in safetensors, and network.json, which says what to build and whose weights those are.

Both may be damaged, or come from anybody: nothing is built before the weights are known to fit, nothing is fetched, and
weights that are not those that were saved, or no numbers, are refused.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import JsonValue, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from napari_slicelabel.data.files import write_text
from napari_slicelabel.data.reading import read_json
from napari_slicelabel.engine.state import write_tensors
from napari_slicelabel.errors import InputError

WEIGHTS_NAME, DESCRIPTION_NAME = "weights.safetensors", "network.json"
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OSError, ArithmeticError, SafetensorError, RuntimeError)
"""What a description or weights that are damaged make libraries raise."""

M = TypeVar("M", bound=nn.Module)

_DIGEST = "weights_sha256"


def save_model(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, JsonValue]) -> None:
    """Replace the model in a folder: the weights first, then the description with their digest.

    Raises
    ------
    StorageError
        Disk full, no permission.
    """
    weights = folder / WEIGHTS_NAME
    write_tensors(weights, tensors)
    record = {**description, _DIGEST: _digest(weights)}
    write_text(folder / DESCRIPTION_NAME, json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_description(folder: Path) -> dict[str, JsonValue]:
    """Return what network.json holds; OSError and ValueError as `read_json`."""
    record = read_json(folder / DESCRIPTION_NAME)
    if not isinstance(record, dict):
        raise ValueError(f"{DESCRIPTION_NAME} is no JSON object")
    return record


def load_weights(folder: Path, record: Mapping[str, JsonValue], build: Callable[[], M]) -> M:
    """Return the network that `build` makes, with the weights of a folder.

    Parameters
    ----------
    folder : Path
        The folder ``model`` of a run.
    record : mapping
        What its network.json holds.
    build : callable
        Makes the network. Called where it costs no memory first.

    Returns
    -------
    Module
        On the CPU.

    Raises
    ------
    ValueError
        The weights are of another network, are not those that were saved, or are no numbers.
    OSError, SafetensorError
        The file cannot be read.
    """
    weights = folder / WEIGHTS_NAME
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in build().state_dict().items()}
    with safe_open(weights, framework="pt") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    if shapes != expected:
        raise ValueError(f"{WEIGHTS_NAME} holds another network than {DESCRIPTION_NAME} describes")
    if _DIGEST in record and record[_DIGEST] != _digest(weights):
        raise ValueError(f"{WEIGHTS_NAME} is damaged: it is not the file that was saved")
    tensors = load_file(weights)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{WEIGHTS_NAME} holds values that are no finite numbers")
    network = build()
    network.load_state_dict(tensors)
    return network


def unreadable(what: str, error: BaseException) -> InputError:
    """Return the error of one line for a model that cannot be read."""
    return InputError(f"{what} cannot be read: {_reason(error)[:200]}; run the method again to write it")


def _reason(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join((str(error) or type(error).__name__).splitlines()[0].split())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
