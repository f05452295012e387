"""A sample volume that is too large to ship: downloaded file by file, checked, and kept in the user's cache.

pooch does the work: napari brings it anyway, it renames a file into place only when its checksum is right, and it knows
the certificates that Python alone lacks on some machines.
"""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_slicelabel.data.files import storage_errors
from napari_slicelabel.data.samples import Sample
from napari_slicelabel.errors import MissingFileError

if TYPE_CHECKING:
    import requests

VNC_NAME = "drosophila_vnc"
VNC_SHAPE = (20, 1024, 1024)
VNC_VOXEL_SIZE = (50.0, 4.6, 4.6)
VNC_UNIT = "nanometer"
VNC_CLASSES = ("membrane", "mitochondrion", "synapse", "glia or outside")
VNC_MEGABYTES = 22
VNC_SOURCE = (
    "Gerhard, Funke, Martel, Cardona, Fetter: Segmented anisotropic ssTEM dataset of neural tissue, figshare 2013, "
    "doi:10.6084/m9.figshare.856713; CC BY-NC-SA 3.0: not for commercial use"
)
# A commit, not a branch: what is behind these addresses never changes.
VNC_URL = (
    "https://raw.githubusercontent.com/unidesigner/groundtruth-drosophila-vnc/4a5f051466d24d8dc1e855ab55658bb1b1dcd6bf/"
)
CACHE_VARIABLE = "SLICELABEL_CACHE"
"""Environment variable that names another folder for downloads."""

_IMAGE = "stack1/raw/{:02d}.tif"
_LABELS = "stack1/labels/labels{:08d}.png"
# Grey values of the published labels. The first five are membranes of four directions and where they meet.
_MEANINGS = {0: 1, 32: 1, 64: 1, 96: 1, 128: 1, 191: 2, 223: 3, 159: 4}
_TIMEOUT_S = (5, 20)

VncSlice = tuple[int, NDArray[np.uint8], NDArray[np.uint8]]
"""Index, image and labels of a section; both (1024, 1024)."""


def vnc_slices(folder: Path | None = None, url: str | None = None) -> Iterator[VncSlice]:
    """Yield the sections of the nerve cord as they arrive, from the first to the last.

    Parameters
    ----------
    folder : Path, optional
        Where the files are kept: by default the cache of the user's account, or the folder that the environment
        variable SLICELABEL_CACHE names. A file that is there with the right checksum is not asked for again.
    url : str, optional
        Address of the folder that holds the files; `VNC_URL` by default.

    Yields
    ------
    tuple of (int, ndarray, ndarray)
        Index, image and labels, both uint8 (1024, 1024). Labels hold 0 = inside of a cell, then `VNC_CLASSES`.

    Raises
    ------
    MissingFileError
        pooch is not installed, no connection, or what arrived is not what was published. Files that arrived before are
        kept and not asked for again; no part of a file stays.
    StorageError
        The cache cannot be written.
    """
    import tifffile
    from PIL import Image

    store = _store(folder, url or VNC_URL)
    classes = np.zeros(256, np.uint8)
    classes[list(_MEANINGS)] = list(_MEANINGS.values())
    for index in range(VNC_SHAPE[0]):
        image, labels = _fetch(store, _IMAGE.format(index)), _fetch(store, _LABELS.format(index))
        with Image.open(labels) as opened:
            yield index, tifffile.imread(image), classes[np.asarray(opened)]


def drosophila_vnc(folder: Path | None = None, url: str | None = None) -> Sample:
    """Serial-section EM of a fly larva's ventral nerve cord with its manual labels; 22 MB are downloaded once.

    Parameters
    ----------
    folder : Path, optional
        Where the files are kept; see `vnc_slices`.
    url : str, optional
        Address of the folder that holds the files; `VNC_URL` by default.

    Returns
    -------
    Sample
        20 x 1024 x 1024 voxels of 50 x 4.6 x 4.6 nm.

    Raises
    ------
    MissingFileError, StorageError
        See `vnc_slices`.
    """
    found = list(vnc_slices(folder, url))
    images, labels = np.stack([image for _, image, _ in found]), np.stack([values for _, _, values in found])
    return Sample(VNC_NAME, images, labels, VNC_CLASSES, VNC_VOXEL_SIZE, VNC_UNIT, VNC_SOURCE)


def checksums() -> dict[str, str]:
    """Return the SHA-256 of each file by its name, as ``sha256sum`` wrote them."""
    text = (resources.files("napari_slicelabel.data") / f"{VNC_NAME}.sha256").read_text("utf-8")
    return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def _store(folder: Path | None, url: str) -> Any:
    try:
        import pooch
    except ImportError:
        raise MissingFileError(
            "Downloading a sample needs the package pooch, which is not installed; "
            "run: pip install 'napari-slicelabel[samples]'"
        ) from None
    pooch.get_logger().setLevel("WARNING")
    return pooch.create(
        path=folder or pooch.os_cache("napari-slicelabel") / VNC_NAME,
        base_url=url,
        registry=checksums(),
        env=None if folder else CACHE_VARIABLE,
        retry_if_failed=1,
    )


def _fetch(store: Any, name: str) -> str:
    import pooch
    import requests

    with storage_errors(store.abspath):
        try:
            return str(store.fetch(name, downloader=pooch.HTTPDownloader(timeout=_TIMEOUT_S, chunk_size=2**16)))
        except requests.RequestException as error:
            reason = _reason(error)
        except ValueError:
            reason = "what arrived has another checksum"
    raise MissingFileError(
        f"cannot download the sample {VNC_NAME} from {store.get_url(name)}: {reason}; check the network and open the "
        f"sample again, or copy its files into {store.abspath}"
    )


def _reason(error: "requests.RequestException") -> str:
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return "no connection"
