"""The worked example of README.md, run as a user would: in a shell, on a small file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tifffile

if TYPE_CHECKING:
    from napari_slicelabel.data.samples import Sample

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# The commands are those of the README but for this: training in earnest would take minutes.
HARDLY_TRAINED = "--device cpu " + " ".join(
    f"--set {name}=1"
    for name in (
        "iterations",
        "rounds",
        "round_iterations",
        "fold_iterations",
        "flow_iterations",
        "transfer_iterations",
        "batch",
    )
)
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return [code for found, code in _BLOCK.findall(text) if found == language]


@pytest.fixture
def workplace(tmp_path: Path, tiny_stack: Sample) -> Path:
    """A folder with the two files that the worked example names."""
    tifffile.imwrite(tmp_path / "stack.tif", tiny_stack.image, metadata={"axes": "ZYX"}, imagej=True)
    tifffile.imwrite(tmp_path / "painted.tif", tiny_stack.labels, metadata={"axes": "ZYX"}, imagej=True)
    return tmp_path


def shell(commands: str, folder: Path) -> str:
    """Standard output of `commands`, run by bash with the `slicelabel` of this environment first in the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_worked_example(workplace: Path) -> None:
    example = README.partition("<!-- worked example")[2].partition("<!-- end of the worked example")[0]
    commands = blocks(example, "bash")
    assert len(commands) >= 6
    script = "\n".join(commands)
    assert "--method self-label" in script
    shell(script.replace("--method self-label", f"--method self-label {HARDLY_TRAINED}"), workplace)
    assert (workplace / "labels.ome.zarr").is_dir()
    for code in blocks(README, "python"):
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, timeout=240, check=False
        )
        assert result.returncode == 0, result.stderr
        assert "Finished" in result.stdout


def test_commands_of_the_readme_exist() -> None:
    from napari_slicelabel.cli import app

    named = set(re.findall(r"slicelabel ([a-z]+) ", "\n".join(blocks(README, "bash"))))
    assert named <= {name for name in app if not name.startswith("-")}


def test_readme_names_the_test_command_of_ci() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert "-m tox" in script
    assert ".venv/bin/tox" in README


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target
