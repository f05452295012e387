"""Python's garbage collector, which now and then stops all threads to look at every object there is.

With torch loaded that takes 0.3 s, whichever thread it happens in, and an import of torch sets it off five times.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect nothing during a block that imports much, and once at its end, while everybody waits for it anyway."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
            # else the next thing that makes many objects, such as adding a layer, would wait for this look at them all
            gc.collect()


def spare() -> None:
    """From now on look only at objects that are made from now on; `look_at_all` ends it."""
    gc.freeze()


def look_at_all() -> None:
    """Look at all objects again: what became garbage in the meantime, such as a removed image, is collected later."""
    gc.unfreeze()
