"""A CSV file, read as it streams by in bounded memory: its header at once, then its rows with their line numbers.

The same code reads a file twice, when it is uploaded and when it is imported, so both see the same rows.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common.csv_export import as_written

DELIMITERS = (",", ";", "\t")
# A longer row, or a longer line, is no list of clients; without a bound one could fill the memory.
MAX_ROW_CHARACTERS = 256 * 1024
# Blank ones count as well: reading is what costs.
MAX_ROWS = 10_000_000
# Every broken row of several lines is read again from its second line on: this bounds the work.
MAX_UNCLOSED_QUOTES = 1000
PHONE_COLUMN = "phone"

_CELL_BYTES = 50

_SIGNATURES = {
    b"PK\x03\x04": "This is an Excel file (or another ZIP archive): save it as CSV UTF-8.",
    b"\xd0\xcf\x11\xe0": "This is an old Excel file: save it as CSV UTF-8.",
    b"\x1f\x8b": "This is a compressed file: unpack it first.",
    b"%PDF": "This is a PDF file: a CSV file is needed.",
    b"\xff\xfe": "The file is encoded as UTF-16: save it as CSV UTF-8.",
    b"\xfe\xff": "The file is encoded as UTF-16: save it as CSV UTF-8.",
}


class UnreadableFileError(Exception):
    """The file as a whole cannot be imported; the text tells its owner why and what to do."""


class Row(NamedTuple):
    """One row and the line it starts in (the file's first line is 1); `problem` is set when it cannot be read."""

    line: int
    cells: list[str]
    problem: str | None = None

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes; most of them for what Python keeps of every cell, however short."""
        return sum(map(len, self.cells)) + _CELL_BYTES * len(self.cells)


class Table:
    """The header and the rows of a CSV file; raises UnreadableFileError here and while the rows are read."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        lines = _Lines(_decode_lines(_refuse_binary(blocks)))
        first = lines.skip_blank()
        if first is None:
            raise UnreadableFileError("The file is empty.")
        self.delimiter = _detect_delimiter(first)
        self._rows = _read_rows(lines, self.delimiter)
        header = next(self._rows)
        if header.problem:
            raise UnreadableFileError(f"Line {header.line}, the header: {header.problem}.")
        self.columns = [name.strip() for name in header.cells]
        _check_columns(self.columns)

    def rows(self) -> Iterator[Row]:
        """The rows below the header, without those that have no value at all."""
        for number, row in enumerate(self._rows):
            if number >= MAX_ROWS:
                raise UnreadableFileError(f"The file has more than {MAX_ROWS} rows: split it and import the parts.")
            if any(map(str.strip, row.cells)):
                yield row


class _Lines:
    """Lines for `csv.reader`, which can be handed out a second time after a row that could not be read."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self._row: list[str] = []
        self._row_characters = 0
        self.row_line = 1  # where the current row starts

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._row.append(line)
        self._row_characters += len(line)
        if self._row_characters > MAX_ROW_CHARACTERS:
            raise csv.Error("row too long")
        return line

    def skip_blank(self) -> str | None:
        """The first line that is not blank, which will be read next; None when there is none."""
        for line in self._lines:
            if not line.isspace():
                self._again.append(line)
                return line
            self.row_line += 1
        return None

    def start_row(self) -> None:
        """What is read from here on belongs to the next row."""
        self.row_line += len(self._row)
        self._row.clear()
        self._row_characters = 0

    def give_up_row(self) -> tuple[str, int]:
        """The row's first line, and how many lines it took; all but the first will be read again."""
        count = len(self._row)
        first = self._row[0]
        self._again.extendleft(reversed(self._row[1:]))
        self._row[1:] = []
        return first, count


def _read_rows(lines: _Lines, delimiter: str) -> Iterator[Row]:
    # Strict: without it an unclosed quotation mark would silently swallow the rows that follow.
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    unclosed = 0
    while True:
        lines.start_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            text, count = lines.give_up_row()
            unclosed += count > 1
            if unclosed > MAX_UNCLOSED_QUOTES:
                raise UnreadableFileError(
                    f"More than {MAX_UNCLOSED_QUOTES} rows have a quotation mark that is not closed,"
                    f" the last in line {lines.row_line}: this is not CSV."
                ) from None
            yield Row(lines.row_line, [text.rstrip("\r\n")], _why_broken(error, count))
        else:
            # What was exported, mended in a spreadsheet and brought back is to be what it was.
            yield Row(lines.row_line, list(map(as_written, cells)) if "'" in "".join(cells) else cells)


def _why_broken(error: csv.Error, lines: int) -> str:
    if lines == 1 and str(error).startswith("field larger"):
        return f"a cell is longer than {csv.field_size_limit()} characters"
    return "a quotation mark is not closed, or not doubled inside a quoted cell"


def _refuse_binary(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same blocks; raises UnreadableFileError for what is no text, before anybody sees a part of it."""
    beginning = b""
    for block in blocks:
        if len(beginning) < 4:
            beginning = (beginning + block)[:4]
            for signature, message in _SIGNATURES.items():
                if beginning.startswith(signature):
                    raise UnreadableFileError(message)
        if b"\0" in block:
            raise UnreadableFileError("The file holds NUL bytes: it is no text, or UTF-16. Save it as CSV UTF-8.")
        yield block


def _decode_lines(blocks: Iterable[bytes]) -> Iterator[str]:
    """Lines with their ends, whichever of the three kinds; unlike `str.splitlines`, at no other character."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest = ""
    line = 1
    for block in _with_end(blocks):
        try:
            text = rest + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UnreadableFileError(_why_undecodable(error, rest, line)) from None
        lines = list(io.StringIO(text, newline=""))
        # The last line may go on in the next block, or its "\r" may be half of "\r\n".
        rest = lines.pop() if lines and block else ""
        if len(rest) > MAX_ROW_CHARACTERS:
            raise UnreadableFileError(
                f"Line {line + len(lines)} is longer than {MAX_ROW_CHARACTERS} characters: this is not CSV."
            )
        line += len(lines)
        yield from lines


def _with_end(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks that hold something, then an empty one."""
    for block in blocks:
        if block:
            yield block
    yield b""


def _why_undecodable(error: UnicodeDecodeError, rest: str, line: int) -> str:
    before = rest + error.object[: error.start].decode("utf-8-sig", "replace")
    line += len(re.findall(r"\r\n|\r|\n", before))
    # Read as Windows-1251 the place in question has Cyrillic letters side by side: it is hardly anything else.
    cyrillic = re.match(r"[А-яЁё]{2}", error.object[error.start : error.start + 2].decode("cp1251", "replace"))
    looks = ", it looks like Windows-1251" if cyrillic else ""
    return f"The file is not UTF-8 (line {line}){looks}: save it as CSV UTF-8."


def _detect_delimiter(header: str) -> str:
    """The delimiter that makes the most columns, a phone column first of all."""

    def merit(delimiter: str) -> tuple[bool, int]:
        cells = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        return PHONE_COLUMN in (cell.strip().lower() for cell in cells), len(cells)

    try:
        return max(DELIMITERS, key=merit)
    except csv.Error:
        raise UnreadableFileError("The first line holds more than a header can: this is not CSV.") from None


def _check_columns(columns: list[str]) -> None:
    names = [name for name in columns if name]
    known = [name.lower() for name in names]
    if PHONE_COLUMN not in known:
        found = ", ".join(f"'{name[:50]}'" for name in names[:20])
        raise UnreadableFileError(
            f"The header has no column '{PHONE_COLUMN}'; its columns are {found or 'without names'}."
        )
    times = Counter(known)
    for name in names:
        if times[name.lower()] > 1:
            raise UnreadableFileError(f"The header names the column '{name[:50]}' twice.")
