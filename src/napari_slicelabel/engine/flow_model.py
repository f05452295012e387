"""Networks of correspondence on disk: one trained on some volumes carries labels in others."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue
from torch import Tensor

from napari_slicelabel.engine.correspondence import CorrespondenceConfig, CorrespondenceNetwork
from napari_slicelabel.engine.guided import GuidedConfig, GuidedNetwork
from napari_slicelabel.engine.model_files import (
    DAMAGE,
    DESCRIPTION_NAME,
    WEIGHTS_NAME,
    load_weights,
    read_description,
    unreadable,
)
from napari_slicelabel.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from napari_slicelabel.data.project import Project

_KEY = "correspondence"
# What the shapes of weights, or their meaning, depend on. The noise does not belong here: it is that of the new images.
_FIXED = ("image_channels", "encoder", "profile", "stride")


def model_folder(project: "Project", text: str) -> Path:
    """Return the folder that a run id of the project, or a path, stands for; a run id goes first."""
    if text in project.run_ids():
        return project.run_folder(text) / "model"
    return Path(text).expanduser()


def describe(network: CorrespondenceNetwork) -> dict[str, JsonValue]:
    """Return what network.json says of a network, for `fitting_weights`."""
    return {_KEY: network.config.model_dump(mode="json")}


def fitting_weights(folder: Path, wanted: CorrespondenceConfig, guides: int) -> dict[str, Tensor]:
    """Return the weights of a trained network that is to be used for other volumes.

    Parameters
    ----------
    folder : Path
        The folder ``model`` of a run of flow.
    wanted : CorrespondenceConfig
        The network that the weights are for.
    guides : int
        Channels of pseudo-labels that it sees; 0 = none: then the part of the model that sees them is left out.

    Returns
    -------
    dict of str to Tensor
        For a `GuidedNetwork` where there are `guides`, else for a `CorrespondenceNetwork`; on the CPU.

    Raises
    ------
    MissingFileError
        No model in the folder.
    InputError
        It is damaged, of another method, or of another architecture; says what to set.
    """
    for path in (folder / DESCRIPTION_NAME, folder / WEIGHTS_NAME):
        if not path.is_file():
            raise MissingFileError(
                f"model: {path} does not exist; give the id, or the folder `model`, of a run of flow"
            )
    try:
        record = read_description(folder)
        if _KEY not in record:
            raise InputError(
                f"model: {folder} holds a network of {record.get('method', 'another method')}, not of flow; give the"
                " id, or the folder `model`, of a run of flow"
            )
        network = load_weights(folder, record, lambda: _built(record[_KEY]))
    except InputError:
        raise
    except DAMAGE as error:
        raise unreadable(f"model: {folder}", error) from error
    _check(folder, network.config, wanted, guides)
    tensors: dict[str, Tensor] = network.state_dict()
    return tensors if guides else {name: tensors[name] for name in CorrespondenceNetwork(wanted).state_dict()}


def _built(record: JsonValue) -> CorrespondenceNetwork:
    if isinstance(record, dict) and "guides" in record:
        return GuidedNetwork(GuidedConfig.model_validate(record))
    return CorrespondenceNetwork(CorrespondenceConfig.model_validate(record))


def _check(folder: Path, given: CorrespondenceConfig, wanted: CorrespondenceConfig, guides: int) -> None:
    for name in _FIXED:
        theirs, ours = getattr(given, name), getattr(wanted, name)
        if theirs == ours:
            continue
        if name == "image_channels":
            raise InputError(f"model: {folder} was trained on images of {theirs} channels, these have {ours}")
        raise InputError(f"model: {folder} has {name}={theirs}, this run {name}={ours}; set {name}={theirs}")
    seen = given.guides if isinstance(given, GuidedConfig) else 0
    if guides and seen != guides:
        what = f"has pseudo-labels of {seen} classes for a guide, this run has {guides}" if seen else "has no guide"
        raise InputError(f"model: {folder} {what}; set guide=off")
