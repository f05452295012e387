"""Sample volumes with truth: one made by code, one that a package on the index ships."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_slicelabel.errors import MissingFileError

_MNI_FILE = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_MNI_MIN_PROBABILITY = 0.4
_MNI_MARGIN = 2

MITOCHONDRION = 1
MEMBRANE = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """A volume and the labels that an expert would give it.

    Attributes
    ----------
    name : str
        A word usable as a file name.
    image, labels : ndarray of uint8, (z, y, x)
        Labels hold 0 = background, 1..n = ``classes`` in order.
    classes : tuple of str
        Names of the labels from 1 on.
    voxel_size : tuple of float
        Spacing along z, y, x in ``unit``.
    unit : str
    source : str
        Where it comes from and under which terms.
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    classes: tuple[str, ...]
    voxel_size: tuple[float, float, float]
    unit: str
    source: str


def synthetic_em(shape: tuple[int, int, int] = (32, 192, 192), *, seed: int = 0) -> Sample:
    """An electron-microscopy-like volume: cells with dark membranes, and mitochondria that drift through z.

    Parameters
    ----------
    shape : tuple of int
        Voxels along z, y, x.
    seed : int
        The same seed gives the same volume on every machine.

    Returns
    -------
    Sample
        Label 1 is mitochondrion, 2 is membrane. Voxels are 30 x 6 x 6 nm.

    Notes
    -----
    Time and memory grow with the number of voxels times the number of cells; the default takes about a second.
    """
    rng = np.random.default_rng(seed)
    membrane = _membranes(shape, rng)
    mitochondria, texture = _mitochondria(shape, rng)
    mitochondria &= ~membrane
    labels = np.where(membrane, np.uint8(MEMBRANE), mitochondria.astype(np.uint8))
    return Sample(
        name="synthetic_em",
        image=_stained(membrane, mitochondria, texture, rng),
        labels=labels,
        classes=("mitochondrion", "membrane"),
        voxel_size=(30.0, 6.0, 6.0),
        unit="nanometer",
        source="made by napari_slicelabel.data.samples.synthetic_em",
    )


def mni152() -> Sample:
    """The MNI152 T1 template, cropped to the brain, with grey and white matter from its tissue maps.

    Returns
    -------
    Sample
        157 x 185 x 149 voxels of 1 mm. Label 1 is grey matter, 2 is white matter: the more probable of the two where
        its probability is above 0.4 (a tie counts as grey). Axes are those of RAS+ read as z, y, x.

    Raises
    ------
    MissingFileError
        nilearn, whose wheel holds the three files, is not installed.

    References
    ----------
    Fonov et al., NeuroImage 54(1), 2011. ICBM 2009a: use, copy, modify and distribute for any purpose without fee,
    keeping the notice.
    """
    image, grey, white = (_read_canonical(_mni_file(kind)) for kind in ("t1", "gm", "wm"))
    box = _box_of(image > 0, margin=_MNI_MARGIN)
    image, grey, white = image[box], grey[box], white[box]
    tissue = np.where(white > grey, np.uint8(2), np.uint8(1))
    tissue[np.maximum(grey, white) <= _MNI_MIN_PROBABILITY * 255] = 0
    return Sample(
        name="mni152",
        image=np.ascontiguousarray(image),
        labels=tissue,
        classes=("grey matter", "white matter"),
        voxel_size=(1.0, 1.0, 1.0),
        unit="millimeter",
        source="ICBM 2009a nonlinear symmetric (c) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, "
        "McGill University; from the nilearn wheel",
    )


def _mni_file(kind: str) -> Path:
    # nilearn itself is not imported: it would load pandas and scikit-learn to find three files.
    try:
        path = Path(str(distribution("nilearn").locate_file(_MNI_FILE.format(kind))))
    except PackageNotFoundError:
        raise MissingFileError(
            "The sample volume mni152 is in the package nilearn, which is not installed; "
            "run: pip install 'napari-slicelabel[samples]'"
        ) from None
    if not path.is_file():
        raise MissingFileError(f"The installed nilearn holds no {path.name}; run: pip install --upgrade nilearn")
    return path


def _read_canonical(path: Path) -> NDArray[np.uint8]:
    import nibabel

    image = nibabel.as_closest_canonical(nibabel.load(path))
    array: NDArray[np.uint8] = np.asarray(image.dataobj).transpose(2, 1, 0)
    return array


def _box_of(mask: NDArray[np.bool_], *, margin: int) -> tuple[slice, ...]:
    """The smallest box around the true voxels, grown by ``margin`` where the volume allows it."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in found)


def _membranes(shape: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Borders of the cells around random seeds, bent by a smooth field so that no wall is straight."""
    depth, height, width = shape
    count = max(6, round(height * width / 1800 * (1 + depth / 64)))
    # One section is five pixels thick; the factor of 3 keeps a cell in view for about twenty sections.
    z_weight = 3.0
    seeds = rng.uniform((-4, -12, -12), (depth + 4, height + 12, width + 12), (count, 3)).astype(np.float32)
    z, y, x = np.ogrid[:depth, :height, :width]
    bend_y, bend_x = (_smooth_noise(shape, (4, 14, 14), rng) * 6 for _ in range(2))
    bent_y, bent_x = (y + bend_y).astype(np.float32), (x + bend_x).astype(np.float32)
    nearest, second = (np.full(shape, np.inf, np.float32) for _ in range(2))
    nearest_seed, second_seed = (np.zeros(shape, np.int16) for _ in range(2))
    for number, (seed_z, seed_y, seed_x) in enumerate(seeds):
        distance = (bent_y - seed_y) ** 2
        distance += (bent_x - seed_x) ** 2
        distance += (z_weight**2) * (z.astype(np.float32) - seed_z) ** 2
        first, runner_up = distance < nearest, distance < second
        np.copyto(second_seed, np.where(first, nearest_seed, np.int16(number)), where=runner_up)
        nearest_seed[first] = number
        np.minimum(second, np.maximum(nearest, distance), out=second)
        np.minimum(nearest, distance, out=nearest)
    # Distance in the plane to the wall between the two nearest cells: without it, walls cut at a slant become blots.
    apart = np.linalg.norm(seeds[:, None, 1:] - seeds[None, :, 1:], axis=-1)
    wall: NDArray[np.bool_] = (second - nearest) / (2 * np.maximum(apart[nearest_seed, second_seed], 18)) < 1.8
    return wall


def _mitochondria(
    shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Tubes with an elliptic section, and the stripes (cristae) that cross them, -1..1."""
    depth, height, width = shape
    mask = np.zeros(shape, bool)
    texture = np.zeros(shape, np.float32)
    y, x = np.ogrid[:height, :width]
    for _ in range(max(4, height * width // 3000)):
        middle, half_length = rng.uniform(0, depth), rng.uniform(0.25, 0.6) * depth
        centre = rng.uniform((0, 0), (height, width))
        drift = rng.uniform(-1.2, 1.2, 2)
        radii = rng.uniform((6, 9), (9, 15))
        angle, spin = rng.uniform(0, np.pi), rng.uniform(-0.04, 0.04)
        for index in _sections(middle, half_length, depth):
            step = index - middle
            # The section shrinks towards both ends, as that of an ellipsoid does.
            a, b = radii * np.sqrt(1 - (step / half_length) ** 2)
            dy, dx = y - centre[0] - drift[0] * step, x - centre[1] - drift[1] * step
            turn = angle + spin * step
            along, across = dy * np.sin(turn) + dx * np.cos(turn), dy * np.cos(turn) - dx * np.sin(turn)
            inside = (across / max(a, 1e-6)) ** 2 + (along / max(b, 1e-6)) ** 2 < 1
            mask[index] |= inside
            texture[index][inside] = np.sin(along * 1.3)[inside]
    return mask, texture


def _sections(middle: float, half_length: float, depth: int) -> Iterator[int]:
    start, stop = int(np.ceil(middle - half_length + 1e-6)), int(np.floor(middle + half_length - 1e-6))
    yield from range(max(start, 0), min(stop, depth - 1) + 1)


def _stained(
    membrane: NDArray[np.bool_],
    mitochondria: NDArray[np.bool_],
    texture: NDArray[np.float32],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Grey values of a heavy-metal stain, with the blur, noise and brightness steps of real sections."""
    shape = membrane.shape
    image = 165 + 9 * _smooth_noise(shape, (1, 3, 3), rng)
    image[mitochondria] = 105 + 14 * texture[mitochondria]
    image[membrane] = 62
    image = ndimage.gaussian_filter(image, (0.3, 0.9, 0.9))
    image += rng.normal(0, 11, shape).astype(np.float32)
    image += rng.normal(0, 5, (shape[0], 1, 1)).astype(np.float32)
    clipped: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return clipped


def _smooth_noise(shape: tuple[int, ...], scale: tuple[float, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """A random field of mean 0 and deviation 1 that changes over ``scale`` voxels."""
    # Drawn on a coarse grid and enlarged: far cheaper than blurring white noise of full size.
    coarse = tuple(int(np.ceil(n / s)) + 3 for n, s in zip(shape, scale, strict=True))
    noise = rng.normal(0, 1, coarse).astype(np.float32)
    large = ndimage.zoom(noise, [s * 1.001 for s in scale], order=1)
    field: NDArray[np.float32] = large[tuple(slice(n) for n in shape)]
    field -= field.mean()
    field /= field.std()
    return field
