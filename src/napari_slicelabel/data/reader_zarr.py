"""Reader of zarr and OME-Zarr, in folders and in zip files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_slicelabel.data.readers import Opened, Request, attribute_sizes, axis_letters
from napari_slicelabel.errors import InputError

if TYPE_CHECKING:
    from napari_slicelabel.data.units import Stated

ZARR_MARKS = ("zarr.json", ".zarray", ".zgroup")
"""Files of which a zarr array or group has one."""


def read_zarr(request: Request) -> Opened:
    """Open a zarr array, or one level of an OME-Zarr image (0.1 to 0.5), format 2 or 3, in a folder or a zip file.

    Notes
    -----
    ``img.ome.zarr/labels/cells`` and ``img.ome.zarr::labels/cells`` both name a part of the hierarchy; a level that is
    named as a part (``img.ome.zarr::1``) keeps the voxel size that the image states for it.
    When labels are wanted of an image that has exactly one label image, that one is taken; of one that has none, the
    image itself.
    """
    import zarr

    root = _Hierarchy(request.path)
    node = root.node(request.member)
    if node is None:
        raise InputError(f"{request.path} has no {request.member}; it holds {', '.join(root.children(''))}")
    if isinstance(node, zarr.Array):
        return _array(request, root, node)
    ome = _ome(node)
    if request.labels and "image-label" not in ome and root.node(_join(request.member, "labels")) is not None:
        chosen = _labels(request, root)
        if chosen:
            return read_zarr(replace(request, member=chosen))
    if not ome.get("multiscales"):
        return read_zarr(replace(request, member=_only_part(request, root, ome)))
    return _level(request, root, request.member, ome)


class _Hierarchy:
    """The groups and arrays below a path. One that lies inside a zarr folder may ask what lies above."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def store(self) -> Any:
        if self.path.is_dir():
            from napari_slicelabel.data.zarr_stores import PlainStore

            return PlainStore(self.path)
        from zarr.storage import ZipStore

        return ZipStore(self.path, mode="r")

    def node(self, member: str) -> Any:
        """Return a group or an array; None where there is none."""
        import zarr

        try:
            if self.path.is_dir():
                from napari_slicelabel.data.zarr_stores import PlainStore

                place = self.path / member if member else self.path
                return zarr.open(PlainStore(place), mode="r") if place.exists() else None
            return zarr.open(self.store(), mode="r", path=member or None)
        except FileNotFoundError:
            return None

    def children(self, member: str) -> list[str]:
        """Return the names of the parts of a group."""
        if self.path.is_dir():
            folder = self.path / member if member else self.path
            return sorted(p.name for p in folder.iterdir() if any((p / m).exists() for m in ZARR_MARKS))
        node = self.node(member)
        return sorted(node.keys()) if hasattr(node, "keys") else []


def _array(request: Request, root: _Hierarchy, node: Any) -> Opened:
    """Open an array: as the level of an image that it is, or as what its own attributes say."""
    parts = [p for p in request.member.split("/") if p]
    above: list[tuple[_Hierarchy, str, str]] = [
        (root, "/".join(parts[:n]), "/".join(parts[n:])) for n in range(len(parts) - 1, -1, -1)
    ]
    if not parts and root.path.is_dir():
        # FILE.zarr/1 is the same as FILE.zarr::1
        above = [
            (_Hierarchy(folder), "", root.path.relative_to(folder).as_posix()) for folder in list(root.path.parents)[:3]
        ]
    for hierarchy, group, path in above:
        is_group = group or not hierarchy.path.is_dir() or any((hierarchy.path / m).exists() for m in ZARR_MARKS)
        parent = hierarchy.node(group) if is_group else None
        ome = _ome(parent) if parent is not None else {}
        for multiscale in ome.get("multiscales") or ():
            for dataset in multiscale.get("datasets", ()):
                if dataset.get("path") == path:
                    _no_more_levels(request)
                    return _described(request, node, multiscale, dataset, ome)
    _no_more_levels(request)
    names = getattr(node.metadata, "dimension_names", None) or node.attrs.get("_ARRAY_DIMENSIONS") or ()
    axes = axis_letters(list(names)) if len(names) == node.ndim else ""
    return Opened(node, axes, attribute_sizes(dict(node.attrs), axes), member=request.member)


def _no_more_levels(request: Request) -> None:
    if request.level:
        raise InputError(f"{request.path}: level {request.level}; this array has one resolution, level 0")


def _level(request: Request, root: _Hierarchy, member: str, ome: Mapping[str, Any]) -> Opened:
    """Open one level of an OME-Zarr image."""
    multiscale = ome["multiscales"][0]
    datasets = multiscale["datasets"]
    if request.level >= len(datasets):
        raise InputError(
            f"{request.path}: level {request.level}; it has {len(datasets)} levels, 0 to {len(datasets) - 1}"
        )
    dataset = datasets[request.level]
    array = root.node(_join(member, str(dataset["path"])))
    if array is None:
        raise InputError(f"{request.path}: its level {dataset['path']} is not there; the copy is incomplete")
    return _described(request, array, multiscale, dataset, ome)


def _described(
    request: Request, array: Any, multiscale: Mapping[str, Any], dataset: Mapping[str, Any], ome: Mapping[str, Any]
) -> Opened:
    """Return an array with what the metadata of its image say about it."""
    # before 0.3 there were no axes: always tczyx
    described = [a if isinstance(a, Mapping) else {"name": a} for a in multiscale.get("axes") or "tczyx"]
    axes = axis_letters([a.get("name") for a in described], [a.get("type", "") for a in described])
    scale = np.ones(len(described))
    for transform in (*dataset.get("coordinateTransformations", ()), *multiscale.get("coordinateTransformations", ())):
        if transform.get("type") == "scale":
            scale = scale * np.asarray(transform["scale"], float)
    stated: dict[str, Stated] = {
        letter: (size, str(axis.get("unit") or ""))
        for axis, letter, size in zip(described, axes, scale.tolist(), strict=False)
        if letter in "zyx"
    }
    channels = _mapping(ome.get("omero")).get("channels") or ()
    names = tuple(str(_mapping(c).get("label") or f"channel {i}") for i, c in enumerate(channels))
    return Opened(array, axes, stated, request.member, channel_names=names)


def _labels(request: Request, root: _Hierarchy) -> str:
    """Return the path of the only label image of an image; "" where it has none."""
    folder = _join(request.member, "labels")
    names: Sequence[str] = _ome(root.node(folder)).get("labels") or root.children(folder)
    if len(names) > 1:
        raise InputError(
            f"{request.path} has the label images {', '.join(names)}; give one: {request.path}::{folder}/{names[0]}"
        )
    return _join(folder, names[0]) if names else ""


def _only_part(request: Request, root: _Hierarchy, ome: Mapping[str, Any]) -> str:
    """Return the part of a group without image metadata that is meant."""
    children = root.children(request.member)
    if "bioformats2raw.layout" in ome and "0" in children:
        return _join(request.member, "0")
    if len(children) == 1:
        return _join(request.member, children[0])
    parts = ", ".join(children) or "none"
    raise InputError(
        f"{request.path} is a zarr group without OME-Zarr metadata; give one of its parts as"
        f" {request.path.name}::PART: {parts}"
    )


def _ome(node: Any) -> Mapping[str, Any]:
    """Return the OME metadata of a group: 0.5 keeps them under one key, 0.4 at the top."""
    attributes = dict(node.attrs)
    return _mapping(attributes.get("ome")) or attributes


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _join(*parts: str) -> str:
    return "/".join(p for p in parts if p)
