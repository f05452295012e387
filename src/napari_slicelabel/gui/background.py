"""What a thread does first that trains networks beside a window."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from importlib import import_module

# Nicer than the window's thread: the system gives the window a core when it wants one.
_NICE = 10

_IN_3D = ("monai.networks.nets.dynunet", "monai.networks.nets.unet")


def be_nice() -> None:
    """Let the window's thread go before this one, and before those that torch starts from it."""
    # on Linux a thread has a priority of its own, and the threads that torch starts from it inherit it
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def import_networks(*, in_3d: bool = False) -> None:
    """Import what networks are built from, without the compiler that comes with it.

    torch looks for triton, whose library brings its own LLVM. Where OpenGL has loaded another one before (every Mesa
    driver that draws in software), that crashes the process. Nothing here compiles, so torch may as well not find it.

    Parameters
    ----------
    in_3d : bool
        Whether MONAI is wanted as well, which takes some seconds more.
    """
    wanted = ["segmentation_models_pytorch", *(_IN_3D if in_3d else ())]
    if sys.platform != "linux" or "triton" in sys.modules or all(name in sys.modules for name in wanted):
        return
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        for name in wanted:
            import_module(name)
    finally:
        del sys.modules["triton"]
