"""What the benchmarks share: results as JSON lines, figures with their spread, sections of docs/benchmarks.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the results that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def spread(values: Iterable[float | None], digits: int = 3) -> str:
    """Return mean and standard deviation, ``.734 ± .005``; the mean alone of one value."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    parts = [f"{np.mean(numbers):.{digits}f}"]
    if len(numbers) > 1:
        parts.append(f"{np.std(numbers, ddof=1):.{digits}f}")
    return " ± ".join(part.removeprefix("0") if part.startswith("0.") else part.replace("-0.", "-.") for part in parts)


def write_section(name: str, text: str, document: Path = DOCUMENT) -> None:
    """Put a table into a document, by default docs/benchmarks.md, between the marks of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = document.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
