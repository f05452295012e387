"""The contract of the command line: what scripts may rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from napari_slicelabel import cli, terminal
from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.events import Finished, Progress, SliceDone, Started
from napari_slicelabel.engine.record import RunRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from napari_slicelabel.data.samples import Sample
    from napari_slicelabel.engine.events import Event


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def slicelabel(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs one command in this process."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture
def folder(project: Project) -> Path:
    return project.path


@pytest.fixture
def painted(folder: Path, labels_file: Path, slicelabel: Callable[..., Answer]) -> Path:
    """The folder of a project with slices 2, 7 and 12 annotated."""
    assert slicelabel("annotate", folder, "--labels", labels_file, "--every", 5).code == 0
    return folder


@pytest.fixture
def finished(painted: Path, slicelabel: Callable[..., Answer]) -> tuple[Path, str]:
    """A project's folder and the id of its run."""
    return painted, slicelabel("run", painted, "--method", "interpolate").json["run"]


def assert_refused(answer: Answer, *words: str) -> None:
    """Exit code 2, nothing on stdout, and one clear line at the end of stderr."""
    assert answer.code == 2
    assert answer.out == ""
    last = answer.err.strip().splitlines()[-1]
    assert last.startswith("slicelabel: ")
    assert "Traceback" not in answer.err
    for word in words:
        assert word in last


def test_new_describes_the_project(tmp_path: Path, image_file: Path, slicelabel: Callable[..., Answer]) -> None:
    path = tmp_path / "new.slicelabel"
    answer = slicelabel(
        "new", path, image_file, "--voxel-size", 30, 6, 6, "--unit", "nm", "--classes", "mito", "membrane"
    )
    assert answer.code == 0
    volume = answer.json["volumes"]["tiny"]
    assert volume["shape"] == [16, 64, 64]
    assert (volume["voxel_size"], volume["unit"]) == ([30, 6, 6], "nanometer")
    assert answer.json["classes"] == {"1": "mito", "2": "membrane"}
    assert slicelabel("info", path).json == answer.json


def test_new_takes_several_images_and_options_anywhere(
    tmp_path: Path, image_file: Path, slicelabel: Callable[..., Answer]
) -> None:
    np.savez(tmp_path / "more.npz", left=np.load(image_file))
    answer = slicelabel("new", tmp_path / "p.slicelabel", "--axes", "zyx", image_file, f"{tmp_path / 'more.npz'}::left")
    assert list(answer.json["volumes"]) == ["tiny", "left"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no image"]),
        (["missing.tif"], ["missing.tif", "no such file"]),
        (["flat.npy"], ["flat.npy"]),
        (["broken.tif"], ["broken.tif"]),
        (["tiny.npy", "--voxel-size", "3", "4"], ["--voxel-size"]),
        (["tiny.npy", "--unit", "furlong"], ["furlong"]),
        (["tiny.npy", "--classes", "a", "a"], ["given twice"]),
        (["tiny.npy", "--bogus"], ["--bogus"]),
    ],
    ids=["no image", "missing", "1D", "not a TIFF", "two sizes", "unit", "classes", "option"],
)
def test_new_refuses(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    image_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    slicelabel: Callable[..., Answer],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("flat.npy", np.arange(5))
    (tmp_path / "broken.tif").write_bytes(b"no TIFF at all")
    assert_refused(slicelabel("new", "p.slicelabel", *arguments), *words)
    assert not (tmp_path / "p.slicelabel").exists()


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["run", "p", "--device", "tpu"], ["select", "p"]])
def test_usage_errors_are_one_line(arguments: list[str], slicelabel: Callable[..., Answer]) -> None:
    answer = slicelabel(*arguments)
    assert_refused(answer)
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize(
    "command", ["select --budget 2", "annotate --labels x.npy --every 2", "info", "run --method x"]
)
def test_commands_need_a_project(command: str, tmp_path: Path, slicelabel: Callable[..., Answer]) -> None:
    name, *options = command.split()
    assert_refused(slicelabel(name, tmp_path / "nowhere", *options), "nowhere", "no such folder")


def test_select_keeps_a_ranking_that_annotate_takes(
    folder: Path, labels_file: Path, slicelabel: Callable[..., Answer]
) -> None:
    ranking = slicelabel("select", folder, "--method", "interval", "--budget", 3)
    assert ranking.code == 0
    assert [item["index"] for item in ranking.json["order"]] == [8, 2, 13]
    assert slicelabel("info", folder).json["selections"] == ["interval"]
    annotated = slicelabel("annotate", folder, "--labels", labels_file, "--selection", "interval")
    assert len(annotated.json["annotated"]) == 3
    assert_refused(slicelabel("annotate", folder, "--labels", labels_file, "--selection", "mine"), "mine", "interval")


def test_select_looks_at_the_image_where_it_is_asked_to(folder: Path, slicelabel: Callable[..., Answer]) -> None:
    options = ["--method", "representative", "--features", "intensity", "--budget", 3]
    ranking = slicelabel("select", folder, *options)
    assert ranking.code == 0
    assert ranking.json["features"] == "intensity"
    assert len(ranking.json["coverage"]) == 3
    assert slicelabel("select", folder, *options).out == ranking.out


def test_select_within_limits(folder: Path, slicelabel: Callable[..., Answer]) -> None:
    options = [
        "--method",
        "representative",
        "--features",
        "intensity",
        "--range",
        "4:12",
        "--skip",
        "z5",
        "z6",
        "--damaged",
        "keep",
    ]
    ranking = slicelabel("select", folder, *options, "--reach", 1, "--budget", 6)
    assert {item["index"] for item in ranking.json["order"]} == {4, 7, 8, 9, 10, 11}
    assert ranking.json["options"]["range"] == "4:12"
    assert ranking.json["options"]["damaged"] == "keep"
    assert_refused(slicelabel("select", folder, *options, "--budget", 7), "budget 7", "6 slices")


def test_select_random_repeats_with_its_seed(folder: Path, slicelabel: Callable[..., Answer]) -> None:
    first, again, other = (
        slicelabel("select", folder, "--method", "random", "--budget", 4, "--seed", seed).out for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "psychic", "--budget", "3"], ["psychic", "interval"]),
        (["--budget", "0"], ["0"]),
        (["--budget", "3", "--volume", "other"], ["other", "tiny"]),
        (["--budget", "3", "--name", "../evil"], ["../evil"]),
        (["--budget", "3", "--range", "4"], ["range=4", "a:b"]),
        (["--budget", "3", "--skip", "12"], ["'12'", "z12"]),
        (["--budget", "3", "--method", "foreground"], ["finished run", "interval"]),
        (["--budget", "3", "--method", "representative", "--features", "aura"], ["aura", "intensity"]),
    ],
    ids=["method", "budget", "volume", "name", "range", "skip", "no run", "features"],
)
def test_select_refuses(options: list[str], words: list[str], folder: Path, slicelabel: Callable[..., Answer]) -> None:
    assert_refused(slicelabel("select", folder, *options), *words)


@pytest.mark.parametrize(
    ("options", "slices"),
    [
        (["--slices", "3,11"], ["z3", "z11"]),
        (["--every", "5"], ["z2", "z7", "z12"]),
        (["--every", "1"], [f"z{i}" for i in range(16)]),
        (["--slices", "40", "--axis", "y"], ["y40"]),
    ],
)
def test_annotate_copies_slices_as_complete(
    options: list[str],
    slices: list[str],
    folder: Path,
    labels_file: Path,
    tiny_stack: Sample,
    slicelabel: Callable[..., Answer],
) -> None:
    answer = slicelabel("annotate", folder, "--labels", labels_file, *options)
    assert answer.json["annotated"] == slices
    annotation = Project.open(folder).annotation("tiny")
    axis, indices = slices[0][0], [int(name[1:]) for name in slices]
    assert list(annotation.complete(axis)) == indices
    from napari_slicelabel import SliceRef

    for index in indices:
        stored = annotation.read_slice(SliceRef(axis, index))
        np.testing.assert_array_equal(stored, tiny_stack.labels.take(index, "zyx".index(axis)))


def test_annotate_makes_classes_of_the_values_it_finds(
    tmp_path: Path, image_file: Path, labels_file: Path, slicelabel: Callable[..., Answer]
) -> None:
    path = tmp_path / "bare.slicelabel"
    assert slicelabel("new", path, image_file).code == 0
    answer = slicelabel("annotate", path, "--labels", labels_file, "--every", 5)
    assert answer.json["classes"] == {"1": "label 1", "2": "label 2"}


def test_annotate_overwrites_only_when_forced(
    painted: Path, labels_file: Path, tiny_stack: Sample, tmp_path: Path, slicelabel: Callable[..., Answer]
) -> None:
    np.save(tmp_path / "turned.npy", tiny_stack.labels[::-1])
    other = ["annotate", painted, "--labels", tmp_path / "turned.npy", "--slices", "2,3"]
    assert_refused(slicelabel(*other), "z2", "--force")
    assert Project.open(painted).annotation("tiny").complete("z") == (2, 7, 12), "nothing was written"
    assert slicelabel(*other, "--force").code == 0
    assert slicelabel("annotate", painted, "--labels", labels_file, "--slices", "2,3", "--force").code == 0

    crossing = ["annotate", painted, "--labels", tmp_path / "turned.npy", "--axis", "y", "--slices", "5"]
    assert_refused(slicelabel(*crossing), "y5", "--force")
    agreeing = ["annotate", painted, "--labels", labels_file, "--axis", "y", "--slices", "5"]
    assert slicelabel(*agreeing).code == 0
    again = ["annotate", painted, "--labels", labels_file, "--slices", "2,3,5"]
    assert slicelabel(*again).code == 0, "what is painted so already is no conflict"
    assert Project.open(painted).annotation("tiny").complete("z") == (2, 3, 5, 7, 12)


def test_annotate_refuses_values_without_class_unless_told_to_add_them(
    folder: Path, tiny_stack: Sample, tmp_path: Path, slicelabel: Callable[..., Answer]
) -> None:
    labels = tiny_stack.labels.copy()
    labels[5, :4, :4] = 9
    np.save(tmp_path / "nine.npy", labels)
    command = ["annotate", folder, "--labels", tmp_path / "nine.npy", "--slices", "5"]
    assert_refused(slicelabel(*command), "9", "--add-classes")
    assert slicelabel(*command, "--add-classes").json["classes"]["9"] == "label 9"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--slices", "--every", "--selection"]),
        (["--every", "5", "--slices", "3"], ["one of"]),
        (["--every", "0"], ["0", "16"]),
        (["--slices", "16"], ["z16", "15"]),
        (["--slices", "three"], ["three"]),
        (["--slices", ","], ["no slice"]),
        (["--labels", "other.npy", "--every", "5"], ["(8, 64, 64)", "(16, 64, 64)"]),
        (["--labels", "real.npy", "--every", "5"], ["real.npy"]),
        (["--labels", "ids.npy", "--every", "5"], ["instances"]),
    ],
    ids=["none", "two", "every 0", "beyond", "words", "empty", "shape", "float", "instances"],
)
def test_annotate_refuses(
    options: list[str],
    words: list[str],
    folder: Path,
    labels_file: Path,
    tiny_stack: Sample,
    monkeypatch: pytest.MonkeyPatch,
    slicelabel: Callable[..., Answer],
) -> None:
    monkeypatch.chdir(labels_file.parent)
    np.save("other.npy", tiny_stack.labels[:8])
    np.save("real.npy", tiny_stack.labels / 2)
    np.save("ids.npy", np.arange(16 * 64 * 64, dtype=np.int32).reshape(16, 64, 64))
    labels = [] if "--labels" in options else ["--labels", labels_file]
    assert_refused(slicelabel("annotate", folder, *labels, *options), *words)
    assert Project.open(folder).annotation("tiny").annotated("z") == ()


def test_run_answers_with_a_summary(painted: Path, slicelabel: Callable[..., Answer]) -> None:
    answer = slicelabel("run", painted, "--method", "interpolate", "--set", "range=2:13", "--seed", 3)
    assert answer.code == 0
    summary = answer.json
    assert summary["outcome"] == "finished"
    assert 0 <= summary["mean_confidence"] <= 1
    assert Project.open(painted).run_folder(summary["run"]).samefile(summary["folder"])
    assert slicelabel("info", painted).json["runs"][summary["run"]]["method"] == "interpolate"


def test_run_reads_a_config_file_that_single_values_override(
    painted: Path, tmp_path: Path, slicelabel: Callable[..., Answer]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"method": "interpolate", "seed": 5, "range": "0:9"}))
    answer = slicelabel("run", painted, "--config", config, "--set", "seed=6")
    record = json.loads((Project.open(painted).run_folder(answer.json["run"]) / "run.json").read_text())
    assert (record["config"]["seed"], record["config"]["range"]) == (6, "0:9")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--method"]),
        (["--method", "telepathy"], ["telepathy", "interpolate"]),
        (["--method", "interpolate", "--set", "sped=3"], ["sped", "seed"]),
        (["--method", "interpolate", "--set", "seed"], ["key=value"]),
        (["--method", "interpolate", "--set", "seed=fast"], ["seed=fast"]),
        (["--method", "interpolate", "--set", "range=10:99"], ["10:99", "16"]),
        (["--method", "interpolate", "--set", "preset=none"], ["none", "default"]),
        (["--method", "interpolate", "--config", "gone.json"], ["gone.json"]),
        (["--resume", "yesterday"], ["yesterday"]),
        (["--resume", "x", "--method", "interpolate"], ["--resume"]),
    ],
    ids=["no method", "method", "parameter", "no value", "type", "range", "preset", "file", "run", "both"],
)
def test_run_refuses(options: list[str], words: list[str], painted: Path, slicelabel: Callable[..., Answer]) -> None:
    assert_refused(slicelabel("run", painted, *options), *words)
    assert Project.open(painted).run_ids() == ()


def test_run_needs_an_annotated_slice(folder: Path, slicelabel: Callable[..., Answer]) -> None:
    assert_refused(slicelabel("run", folder, "--method", "interpolate"), "annotate")


def test_evaluate_scores_the_newest_run(
    finished: tuple[Path, str], labels_file: Path, slicelabel: Callable[..., Answer]
) -> None:
    path, run_id = finished
    answer = slicelabel("evaluate", path, "--truth", labels_file)
    assert answer.code == 0
    assert answer.out == slicelabel("evaluate", path, "--truth", labels_file, "--run", run_id).out
    assert "NaN" not in answer.out
    assert_refused(slicelabel("evaluate", path, "--truth", labels_file, "--run", "x"), "x", run_id)


def test_evaluate_needs_a_run(painted: Path, labels_file: Path, slicelabel: Callable[..., Answer]) -> None:
    assert_refused(slicelabel("evaluate", painted, "--truth", labels_file), "no finished run")


@pytest.mark.parametrize("name", ["out.ome.zarr", "out.tif", "out.nii.gz", "out.h5"])
def test_export_writes_what_annotate_reads_again(
    name: str,
    finished: tuple[Path, str],
    tmp_path: Path,
    tiny_stack: Sample,
    slicelabel: Callable[..., Answer],
) -> None:
    path, run_id = finished
    target = tmp_path / name
    assert slicelabel("export", path, "--run", run_id, "--to", target).json["written"] == [str(target)]
    assert_refused(slicelabel("export", path, "--run", run_id, "--to", target), name, "already exists")
    assert slicelabel("export", path, "--run", run_id, "--to", target, "--force").code == 0
    from napari_slicelabel.data.boxes import Box
    from napari_slicelabel.data.formats import open_labels

    written = open_labels(target)
    labels = written.read(Box.whole(written.shape))[0]
    np.testing.assert_array_equal(labels[[2, 7, 12]], tiny_stack.labels[[2, 7, 12]])


def test_export_refuses(finished: tuple[Path, str], tmp_path: Path, slicelabel: Callable[..., Answer]) -> None:
    path, run_id = finished
    assert_refused(slicelabel("export", path, "--run", "x", "--to", tmp_path / "a.tif"), "x", run_id)
    assert_refused(slicelabel("export", path, "--run", run_id, "--to", tmp_path / "a.jpeg"), "a.jpeg", ".tif")
    assert slicelabel("export", path, "--run", run_id, "--to", tmp_path / "Dataset001_tiny").code == 0
    assert (tmp_path / "Dataset001_tiny" / "dataset.json").is_file()


_LEAST = ("iterations", "rounds", "round_iterations", "batch", "transfer_iterations")


def test_a_model_is_trained_and_applied(
    painted: Path, tmp_path: Path, image_file: Path, slicelabel: Callable[..., Answer]
) -> None:
    least = {**dict.fromkeys(_LEAST, 1), "width": 8, "calibrate": "off", "device": "cpu"}
    words = [word for name, value in least.items() for word in ("--set", f"{name}={value}")]
    trained = slicelabel("run", painted, "--method", "self-label", *words)
    assert trained.code == 0
    model, out = Path(trained.json["folder"]) / "model", tmp_path / "applied.tif"
    command = ["apply", model, image_file, "--out", out, "--device", "cpu"]
    assert slicelabel(*command).json["written"] == str(out)
    from napari_slicelabel.data.formats import open_labels

    assert open_labels(out).shape == (16, 64, 64)
    assert_refused(slicelabel(*command), "already exists", "--force")
    assert slicelabel(*command, "--force").code == 0


def test_apply_refuses(tmp_path: Path, image_file: Path, slicelabel: Callable[..., Answer]) -> None:
    answer = slicelabel("apply", tmp_path / "nomodel", image_file, "--out", tmp_path / "out.tif")
    assert_refused(answer, "nomodel")


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_methods_tell_their_parameters(option: list[str], slicelabel: Callable[..., Answer]) -> None:
    listed = slicelabel("methods", *option).json
    assert "interpolate" in listed
    for method in listed.values():
        assert method["title"]
        assert "default" in method["presets"]
        assert {"preset", "seed", "device"} <= set(method["parameters"])
        assert all(parameter["help"] for parameter in method["parameters"].values())
        assert all("default" in parameter for parameter in method["parameters"].values())


def test_several_volumes_must_be_named(
    tmp_path: Path, image_file: Path, labels_file: Path, slicelabel: Callable[..., Answer]
) -> None:
    path = tmp_path / "two.slicelabel"
    slicelabel("new", path, image_file, image_file)
    command = ["annotate", path, "--labels", labels_file, "--every", 5]
    assert_refused(slicelabel(*command), "--volume", "tiny", "tiny_2")
    assert slicelabel(*command, "--volume", "tiny_2").json["volume"] == "tiny_2"


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (terminal.Interrupted("r1"), 130)], ids=["early", "in a run"]
)
def test_interruption_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, slicelabel: Callable[..., Answer]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", interrupted)
    answer = slicelabel("run", "my.slicelabel", "--method", "interpolate")
    assert answer.code == code
    assert answer.out == ""
    if isinstance(error, terminal.Interrupted):
        assert "slicelabel run my.slicelabel --resume r1" in answer.err


@pytest.mark.parametrize("words", ["new p a.tif", "annotate p --labels a.tif --every 2", "export p --run r --to a.tif"])
def test_ctrl_c_says_what_was_kept(
    words: str, monkeypatch: pytest.MonkeyPatch, slicelabel: Callable[..., Answer]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for function in ("create", "open"):
        monkeypatch.setattr(Project, function, interrupted)
    answer = slicelabel(*words.split())
    assert answer.code == 130
    (line,) = answer.err.strip().splitlines()
    assert line.startswith("Interrupted. ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_follow_closes_the_run_between_two_events(number: signal.Signals) -> None:
    closed = []

    def events() -> Iterator[Event]:
        try:
            yield Started("r1", "m", "/f", ("v",), "z", 3)
            os.kill(os.getpid(), number)
            yield SliceDone("v", "z", 0, 0.5, "m")
            raise AssertionError("asked for another event after the interruption")
        finally:
            closed.append(True)

    before = signal.getsignal(number)
    with pytest.raises(terminal.Interrupted) as caught:
        list(terminal.follow(events()))
    assert caught.value.run_id == "r1"
    assert closed == [True]
    assert signal.getsignal(number) is before


def test_follow_lets_a_run_that_hears_the_wish_end_itself() -> None:
    stop = terminal.StopRequest()
    heard = []

    def events() -> Iterator[Event]:
        yield Started("r1", "m", "/f", ("v",), "z", 3)
        os.kill(os.getpid(), signal.SIGINT)
        heard.append(stop())
        yield SliceDone("v", "z", 0, 0.5, "m")
        yield Finished("r1", "stopped", 1.0, {})

    passed = []
    with pytest.raises(terminal.Interrupted) as caught:
        passed.extend(terminal.follow(events(), stop))
    assert caught.value.run_id == "r1"
    assert heard == [True]
    # not called done: no JSON comes of it
    assert not any(isinstance(event, Finished) for event in passed)


def test_follow_stops_a_run_at_once_where_the_wish_comes_again() -> None:
    closed = []

    def events() -> Iterator[Event]:
        try:
            yield Started("r1", "m", "/f", ("v",), "z", 3)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("went on after the second interruption")
        finally:
            closed.append(True)

    with pytest.raises(terminal.Interrupted):
        list(terminal.follow(events(), terminal.StopRequest()))
    assert closed == [True]


def test_follow_does_not_call_a_finished_run_interrupted() -> None:
    def events() -> Iterator[Event]:
        yield Started("r1", "m", "/f", ("v",), "z", 3)
        os.kill(os.getpid(), signal.SIGINT)
        yield Finished("r1", "finished", 1.0, {})

    assert len(list(terminal.follow(events()))) == 2


def test_progress_is_throttled_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    list(terminal.follow(Progress("fit", done, 500) for done in range(501)))
    assert capsys.readouterr().err.count("fit") == 1


_RUN_THAT_WAITS = """
import sys
from napari_slicelabel.engine.context import RunContext
from napari_slicelabel.cli import main
write, written = RunContext.write_slice, []
def waits_once(*args, **kwargs):
    written.append(write(*args, **kwargs))
    if len(written) == 3:
        print("written", file=sys.stderr, flush=True)
        sys.stdin.readline()
    return written[-1]
RunContext.write_slice = waits_once
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_says_how_to_resume_and_resumes(
    number: signal.Signals, painted: Path, slicelabel: Callable[..., Answer]
) -> None:
    command = [sys.executable, "-c", _RUN_THAT_WAITS, "run", str(painted), "--method", "interpolate"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert any(line == "written\n" for line in process.stderr)
        process.send_signal(number)
        # a line ends its wait, after which it has heard the signal
        out, err = process.communicate("\n")
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    [run_id] = Project.open(painted).run_ids()
    # not "cancelled": a method that trains keeps its steps then
    assert RunRecord.load(Project.open(painted).run_folder(run_id)).outcome == "stopped"
    assert err.strip().endswith(f"slicelabel run {painted} --resume {run_id}")
    resumed = slicelabel("run", painted, "--resume", run_id)
    assert (resumed.json["run"], resumed.json["outcome"]) == (run_id, "finished")


def test_a_second_run_is_refused_while_one_goes(painted: Path, slicelabel: Callable[..., Answer]) -> None:
    from napari_slicelabel.engine.record import run_lock
    from napari_slicelabel.engine.run import LOCK_NAME

    with run_lock(painted / LOCK_NAME):
        assert_refused(slicelabel("run", painted, "--method", "interpolate"), "a run already goes")


def test_a_name_too_long_is_no_fault_of_the_program(tmp_path: Path, slicelabel: Callable[..., Answer]) -> None:
    words = ["apply", tmp_path / ("x" * 300), tmp_path / "a.npy", "--out", tmp_path / "out.tif"]
    (tmp_path / "a.npy").touch()
    for answer in (slicelabel(*words), slicelabel("info", tmp_path / ("x" * 300))):
        assert answer.code == 2
        assert "report" not in answer.err
        assert len(answer.err.strip().splitlines()) == 1


def test_what_nobody_foresaw_is_one_line_and_a_file(
    folder: Path, slicelabel: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(Project, "open", fail)
    answer = slicelabel("info", folder)
    assert_refused(answer, "ZeroDivisionError: by zero", "report")
    (line,) = answer.err.strip().splitlines()
    log = Path(line.rsplit(" ", 1)[1])
    assert "in fail" in log.read_text()
    log.unlink()
