"""CSV for people's spreadsheets: readable as UTF-8, and without a cell that would be run as a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

# Makes spreadsheets read UTF-8; our own import passes over it.
BYTE_ORDER_MARK = "\ufeff"

# What a spreadsheet would run as a formula, unless it is just a number: phones stay as they are.
_FORMULA = re.compile(r"[=+\-@＝＋－＠\t\r\n]")
_HARMLESS = re.compile(r"[+-]?[0-9 ().-]*\Z")


def lines(rows: Sequence[Sequence[str]], delimiter: str = ",") -> str:
    """These rows as CSV."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([[without_formula(cell) for cell in row] for row in rows])
    return text.getvalue()


def as_written(cell: str) -> str:
    """The cell before `without_formula`."""
    return cell[1:] if cell.startswith("'") and without_formula(cell[1:]) == cell else cell


def without_formula(cell: str) -> str:
    """The cell as text, whatever a spreadsheet would make of it."""
    return f"'{cell}" if _FORMULA.match(cell) and not _HARMLESS.match(cell) else cell
