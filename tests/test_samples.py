from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest

from napari_slicelabel.data import samples
from napari_slicelabel.errors import MissingFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def test_synthetic_is_deterministic_and_quick() -> None:
    begin = time.process_time()
    first = samples.synthetic_em(seed=3)
    seconds = time.process_time() - begin
    again, other = samples.synthetic_em(seed=3), samples.synthetic_em(seed=4)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.image != other.image).mean() > 0.5
    assert seconds < 5, "a sample that everyone tries first must not be waited for"


@pytest.mark.parametrize("shape", [(16, 64, 64), (32, 192, 192), (1, 40, 70)])
def test_synthetic_has_both_classes(shape: tuple[int, int, int]) -> None:
    sample = samples.synthetic_em(shape)
    assert sample.image.shape == sample.labels.shape == shape
    assert sample.image.dtype == sample.labels.dtype == np.uint8
    assert set(np.unique(sample.labels)) <= {0, 1, 2}
    assert 0.05 < (sample.labels == samples.MEMBRANE).mean() < 0.3


def test_synthetic_classes_differ_in_grey_and_persist_through_z() -> None:
    sample = samples.synthetic_em((16, 128, 128))
    mean = [sample.image[sample.labels == value].mean() for value in range(3)]
    assert mean[samples.MEMBRANE] < mean[samples.MITOCHONDRION] < mean[0]
    mito = sample.labels == samples.MITOCHONDRION
    overlap = (mito[1:] & mito[:-1]).sum() / mito[1:].sum()
    assert 0.6 < overlap < 0.98, "objects must drift from slice to slice, not jump and not stand still"


def test_mni_is_the_shared_volume(shared_volume: Callable[[str], dict[str, NDArray[np.generic]]]) -> None:
    shared = shared_volume("med_mni152_tissue")
    sample = samples.mni152()
    np.testing.assert_array_equal(sample.image, shared["image"])
    np.testing.assert_array_equal(sample.labels, shared["labels"])


def test_mni_without_shared_data() -> None:
    sample = samples.mni152()
    assert sample.image.shape == sample.labels.shape == (157, 185, 149)
    fraction = np.bincount(sample.labels.ravel()) / sample.labels.size
    np.testing.assert_allclose(fraction, [0.59183, 0.26132, 0.14685], atol=1e-4)


def test_mni_without_nilearn(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(samples, "distribution", missing)
    with pytest.raises(MissingFileError, match=r"pip install 'napari-slicelabel\[samples\]'"):
        samples.mni152()
