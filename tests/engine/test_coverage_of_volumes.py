"""On real volumes: representative slices cover at least what equal intervals and random slices do, at every budget.

The volumes of the benchmarks are not part of the repository; where they are not there, the samples are left.
"""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.formats import open_volume
from napari_slicelabel.data.samples import mni152, synthetic_em
from napari_slicelabel.data.volume import Volume
from napari_slicelabel.engine.events import drain
from napari_slicelabel.engine.select.candidates import Candidates, Stack
from napari_slicelabel.engine.select.coverage import best_cover, greedy_cover
from napari_slicelabel.engine.select.features import FEATURES
from napari_slicelabel.engine.select.interval import interval
from napari_slicelabel.engine.select.options import SelectOptions
from napari_slicelabel.engine.select.similarities import Similarities
from napari_slicelabel.engine.select.thumbnails import Thumbnails, small_picture
from napari_slicelabel.errors import MissingFileError

DATA = Path(os.environ.get("SLICELABEL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
NAMES = (
    "synthetic",
    "mni152",
    "em_vnc_sstem",
    "em_fib25_medulla",
    "med_mni152_tissue",
    "med_itksnap_mricrop",
    "med_abide_subcortical",
    "med_spine_t1",
)
BUDGETS = (1, 2, 3, 5, 10, 20)
DRAWS = 20


def image_of(name: str) -> Volume:
    if name == "synthetic":
        return Volume.from_array(synthetic_em().image)
    if name == "mni152":
        try:
            return Volume.from_array(mni152().image)
        except MissingFileError as error:
            pytest.skip(str(error))
    file = DATA / f"{name}.npz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    return open_volume(f"{file}::image")


def similarities_of(name: str) -> Similarities:
    image = image_of(name)
    pictures = np.stack([small_picture(image, SliceRef("z", index)) for index in range(image.depth("z"))])
    thumbnails = Thumbnails(stack(len(pictures)), pictures, "")
    compute = FEATURES["intensity"].compute
    rows = drain(compute([thumbnails], torch.device("cpu"), np.random.default_rng(0), SelectOptions(), None))
    return Similarities(rows - rows.mean(0))


def stack(depth: int) -> Stack:
    return Stack("v", "z", depth, tuple(range(depth)))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_simple_covers_more(name: str) -> None:
    similarities, rng = similarities_of(name), np.random.default_rng(0)
    count = len(similarities)

    def covered(chosen: list[int]) -> float:
        return greedy_cover(similarities, 0, annotated=chosen).start

    for budget in (number for number in BUDGETS if number < count):
        spread = [ref.index for _, ref in interval(Candidates((stack(count),)), budget, rng)]
        found = best_cover(similarities, budget, others=[spread]).coverage[-1]
        draws = [covered(rng.choice(count, budget, replace=False).tolist()) for _ in range(DRAWS)]
        assert found >= covered(spread)
        assert found >= np.mean(draws)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [2, 3])
def test_little_is_missing_to_the_optimum(name: str, budget: int) -> None:
    """Of 30 slices spread over the stack, all choices can be tried."""
    whole = similarities_of(name).rows
    few = Similarities(whole[np.linspace(0, len(whole) - 1, min(30, len(whole))).astype(int)])
    sims = few.to_all(np.arange(len(few))).astype(np.int64)
    optimum = max(int(sims[list(chosen)].max(0).sum()) for chosen in combinations(range(len(few)), budget))
    assert sims[list(best_cover(few, budget).order)].max(0).sum() >= 0.95 * optimum
