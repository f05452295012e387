"""What `benchmarks.fuzz` hands to commands: files of every format, the files of a project, configs, words.

A target that damages a file names the command that reads it, and what that gives when nothing is damaged.
"""

from __future__ import annotations

import json
import math
import string
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import damage
from benchmarks.forks import slicelabel
from benchmarks.storm import METHODS, PROJECT, STATES, State, digest, newest_run, run_arguments, whole

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SLICES = "2,8"
BYTES, NAMES, TEXT = tuple(damage.OF_BYTES), tuple(damage.OF_NAMES), tuple(damage.OF_TEXT)


@dataclass(frozen=True)
class Target:
    """Something to damage, or to make up.

    Attributes
    ----------
    name : str
        What it is called in reports.
    state : str
        The folder that it lies in, of `STATES`.
    files : str
        Pattern of the files of which one is damaged; "" where the words of the command are made up instead.
    kinds : tuple of str
        Names in `damage.ALL`, or what `words` can make up.
    command : callable
        Takes the folder, returns the words of the command.
    result : callable
        Takes the folder after the command, returns its voxels as JSON. May raise what the package raises.
    sealed : bool
        Whether the format has checksums, so that other bytes cannot pass for its content.
    optional : bool
        Whether the file may be missing: what it said is then as if it had never been said.
    weight : int
        How often it has its turn before the others have theirs.
    words : callable, optional
        Takes folder, kind and random numbers, returns the words of the command.
    """

    name: str
    state: str
    files: str
    kinds: tuple[str, ...]
    command: Callable[[Path], Sequence[object]] = lambda _: ()
    result: Callable[[Path], Any] = lambda _: None
    sealed: bool = False
    optional: bool = False
    weight: int = 1
    words: Callable[[Path, str, random.Random], Sequence[object]] | None = None

    def tells(self, kind: str) -> bool:
        """Return whether a reader can tell that it is damaged in such a way."""
        if kind in damage.PLAIN:
            return not (self.optional and kind == "gone")
        return self.sealed and kind in damage.OF_CONTENT


# images and labels of every format


def _specimen() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image and labels, (12, 40, 48): a tilted rod in noise."""
    z, y, x = np.indices((12, 40, 48))
    labels = (np.hypot(y - 15 - z, x - 20 - z / 2) < 7).astype(np.uint8)
    labels[np.hypot(y - 15 - z, x - 20 - z / 2) < 3] = 2
    grey = np.random.default_rng(0).normal(60 + 70 * labels.astype(float), 10)
    return grey.clip(0, 255).astype(np.uint8), labels


def _write_tiff(path: Path, array: NDArray[Any], **options: Any) -> None:
    import tifffile

    tifffile.imwrite(path, array, photometric="minisblack", **options)


def _write_hdf5(path: Path, array: NDArray[Any], **options: Any) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("volume", data=array, chunks=(4, 20, 24), **options)


def _write_nifti(path: Path, array: NDArray[Any]) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.diag([0.5, 0.5, 2, 1])), path)


def _write_mrc(path: Path, array: NDArray[Any]) -> None:
    import mrcfile

    with mrcfile.new(path) as file:
        file.set_data(array.astype(np.int16))


def _write_zarr(path: Path, array: NDArray[Any], zarr_format: int) -> None:
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    group.create_array("0", data=array, chunks=(4, 20, 24))
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = {"type": "scale", "scale": [2.0, 0.5, 0.5]}
    entry = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    if zarr_format == 2:
        group.attrs["multiscales"] = [{"version": "0.4", **entry}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [entry]}


def _write_sections(path: Path, array: NDArray[Any]) -> None:
    path.mkdir()
    for number, plane in enumerate(array):
        _write_tiff(path / f"section_{number:03}.tif", plane, compression="zlib", metadata=None)


@dataclass(frozen=True)
class Format:
    """A way to store a volume; `sealed` where a checksum stands for all voxels."""

    ending: str
    write: Callable[[Path, NDArray[Any]], None]
    sealed: bool = False
    files: str = ""


FORMATS = {
    "tif": Format(".tif", _write_tiff),
    "tif deflate": Format(".tif", partial(_write_tiff, compression="zlib"), sealed=True),
    "tif lzw": Format(".tif", partial(_write_tiff, compression="lzw")),
    "tif tiles": Format(".tif", partial(_write_tiff, tile=(16, 16), compression="zlib"), sealed=True),
    "tif imagej": Format(".tif", partial(_write_tiff, imagej=True, metadata={"axes": "ZYX", "spacing": 2})),
    "ome.tif": Format(".ome.tif", partial(_write_tiff, metadata={"axes": "ZYX", "PhysicalSizeX": 0.5})),
    "npy": Format(".npy", np.save),
    "npz": Format(".npz", lambda path, array: np.savez_compressed(path, image=array), sealed=True),
    "h5": Format(".h5", _write_hdf5),
    "h5 gzip": Format(".h5", partial(_write_hdf5, compression="gzip", fletcher32=True), sealed=True),
    "nii": Format(".nii", _write_nifti),
    "nii.gz": Format(".nii.gz", _write_nifti, sealed=True),
    "mrc": Format(".mrc", _write_mrc),
    "zarr 2": Format(".zarr", partial(_write_zarr, zarr_format=2), files="**/*"),
    "ome.zarr": Format(".ome.zarr", partial(_write_zarr, zarr_format=3), files="**/*"),
    "sections": Format("", _write_sections, sealed=True, files="*"),
}


def _file(role: str, name: str) -> str:
    return f"{role}_{name.split('.')[0].replace(' ', '_')}{FORMATS[name].ending}"


def _prepare_format(folder: Path, name: str) -> None:
    image, labels = _specimen()
    np.save(folder / "plain.npy", image)
    for role, array in (("image", image), ("labels", labels)):
        FORMATS[name].write(folder / _file(role, name), array)
    code = slicelabel("new", folder / PROJECT, folder / "plain.npy")()
    if code:
        raise RuntimeError(f"new: exit {code}")


def _all_voxels(folder: Path, name: str = "fresh.slicelabel") -> str:
    from napari_slicelabel.data.boxes import Box
    from napari_slicelabel.data.project import Project

    project = Project.open(folder / name)
    volume = project.volume(project.names[0])
    return digest(volume.read(Box.whole(volume.shape)))


def _painted_voxels(folder: Path) -> str:
    from napari_slicelabel.data.project import Project

    project = Project.open(folder / PROJECT)
    return digest(whole(project.annotation(project.names[0])))


def _format_targets() -> Iterator[Target]:
    for name, one in FORMATS.items():
        STATES[f"format {name}"] = State(partial(_prepare_format, name=name))
        # a chunk that is not there is one of zeros, says the specification of zarr
        optional = "zarr" in name
        kinds = (*BYTES, *NAMES, *(TEXT[:3] if optional else ()))
        for role in ("image", "labels"):
            file = _file(role, name)
            files = f"{file}/{one.files}" if one.files else file

            def command(folder: Path, role: str = role, file: str = file) -> Sequence[object]:
                if role == "image":
                    return ["new", folder / "fresh.slicelabel", folder / file]
                return ["annotate", folder / PROJECT, "--labels", folder / file, "--slices", SLICES]

            result = _all_voxels if role == "image" else _painted_voxels
            yield Target(f"{role} {name}", f"format {name}", files, kinds, command, result, one.sealed, optional)


# the files of a project


def _labels_in(name: str) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        from napari_slicelabel.data.boxes import Box
        from napari_slicelabel.data.formats import open_labels

        volume = open_labels(folder / name)
        return digest(volume.read(Box.whole(volume.shape)))

    return read


def _predicted(folder: Path) -> str:
    from napari_slicelabel.data.project import Project
    from napari_slicelabel.engine.context import run_store

    project = Project.open(folder / PROJECT)
    store = run_store(project, project.run_folder(newest_run(folder)), "prediction", "image", "z")
    return digest(np.stack([store.read(z) for z in range(16)]))


def _proposed(folder: Path) -> Any:
    from napari_slicelabel.data.project import Project

    return Project.open(folder / PROJECT).ranking("again")["order"]


def _export(folder: Path) -> Sequence[object]:
    return ["export", folder / PROJECT, "--run", newest_run(folder), "--to", folder / "out.tif"]


def _apply(folder: Path) -> Sequence[object]:
    model = folder / PROJECT / "runs" / newest_run(folder) / "model"
    return ["apply", model, folder / "image.npy", "--out", folder / "out.tif", "--device", "cpu"]


def _resume(folder: Path) -> Sequence[object]:
    return ["run", folder / PROJECT, "--resume", newest_run(folder)]


def _select(folder: Path) -> Sequence[object]:
    words = ["--method", "representative", "--features", "intensity", "--budget", 3, "--name", "again"]
    return ["select", folder / PROJECT, *words]


def _rank(folder: Path) -> None:
    for name in ("kept", "again"):
        words = [*_select(folder)[:-1], name]
        if slicelabel(*words)():
            raise RuntimeError(f"{words} failed")


STATES["ranked"] = State(_rank, "painted")


def _info(folder: Path) -> Sequence[object]:
    return ["info", folder / PROJECT]


def _interpolate(folder: Path) -> Sequence[object]:
    return run_arguments(folder, "interpolate")


def _annotate_ranked(folder: Path) -> Sequence[object]:
    labels = folder / "labels.npy"
    return ["annotate", folder / PROJECT, "--labels", labels, "--selection", "kept", "--force"]


def _foreground(folder: Path) -> Sequence[object]:
    return ["select", folder / PROJECT, "--method", "foreground", "--budget", 2, "--name", "again"]


def _project_targets() -> Iterator[Target]:
    all_kinds, no_text = (*BYTES, *NAMES, *TEXT), (*BYTES, *NAMES)
    run, finished, begun = f"{PROJECT}/runs/*", "finished interpolate", "begun self-label"
    learned = "finished self-label"
    p = PROJECT
    paint, fill, voxels = f"{p}/annotation", _interpolate, _predicted
    for name, state, files, kinds, command, result, sealed, optional in (
        ("project.json, info", finished, f"{p}/project.json", all_kinds, _info, None, False, False),
        ("project.json, run", "painted", f"{p}/project.json", all_kinds, fill, voxels, False, False),
        ("project.json, export", finished, f"{p}/project.json", all_kinds, _export, "out.tif", False, False),
        ("annotation notes", "painted", f"{paint}/*", all_kinds, fill, voxels, False, False),
        ("annotation metadata", "painted", f"{paint}/**/*.json", all_kinds, fill, voxels, False, False),
        ("annotation chunk", "painted", f"{paint}/*/0/c/**/*", no_text, fill, voxels, True, False),
        ("run.json, export", finished, f"{run}/run.json", all_kinds, _export, "out.tif", False, False),
        ("run.json, info", finished, f"{run}/run.json", all_kinds, _info, None, False, False),
        ("run.json, resume", begun, f"{run}/run.json", all_kinds, _resume, None, False, False),
        ("events.jsonl, resume", begun, f"{run}/events.jsonl", all_kinds, _resume, None, False, True),
        ("slices.csv, resume", begun, f"{run}/slices.csv", all_kinds, _resume, None, False, True),
        ("slices.csv, select", finished, f"{run}/slices.csv", all_kinds, _foreground, None, False, True),
        ("state, resume", begun, f"{run}/state/*", all_kinds, _resume, None, False, True),
        ("accepted, resume", begun, f"{run}/accepted/**/*", all_kinds, _resume, None, False, True),
        ("sets, resume", begun, f"{run}/sets/**/*", all_kinds, _resume, None, False, True),
        ("prediction metadata", finished, f"{run}/prediction/**/*.json", all_kinds, _export, "out.tif", False, False),
        ("prediction chunk", finished, f"{run}/prediction/*/0/c/**/*", no_text, _export, "out.tif", True, False),
        ("confidence, select", finished, f"{run}/confidence/**/*", all_kinds, _foreground, None, False, False),
        ("ranking", "ranked", f"{p}/selection/kept.json", all_kinds, _annotate_ranked, None, False, False),
        ("thumbnails", "ranked", f"{p}/selection/thumbnails/*", all_kinds, _select, _proposed, False, True),
        ("features", "ranked", f"{p}/selection/features/*", all_kinds, _select, _proposed, False, True),
        ("network.json", learned, f"{run}/model/network.json", all_kinds, _apply, "out.tif", False, False),
        ("weights", learned, f"{run}/model/*.safetensors", no_text, _apply, "out.tif", True, False),
        ("image of a project", "painted", "image.npy", no_text, fill, voxels, False, False),
    ):
        read = _labels_in(result) if isinstance(result, str) else result or (lambda _: None)
        yield Target(name, state, files, kinds, command, read, sealed, optional)


# words and configs


NUMBERS = (
    "0",
    "-1",
    "1",
    "3",
    "1e3",
    "1e400",
    "nan",
    "inf",
    "-0",
    "\u0663",
    "0x10",
    "1_0",
    "1.5",
    " ",
    "1/2",
    "9" * 25,
)
WORDS = (
    *("a:b", "all", "auto", "none", "null", "*", "%s", "{}", "$HOME", "\u00e9", "\u6837", "\u202e", ":", "::", ","),
    *("", " ", "\n", "\t"),
)


def _word(rng: random.Random) -> str:
    """Return a word that nobody would give."""
    draws = (
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(WORDS),
        lambda: ",".join(rng.choice(NUMBERS) for _ in range(rng.randint(1, 5))),
        lambda: ":".join(rng.choice(NUMBERS) for _ in range(rng.randint(2, 3))),
        lambda: "".join(rng.choice(string.printable) for _ in range(rng.randint(1, 30))),
        lambda: rng.choice("ax1:,") * rng.choice((50, 300, 5000)),
        lambda: rng.choice(NUMBERS) + rng.choice(WORDS),
    )
    return rng.choice(draws)().replace("\x00", "")


def _path(folder: Path, rng: random.Random) -> str:
    """Return a path that may or may not be there."""
    word = _word(rng).replace("/", "_")
    choices = (
        f"{folder}/{word}",
        word,
        f"{folder}/image.npy::{word}",
        f"{folder}/{'d/' * 40}{word}",
        f"{folder}/{'x' * 300}.tif",
        "/dev/zero",
        "/dev/null",
        "/proc/self/mem",
        str(folder),
        f"{folder}/image.npy/{word}",
        f"{folder}/{PROJECT}",
        f"file://{folder}/image.npy",
        "~nobody/x.tif",
        f"{folder}/image.npy/",
    )
    return rng.choice(choices)


def _arguments(folder: Path, kind: str, rng: random.Random) -> Sequence[object]:
    project, labels, word = folder / PROJECT, folder / "labels.npy", _word(rng)
    runs = newest_run(folder)
    made = {
        "slices": ["annotate", project, "--labels", labels, "--slices", word],
        "every": ["annotate", project, "--labels", labels, "--every", word],
        "selection": ["annotate", project, "--labels", labels, "--selection", word],
        "labels": ["annotate", project, "--labels", _path(folder, rng), "--slices", "5"],
        "set": ["run", project, "--method", "interpolate", "--set", f"{rng.choice(_KEYS)}={word}"],
        "set any": ["run", project, "--method", rng.choice(list(METHODS)).split()[0], "--set", f"range={word}"],
        "seed": ["run", project, "--method", "interpolate", "--seed", word],
        "method": ["run", project, "--method", word],
        "resume": ["run", project, "--resume", word],
        "range": ["select", project, "--budget", "2", "--range", word],
        "budget": ["select", project, "--budget", word],
        "skip": ["select", project, "--budget", "2", "--skip", word, _word(rng)],
        "name": ["select", project, "--budget", "2", "--name", word],
        "reach": [
            "select",
            project,
            "--budget",
            "2",
            "--method",
            "representative",
            "--features",
            "intensity",
            "--reach",
            word,
        ],
        "image": ["new", folder / "fresh.slicelabel", _path(folder, rng)],
        "axes": ["new", folder / "fresh.slicelabel", folder / "image.npy", "--axes", word],
        "voxel size": ["new", folder / "fresh.slicelabel", folder / "image.npy", "--voxel-size", word, "1", "1"],
        "unit": ["new", folder / "fresh.slicelabel", folder / "image.npy", "--unit", word],
        "classes": ["new", folder / "fresh.slicelabel", folder / "image.npy", "--classes", word, _word(rng)],
        "project": [rng.choice(("info", "new", "run", "export", "evaluate")), _path(folder, rng)],
        "truth": ["evaluate", project, "--truth", _path(folder, rng)],
        "to": ["export", project, "--run", runs, "--to", _path(folder / "to", rng)],
        "run": ["export", project, "--run", word, "--to", folder / "out.tif"],
        "model": ["apply", _path(folder, rng), folder / "image.npy", "--out", folder / "out.tif"],
        "out": ["apply", project / "runs" / runs / "model", folder / "image.npy", "--out", _path(folder / "to", rng)],
        "any": [_word(rng) for _ in range(rng.randint(1, 4))],
    }
    return made[kind]


_KEYS = ("range", "stops", "axis", "volumes", "seed", "device", "preset", "calibrate", "nothing", "")
ARGUMENTS = (
    *("slices", "every", "selection", "labels", "set", "set any", "seed", "method", "resume", "range", "budget"),
    *("skip", "name", "reach", "image", "axes", "voxel size", "unit", "classes", "project", "truth", "to", "run"),
    *("model", "out", "any"),
)


def _config(folder: Path, kind: str, rng: random.Random) -> Sequence[object]:
    file = folder / "config.json"
    whole_config = {"method": "interpolate", "range": "2:12", "seed": 3, "axis": "z", "calibrate": "auto"}
    file.write_text(json.dumps(whole_config))
    if kind == "parameter":
        file.write_text(json.dumps({**whole_config, rng.choice(list(whole_config)): rng.choice(damage.ODD_VALUES)}))
    elif kind == "number":
        number = rng.choice(("1e999", "-1e999", "NaN", "Infinity", "1" * 5000, "0." + "1" * 5000, "1e-400"))
        file.write_text('{"method": "interpolate", "seed": ' + number + "}")
    elif kind == "network":
        key = rng.choice(("iterations", "width", "batch", "crop_px", "rounds", "learning_rate"))
        size = rng.choice((0, -1, 10**9, 10**30, math.inf, math.nan, "many", [3]))
        # so many are no mistake, only slow
        odd = -(10**9) if size == 10**9 else size
        method, small = METHODS["self-label"]
        file.write_text(json.dumps({"method": method, **small, key: odd}))
    else:
        damage.ALL[kind](file, rng)
    return ["run", folder / PROJECT, "--config", file]


def _word_targets() -> Iterator[Target]:
    yield Target("words", "finished interpolate", "", ARGUMENTS, weight=8, words=_arguments)
    kinds = ("parameter", "number", "network", *BYTES, *NAMES, *TEXT)
    yield Target("config", "painted", "", kinds, weight=4, words=_config)


TARGETS: dict[str, Target] = {t.name: t for t in (*_format_targets(), *_project_targets(), *_word_targets())}
