"""Every network definition, and how a network is kept on disk.

The networks are built through segmentation-models-pytorch, and in `engine.unets` from its parts.
"""

# No `from __future__ import annotations`: pydantic reads the annotations when the class is made.
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from torch import nn

from napari_slicelabel.engine.model_files import (
    DAMAGE,
    DESCRIPTION_NAME,
    WEIGHTS_NAME,
    load_weights,
    read_description,
    unreadable,
)
from napari_slicelabel.engine.shaped_network import ShapedNetwork
from napari_slicelabel.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from napari_slicelabel.engine.volume_networks import VolumeNetwork

OUTPUT_STRIDE = 16
"""Height and width that `SliceNetwork` takes are multiples of it with the plain encoders."""

PLAIN = "plain"
ANDERSON = "anderson"


class NetworkConfig(BaseModel):
    """What a network is made of, and what it is fed.

    The channels of the input, in order: ``image_channels`` for each of the ``in_slices`` neighbouring slices; with
    `coordinates` the position (h, w, depth), each from -1 to 1; and for each of `shape_classes` the signed distance to
    the border of that class as neighbouring labelled slices have it, divided by its radius.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = Field(PLAIN, description="plain, anderson (S1 as published), or any encoder name of smp.")
    encoder_weights: str = Field("none", description="none, or a name of weights that smp offers for the encoder.")
    filters: tuple[int, ...] = Field((16, 32, 64, 96, 128), min_length=5, max_length=5)
    image_channels: int = Field(1, ge=1)
    in_slices: Literal[1, 3, 5] = 3
    coordinates: bool = False
    classes: tuple[int, ...] = Field(min_length=1, max_length=254, description="Label values of channels 1 and up.")
    shape_classes: tuple[int, ...] = ()
    mirror: bool = Field(False, description="Whether to predict the mean over four mirror images.")

    @model_validator(mode="after")
    def _shapes_are_classes(self) -> Self:
        if not set(self.shape_classes) <= set(self.classes):
            raise ValueError(f"shape_classes {self.shape_classes} are not all among the classes {self.classes}")
        return self

    @property
    def image_planes(self) -> int:
        """Channels of the input that hold intensities."""
        return self.image_channels * self.in_slices

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.image_planes + 3 * self.coordinates + len(self.shape_classes)


class SliceNetwork(ShapedNetwork):
    """A 2D network that labels slices, seeing the image and, if it was built so, the shapes of labelled neighbours.

    Parameters
    ----------
    config : NetworkConfig
        What it is made of.

    Raises
    ------
    InputError
        An encoder or weights that smp does not know, or weights that cannot be had offline.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(_base(config), config.classes, config.shape_classes)
        self.config = config
        if config.shape_classes:
            head = _last_convolution(self.base)
            nn.init.zeros_(head.weight)
            if head.bias is not None:
                nn.init.zeros_(head.bias)

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of it."""
        encoder = getattr(self.base, "encoder", None)
        return int(getattr(encoder, "output_stride", OUTPUT_STRIDE))


def _base(config: NetworkConfig) -> nn.Module:
    # importing smp takes seconds, which a list of methods should not
    import segmentation_models_pytorch as smp

    from napari_slicelabel.engine.unets import AndersonUnet, PlainUnet

    out_channels = 1 + len(config.classes)
    if config.encoder in (PLAIN, ANDERSON) and config.encoder_weights != "none":
        raise InputError(f"encoder {config.encoder} has no pretrained weights; set encoder_weights=none")
    if config.encoder == PLAIN:
        return PlainUnet(config.in_channels, config.filters, out_channels)
    if config.encoder == ANDERSON:
        return AndersonUnet(config.in_channels, config.filters, out_channels)
    weights = None if config.encoder_weights == "none" else config.encoder_weights
    try:
        network: nn.Module = smp.Unet(
            config.encoder,
            encoder_weights=weights,
            in_channels=config.in_channels,
            classes=out_channels,
            decoder_channels=(256, 128, 64, 32, 16),
            decoder_use_norm={"type": "instancenorm", "affine": True},
        )
    except (KeyError, ValueError) as error:
        raise InputError(
            f"encoder {config.encoder!r} with weights {config.encoder_weights!r} is not known to"
            f" segmentation-models-pytorch: {error}; use encoder=plain or a name such as resnet18"
        ) from error
    except OSError as error:
        raise InputError(
            f"the weights {config.encoder_weights!r} of encoder {config.encoder} could not be fetched: {error}; use"
            " encoder_weights=none, which trains from scratch and needs no network"
        ) from error
    return network if weights else _without_batch_norm(network)


def _without_batch_norm(network: nn.Module) -> nn.Module:
    """Put instance norm in the place of batch norm: statistics of a few slices say nothing about the others."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, nn.InstanceNorm2d(child.num_features, affine=True))
        else:
            _without_batch_norm(child)
    return network


def _last_convolution(network: nn.Module) -> nn.Conv2d:
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1]


def describe(config: NetworkConfig, **more: JsonValue) -> dict[str, JsonValue]:
    """Return what ``network.json`` holds: the network and whatever else is needed to apply it."""
    return {"network": config.model_dump(mode="json"), **more}


def load_network(folder: Path) -> tuple[SliceNetwork, Mapping[str, JsonValue]]:
    """Return a saved 2D network; see `load_model`."""
    network, record = load_model(folder)
    if not isinstance(network, SliceNetwork):
        raise InputError(f"the model in {folder} is a 3D network; give the folder of a run of a 2D method")
    return network, record


def load_model(folder: Path) -> "tuple[SliceNetwork | VolumeNetwork, Mapping[str, JsonValue]]":
    """Return a saved network, in evaluation mode on the CPU, and its description.

    Parameters
    ----------
    folder : Path
        The folder ``model`` of a run.

    Returns
    -------
    tuple of (SliceNetwork or VolumeNetwork, mapping)
        The mapping is what was saved beside the weights.

    Raises
    ------
    MissingFileError
        No such folder, or a file of it is missing.
    InputError
        Files that are damaged or of another version.
    """
    for path in (folder / DESCRIPTION_NAME, folder / WEIGHTS_NAME):
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist; give the folder `model` of a finished training run")
    try:
        record = read_description(folder)
        network = load_weights(folder, record, lambda: _built(record))
    except DAMAGE as error:
        raise unreadable(f"the model in {folder}", error) from error
    return network.eval(), record


def _built(record: Mapping[str, JsonValue]) -> "SliceNetwork | VolumeNetwork":
    from napari_slicelabel.engine.volume_networks import VolumeNetwork, VolumeNetworkConfig

    if "volume_network" in record:
        return VolumeNetwork(VolumeNetworkConfig.model_validate(record["volume_network"]))
    config = NetworkConfig.model_validate(record["network"])
    return SliceNetwork(_without_fetching(config))


def _without_fetching(config: NetworkConfig) -> NetworkConfig:
    """Return the config of a network whose weights are at hand: its encoder is built from what is installed."""
    if set(config.encoder) & set(":/\\"):
        # timm takes such names for those of a web site, or of a folder from which it would unpickle
        raise ValueError(f"its encoder {config.encoder!r} is none that is installed")
    return config.model_copy(update={"encoder_weights": "none"})
