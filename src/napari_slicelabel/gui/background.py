"""What a thread does first that trains networks beside a window."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

# Nicer than the window's thread: the system gives the window a core when it wants one.
_NICE = 10


def be_nice() -> None:
    """Let the window's thread go before this one, and before those that torch starts from it."""
    # on Linux a thread has a priority of its own, and the threads that torch starts from it inherit it
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def import_networks() -> None:
    """Import what networks are built from, without the compiler that comes with it.

    torch looks for triton, whose library brings its own LLVM. Where OpenGL has loaded another one before (every Mesa
    driver that draws in software), that crashes the process. Nothing here compiles, so torch may as well not find it.
    """
    if sys.platform != "linux" or "triton" in sys.modules or "segmentation_models_pytorch" in sys.modules:
        return
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        import segmentation_models_pytorch  # noqa: F401
    finally:
        del sys.modules["triton"]
