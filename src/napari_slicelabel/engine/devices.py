"""Where networks run."""

import torch
from torch import Tensor

from napari_slicelabel.errors import DeviceError

_TIMES_ON_GPU = 4


def resolve_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` stands for.

    Raises
    ------
    DeviceError
        ``cuda``, and torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceError("device=cuda: torch sees no GPU here; use device=auto or device=cpu")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def on_gpu(name: str) -> bool:
    """Return whether what ``auto``, ``cpu`` or ``cuda`` stands for is a GPU; does not raise."""
    return name != "cpu" and resolve_device("auto").type == "cuda"


def crops_per_step(batch: int, usual: int, device: str) -> int:
    """Return `batch`, or where that is 0 what is usual on a CPU, and four times as many on a GPU.

    A step of the usual number of crops leaves a GPU waiting for the next instruction most of the time.
    """
    return batch or usual * (_TIMES_ON_GPU if on_gpu(device) else 1)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for what a GPU has been asked to do before.

    A plain copy from memory that may be paged out waits: then the CPU prepares a batch only once the last is learned.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
