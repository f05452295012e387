"""Many small matrix products at a time, each in one thread, into memory that is there already."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Buffer(threading.local):
    """Memory for one array at a time, in each thread its own.

    Arrays of some 100 kB that come and go give their pages back to the system and ask for them again, and threads wait
    for one another there.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)

    def array(self, *shape: int) -> "NDArray[np.float32]":
        """Return an array of a shape that holds anything; the one before it is no more."""
        size = int(np.prod(shape))
        if size > len(self._memory):
            self._memory = np.empty(size, np.float32)
        return self._memory[:size].reshape(shape)


@contextmanager
def one_product_each() -> Iterator[ThreadPoolExecutor]:
    """Give the block as many threads as the BLAS of numpy uses, and keep that to one thread meanwhile.

    Yields
    ------
    ThreadPoolExecutor
        numpy lets go of the interpreter while it computes, so that its threads do run beside each other.

    Notes
    -----
    A BLAS that shares out products of a millisecond spends its time waiting for its own threads, and on a machine that
    is busy with other work a hundred times longer than on the product.
    """
    controller = ThreadpoolController()
    blas = [library["num_threads"] for library in controller.info() if library["user_api"] == "blas"]
    with controller.limit(limits=1, user_api="blas"), ThreadPoolExecutor(max(blas, default=1)) as pool:
        yield pool
