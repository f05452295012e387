"""Slices drawn at random: the baseline that a selector has to beat."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from napari_slicelabel.data.boxes import SliceRef
    from napari_slicelabel.engine.select.candidates import Candidates


def random(candidates: "Candidates", budget: int, rng: "np.random.Generator") -> list[tuple[str, "SliceRef"]]:
    """Return `budget` different candidates, each as likely as any other.

    All slices are put in an order, those that may not be proposed too: when one drops out the others stay.
    """
    everything = [stack.ref(index) for stack in candidates.stacks for index in stack.indices]
    free = {stack.ref(index) for stack in candidates.stacks for index in stack.free}
    order = (everything[number] for number in rng.permutation(len(everything)))
    return [item for item in order if item in free][:budget]
