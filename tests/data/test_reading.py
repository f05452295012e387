from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from napari_slicelabel.data.reading import parse_json, read_bytes, read_json, read_text


def test_files_of_moderate_size(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}
    assert read_text(tmp_path / "a.json") == '{"a": [1, null]}'
    with pytest.raises(OSError, match="more than 0 MB"):
        read_bytes(tmp_path / "a.json", most=3)


def test_no_json(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "1" * 5000, "{", "", "\x00"):
        with pytest.raises(ValueError, match=r"nested|limit|Expecting|Extra"):
            parse_json(text)
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    with pytest.raises(ValueError, match="utf-8"):
        read_json(tmp_path / "latin.json")


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names, no /dev")
def test_what_never_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros", "."):
        with pytest.raises(OSError, match=r"no file|directory"):
            read_bytes(tmp_path / name)
    with pytest.raises(OSError, match="more than 1 MB"):
        read_bytes(Path("/dev/zero"), most=2**20)


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev")
def test_what_a_shell_hands_over(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"[3]")
    os.close(write)
    assert read_json(Path(f"/dev/fd/{read}")) == [3]
    os.close(read)
