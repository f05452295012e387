"""Damage as disks, broken copies and hands do it to files: what `benchmarks.fuzz` does to its inputs."""

from __future__ import annotations

import json
import os
import shutil
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping
    from pathlib import Path

BLOCK = 512
LONG = "long " * 2000
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    255,
    1e308,
    10**30,
    -(2**63),
    0.5,
    float("nan"),
    float("inf"),
    "",
    "nan",
    "../../../outside",
    "\x00",
    "\ud83d",
    LONG,
    [],
    {},
    [[]],
    [0] * 5000,
    {"a": {"b": {"c": 1}}},
)


def truncate(path: Path, rng: random.Random) -> None:
    """Keep a part from the start, as a copy that broke off."""
    os.truncate(path, rng.randrange(max(1, path.stat().st_size)))


def empty(path: Path, _rng: random.Random) -> None:
    """Keep no byte, as a full disk does."""
    os.truncate(path, 0)


def flip(path: Path, rng: random.Random) -> None:
    """Turn up to eight bits over, half of the times near the start, where headers are."""
    content = bytearray(path.read_bytes())
    reach = len(content) if rng.random() < 0.5 else min(len(content), 256)
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zeros(path: Path, rng: random.Random) -> None:
    """Put zeros over a block, as a crash does before the disk has written."""
    _overwrite(path, rng, lambda length: bytes(length))


def noise(path: Path, rng: random.Random) -> None:
    """Put random bytes over a block."""
    _overwrite(path, rng, rng.randbytes)


def nonsense(path: Path, rng: random.Random) -> None:
    """Put other bytes in place of all of them."""
    path.write_bytes(rng.randbytes(rng.randint(1, 4096)))


def longer(path: Path, rng: random.Random) -> None:
    """Append bytes."""
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 4096)))


def gone(path: Path, _rng: random.Random) -> None:
    """Take the file away."""
    path.unlink()


def directory(path: Path, _rng: random.Random) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def pipe(path: Path, _rng: random.Random) -> None:
    """Put a named pipe in its place, into which nobody writes."""
    path.unlink()
    os.mkfifo(path)


def plug(path: Path, _rng: random.Random) -> None:
    """Put a socket in its place."""
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        # the path of a socket may be no longer than 107 bytes
        before = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)
        server.bind(path.name)
        os.fchdir(before)
        os.close(before)


def endless(path: Path, _rng: random.Random) -> None:
    """Let it lead to a device that never ends."""
    path.unlink()
    path.symlink_to("/dev/zero")


def circle(path: Path, _rng: random.Random) -> None:
    """Let it lead to itself."""
    path.unlink()
    path.symlink_to(path.name)


def value(path: Path, rng: random.Random) -> None:
    """Put an odd value in place of one in a file of JSON, or of JSON lines, or of a table."""
    text = path.read_text("utf-8", "replace")
    lines = text.splitlines()
    with suppress(ValueError, RecursionError):
        path.write_text(_dump(_with_odd_value(json.loads(text), rng)), "utf-8", "surrogatepass")
        return
    if not lines:
        return
    number = rng.randrange(len(lines))
    try:
        lines[number] = _dump(_with_odd_value(json.loads(lines[number]), rng))
    except ValueError:
        cells = lines[number].split(",")
        cells[rng.randrange(len(cells))] = str(rng.choice(ODD_VALUES))
        lines[number] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n", "utf-8", "surrogatepass")


def missing_key(path: Path, rng: random.Random) -> None:
    """Take an entry out of a file of JSON."""
    with suppress(ValueError):
        data = json.loads(path.read_text("utf-8"))
        holders = [one for one in _holders(data) if one]
        if holders:
            holder = rng.choice(holders)
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            del holder[rng.choice(keys)]
        path.write_text(_dump(data), "utf-8", "surrogatepass")


def deep(path: Path, rng: random.Random) -> None:
    """Nest JSON deeper than a parser may go."""
    depth = rng.choice((100, 1000, 100_000))
    path.write_text("[" * depth + "]" * depth if rng.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth)


def doubled_line(path: Path, rng: random.Random) -> None:
    """Write a line twice, or exchange two."""
    lines = path.read_bytes().splitlines(keepends=True)
    if lines:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    path.write_bytes(b"".join(lines))


def _overwrite(path: Path, rng: random.Random, content: Callable[[int], bytes]) -> None:
    size = path.stat().st_size
    length = min(size, rng.randint(1, BLOCK))
    with path.open("r+b") as file:
        file.seek(rng.randint(0, size - length))
        file.write(content(length))


def _with_odd_value(data: Any, rng: random.Random) -> Any:
    holders = [one for one in _holders(data) if one]
    if not holders or rng.random() < 0.05:
        return rng.choice(ODD_VALUES)
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    holder[rng.choice(keys)] = rng.choice(ODD_VALUES)
    return data


def _holders(data: Any) -> list[Any]:
    """Return all dicts and lists in a document, itself the first."""
    if not isinstance(data, (dict, list)):
        return []
    inner = data.values() if isinstance(data, dict) else data
    return [data, *(one for value in inner for one in _holders(value))]


def _dump(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)


def clear(path: Path) -> None:
    """Remove whatever was put in place of a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


Damage = "Callable[[Path, random.Random], None]"
OF_BYTES: Mapping[str, Any] = {
    "truncate": truncate,
    "empty": empty,
    "flip": flip,
    "zeros": zeros,
    "noise": noise,
    "nonsense": nonsense,
    "longer": longer,
}
OF_NAMES: Mapping[str, Any] = {
    "gone": gone,
    "directory": directory,
    "pipe": pipe,
    "plug": plug,
    "endless": endless,
    "circle": circle,
}
OF_TEXT: Mapping[str, Any] = {"value": value, "missing_key": missing_key, "deep": deep, "doubled_line": doubled_line}
ALL: Mapping[str, Any] = {**OF_BYTES, **OF_NAMES, **OF_TEXT}

PLAIN = frozenset({"truncate", "empty", "gone", "nonsense", *OF_NAMES})
"""Damage that every reader can tell, whatever the format: a part or all of the file is not there."""
OF_CONTENT = frozenset({"flip", "zeros", "noise"})
"""Damage that only a checksum tells."""
