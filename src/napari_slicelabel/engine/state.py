"""Tensors and a few numbers on disk, replaced as one; and the random state of this process."""

import hashlib
import json
import os
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from napari_slicelabel.data.files import make_folder, remove, replacing, storage_errors, write_text
from napari_slicelabel.data.reading import read_bytes
from napari_slicelabel.errors import StorageError

RANDOM = "random."
"""Before the names of the tensors that are states of random generators, in the state of a run."""

_INDEX = "state.json"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file in one step: temporary name, fsync, rename.

    Parameters
    ----------
    path : Path
        The file; its folder is made when it does not exist.
    tensors : mapping of str to Tensor
        Copied to the CPU, contiguous.

    Raises
    ------
    StorageError
        Disk full, no permission. The old file is then unchanged.
    """
    # clone: safetensors refuses tensors that share memory, such as tied weights or views of one buffer
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with storage_errors(path):
        make_folder(path.parent)
        with replacing(path) as temporary:
            try:
                save_file(plain, temporary)
            except SafetensorError as error:
                # its message holds the operating system's, but it is no OSError
                raise OSError(str(error)) from error
            with temporary.open("rb") as file:
                os.fsync(file.fileno())


def save_state(folder: Path, tensors: Mapping[str, Tensor], extra: Mapping[str, JsonValue]) -> None:
    """Replace the state in `folder`. A kill at any moment leaves the old state or the new one, never a mixture.

    Parameters
    ----------
    folder : Path
        Only the newest state is kept there.
    tensors : mapping of str to Tensor
        See `write_tensors`.
    extra : mapping
        Anything that JSON can hold.

    Raises
    ------
    StorageError
        Disk full, no permission.
    """
    old = _index(folder)
    number = 0 if old is None else old.number + 1
    name = f"{number:06d}.safetensors"
    write_tensors(folder / name, tensors)
    # this rename is the moment at which the new state takes over: the index names the tensors that belong to it
    content = {"number": number, "tensors": name, "extra": dict(extra), "digest": _digest(extra)}
    write_text(folder / _INDEX, json.dumps(content, allow_nan=False))
    for stale in folder.iterdir():
        if stale.name not in (name, _INDEX):
            with suppress(OSError):
                remove(stale)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, JsonValue]] | None:
    """Return the tensors (on the CPU) and the extra values that `save_state` wrote last; None when there are none.

    Raises
    ------
    StorageError
        The state is damaged.
    """
    index = _index(folder)
    if index is None:
        return None
    path = folder / index.tensors
    if not path.is_file():
        raise StorageError(f"{path} is missing; start a new run")
    try:
        return load_file(path), index.extra
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} is damaged or missing; start a new run") from error


class _Index(BaseModel):
    """What state.json holds: the name of a file beside it, and whatever else the run goes on from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=0, le=10**9)
    tensors: str = Field(pattern=r"^\d+\.safetensors$")
    extra: dict[str, JsonValue]
    # empty in states of older versions
    digest: str = ""


def _digest(extra: Mapping[str, JsonValue]) -> str:
    """Return a digest by which values that the disk has changed are told from those that were written."""
    # as JSON gives them back: keys that are numbers become text, and are sorted as such
    plain = json.loads(json.dumps(dict(extra)))
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()


def _index(folder: Path) -> _Index | None:
    path = folder / _INDEX
    try:
        index = _Index.model_validate_json(read_bytes(path))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise StorageError(f"{path} is damaged; start a new run") from error
    if index.digest and index.digest != _digest(index.extra):
        raise StorageError(f"{path} is damaged: its values are not those that were written; start a new run")
    return index


@dataclass(frozen=True)
class GlobalState:
    """The settings of this process that a run changes: random generators, determinism, threads, gradients.

    A run is a generator, so it and whoever iterates it take turns in one process. `run` swaps these settings at every
    turn: what happens between two events cannot change a result, and a run cannot change what its caller sees.
    """

    python: object
    numpy: dict[str, Any]
    torch_cpu: Tensor
    torch_cuda: tuple[Tensor, ...]
    threads: int
    deterministic: int
    cudnn_deterministic: bool
    cudnn_benchmark: bool
    grad: bool
    dtype: torch.dtype

    @classmethod
    def capture(cls) -> Self:
        """Return the settings as they are."""
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(legacy=False),
            torch_cpu=torch.get_rng_state(),
            # asking a GPU that nobody uses would start it: seconds, and some 300 MB of its memory
            torch_cuda=tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else (),
            threads=torch.get_num_threads(),
            deterministic=torch.get_deterministic_debug_mode(),
            cudnn_deterministic=torch.backends.cudnn.deterministic,
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            grad=torch.is_grad_enabled(),
            dtype=torch.get_default_dtype(),
        )

    def apply(self) -> None:
        """Set them all."""
        random.setstate(self.python)  # type: ignore[arg-type]
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda:
            torch.cuda.set_rng_state_all(self.torch_cuda)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        torch.set_deterministic_debug_mode(self.deterministic)
        torch.backends.cudnn.deterministic = self.cudnn_deterministic
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.set_grad_enabled(self.grad)
        torch.set_default_dtype(self.dtype)


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed every generator of the process and make torch repeatable.

    Parameters
    ----------
    seed : int
        0 or more.
    device : torch.device
        On a GPU, operations without a repeatable form run with a warning; on the CPU they would raise.

    Notes
    -----
    Repeatable on one device with one number of threads. cuBLAS reads its setting when it is first used in the process,
    so a GPU that computed before the first run may still differ in the last bits.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # not use_deterministic_algorithms: that imports torch's compiler, which takes seconds
    torch.set_deterministic_debug_mode("warn" if device.type == "cuda" else "error")


def random_state(rng: np.random.Generator) -> tuple[dict[str, Tensor], dict[str, JsonValue]]:
    """Return the state of `rng` and of torch's generators, as tensors and as JSON, for `save_state`."""
    tensors = {"torch_cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors["torch_cuda"] = torch.cuda.get_rng_state()
    state: dict[str, JsonValue] = json.loads(json.dumps(rng.bit_generator.state))
    return tensors, state


def restore_random_state(rng: np.random.Generator, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Set `rng` and torch's generators to what `random_state` returned."""
    rng.bit_generator.state = dict(state)
    torch.set_rng_state(tensors["torch_cpu"])
    if "torch_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["torch_cuda"])
