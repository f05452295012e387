"""Many small matrix products at a time, each in one thread."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController


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
