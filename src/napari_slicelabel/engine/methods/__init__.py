"""The methods that can fill a volume: an explicit table, no discovery."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_slicelabel.engine.config import MethodConfig
from napari_slicelabel.engine.methods import flow, gradual, interpolate, self_label, self_train
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from napari_slicelabel.engine.context import RunContext
    from napari_slicelabel.engine.events import Event
    from napari_slicelabel.engine.work import Stack, Work


@dataclass(frozen=True)
class Method:
    """One way to fill a volume.

    Attributes
    ----------
    name : str
        What the user types.
    title : str
        One line for lists and forms.
    known : str
        What our tests say of it, for those who choose; figures are in docs/benchmarks.md.
    config : type of MethodConfig
        The method's own parameters; each method has its own class.
    propagate : callable
        Takes the run's context and a config of that class, writes slices through the context and yields events.
    work : callable
        Takes the volumes to fill, how many classes there are and a config of that class; says how much there is to do.
    """

    name: str
    title: str
    known: str
    config: type[MethodConfig]
    # Any: each method takes its own config class, which `run` looks up by the class of the config it got
    propagate: "Callable[[RunContext, Any], Iterator[Event]]"
    work: "Callable[[Sequence[Stack], int, Any], Work]"


_ALL = (
    Method(
        name="interpolate",
        title="Signed-distance interpolation between the painted slices",
        known="Looks at shapes alone: a first look, and a floor. Flow was ahead of it in every volume of our tests.",
        config=interpolate.InterpolateConfig,
        propagate=interpolate.propagate,
        work=interpolate.work,
    ),
    Method(
        name=flow.NAME,
        title="Correspondence flow: carries labels along, by what slices look like",
        known="The best with a single painted slice; good where things go on from slice to slice, not in EM.",
        config=flow.FlowConfig,
        propagate=flow.propagate,
        work=flow.work,
    ),
    Method(
        name=self_label.NAME,
        title="A 2D network learns from the painted slices and from what it labels; flow is heard, too",
        known="A good first choice: the best, or within two points of it, in all five volumes of our tests.",
        config=self_label.SelfLabelConfig,
        propagate=self_label.propagate,
        work=self_label.work,
    ),
    Method(
        name=gradual.NAME,
        title="A 3D network learns from regions that grow around what was painted; flow is heard, too",
        known="As good as self-label in four of five volumes of our tests; on a CPU it takes twice as long.",
        config=gradual.GradualConfig,
        propagate=gradual.propagate,
        work=gradual.work,
    ),
    Method(
        name=self_train.NAME,
        title="A 3D network learns on from its own labels and those of a 2D one along three axes; flow is heard, too",
        known="The longest to run; behind self-label in our tests, by 1 to 6 points.",
        config=self_train.SelfTrainConfig,
        propagate=self_train.propagate,
        work=self_train.work,
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}


def method_of(config: MethodConfig) -> Method:
    """Return the method that a config belongs to.

    Raises
    ------
    InputError
        The config's class is not that of a method.
    """
    for method in METHODS.values():
        if type(config) is method.config:
            return method
    raise InputError(
        f"{type(config).__name__} is not the config of a method; make one with build_config({'|'.join(METHODS)}, ...)"
    )
