"""Where networks run."""

import torch

from napari_slicelabel.errors import DeviceError


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
