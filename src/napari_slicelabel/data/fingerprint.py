"""A short text by which an image is known again, wherever its file lies and whatever its format."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from napari_slicelabel.data.boxes import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_slicelabel.data.volume import Volume

_WHOLE_BYTES = 4 * 2**20
# beyond that the eight corners and the middle, nine chunks of the storage or a few more
_BLOCK = (4, 128, 128)


def fingerprint(volume: Volume) -> str:
    """Return a digest of shape, channels and sampled values (z, y, x): the same for the same image in another format.

    Parameters
    ----------
    volume : Volume
        At most 4 MB of it are read, or nine chunks of its storage.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    StorageError
        The file cannot be read.

    Examples
    --------
    >>> from napari_slicelabel.data.volume import Volume
    >>> first, second = (Volume.from_array(np.full((2, 3, 4), 7, kind)) for kind in ("u1", "f4"))
    >>> fingerprint(first) == fingerprint(second)
    True
    """
    digest = hashlib.blake2b(repr((volume.shape, volume.channels)).encode(), digest_size=16)
    for box in _boxes(volume):
        # one type for all: an image saved again with wider numbers is the same image; NaN has many forms
        values = np.nan_to_num(volume.read_stored(box).astype("<f8"), nan=0.0, posinf=0.0, neginf=0.0)
        digest.update(np.ascontiguousarray(values + 0.0).tobytes())
    return digest.hexdigest()


def _boxes(volume: Volume) -> Iterator[Box]:
    if volume.nbytes <= _WHOLE_BYTES:
        yield Box.whole(volume.shape)
        return
    edges = tuple(min(n, block) for n, block in zip(volume.shape, _BLOCK, strict=True))
    room = tuple(n - edge for n, edge in zip(volume.shape, edges, strict=True))
    places = [(0, 0, 0)] + [tuple(r * (k >> a & 1) for a, r in enumerate(room)) for k in range(1, 8)]
    for corner in dict.fromkeys([*places, tuple(r // 2 for r in room)]):
        yield Box(corner, tuple(at + edge for at, edge in zip(corner, edges, strict=True)))
