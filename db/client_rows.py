"""From the cells of a row to the values of a client, or to the reason why not. Pure: no database, no clock."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from db import phones, rules
from db.csv_rows import PHONE_COLUMN, Row, UnreadableFileError

TAG_SEPARATOR = "|"
KNOWN_COLUMNS = (PHONE_COLUMN, "operator_code", "tags", "timezone")


class RowError(ValueError):
    """The row cannot become a client; the text names the column first, and goes on with the next one after `; `."""


class ImportedClient(NamedTuple):
    """What a row says about a client; None, or a missing attribute, leaves what is known already."""

    phone: str
    operator_code: str | None
    tags: tuple[str, ...] | None
    timezone: str | None
    attributes: dict[str, str]

    @property
    def default_code(self) -> str | None:
        """The operator code of a new client whose row names none."""
        return phones.operator_code_of(self.phone)

    def followed_by(self, later: ImportedClient) -> ImportedClient:
        """As if the two rows of this phone had been imported one after the other."""
        return ImportedClient(
            self.phone,
            later.operator_code or self.operator_code,
            later.tags or self.tags,
            later.timezone or self.timezone,
            {**self.attributes, **later.attributes},
        )


class RejectedRow(NamedTuple):
    """A row that was refused: where it starts, why, and what it held."""

    line: int
    reason: str
    cells: list[str]


class ReadRows(NamedTuple):
    """Consecutive rows of a file."""

    clients: list[tuple[Row, ImportedClient]]
    rejected: list[RejectedRow]

    @property
    def total(self) -> int:
        """How many rows these are."""
        return len(self.clients) + len(self.rejected)

    @property
    def without_code(self) -> list[str]:
        """The phones for which an operator code must be known already, or the row is refused."""
        return [client.phone for _, client in self.clients if client.operator_code is None and not client.default_code]


@dataclass
class Group:
    """Rows that are committed together."""

    clients: dict[str, ImportedClient] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)
    repeated: int = 0  # rows whose phone another row of the group had already


class Layout:
    """Where the header puts what; raises UnreadableFileError when there is more than a client can hold."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        names = [name.lower() for name in columns]
        self._unnamed = [place for place, name in enumerate(names) if not name]
        self._attributes = [
            (place, columns[place]) for place, name in enumerate(names) if name and name not in KNOWN_COLUMNS
        ]
        self._check_attributes()
        # In the order of the fields of `ImportedClient`.
        self._readings: tuple[Callable[[Sequence[str]], Any], ...] = (
            _of_column(names, PHONE_COLUMN, _read_phone),
            _of_column(names, "operator_code", _read_code),
            _of_column(names, "tags", _read_tags),
            _of_column(names, "timezone", _read_zone),
            self._read_attributes,
        )

    def _check_attributes(self) -> None:
        if len(self._attributes) > rules.ATTRIBUTES:
            raise UnreadableFileError(f"The header has more than {rules.ATTRIBUTES} columns for attributes.")
        for _, name in self._attributes:
            if len(name) > rules.ATTRIBUTE_NAME_LENGTH:
                raise UnreadableFileError(
                    f"The column name '{_shown(name)}' is longer than {rules.ATTRIBUTE_NAME_LENGTH} characters."
                )

    def read(self, cells: Sequence[str]) -> ImportedClient:
        """The client that this row describes; raises RowError."""
        if len(cells) != len(self._columns):
            raise RowError(self._why_wrong_length(len(cells)))
        for place in self._unnamed:
            if cells[place].strip():
                raise RowError(f"column {place + 1}: has a value but no name in the header")
        try:
            return ImportedClient(*[reading(cells) for reading in self._readings])
        except RowError:
            raise RowError("; ".join(self._mistakes(cells))) from None

    def _mistakes(self, cells: Sequence[str]) -> Iterator[str]:
        """What is wrong, cell by cell. Asked after the fact: rows without mistakes, which are most, are to be quick."""
        for reading in self._readings:
            try:
                reading(cells)
            except RowError as error:
                yield str(error)

    def _read_attributes(self, cells: Sequence[str]) -> dict[str, str]:
        attributes = {name: text for place, name in self._attributes if (text := cells[place].strip())}
        # A character makes six bytes of JSON at most: hardly any row needs to be measured.
        if sum(map(len, attributes.values())) > rules.ATTRIBUTES_BYTES // 20:
            size = len(orjson.dumps(attributes))
            if size > rules.ATTRIBUTES_BYTES:
                largest = max(attributes, key=lambda name: len(attributes[name]))
                raise RowError(f"{largest}: the attributes take {size} bytes, {rules.ATTRIBUTES_BYTES} are allowed")
        return attributes

    def _why_wrong_length(self, count: int) -> str:
        if count < len(self._columns):
            return f"{self._columns[count] or f'column {count + 1}'}: missing, the row ends before this column"
        return f"column {count}: the row has {count} cells, but the header {len(self._columns)} columns"


def _of_column(names: Sequence[str], name: str, read: Callable[[str], Any]) -> Callable[[Sequence[str]], Any]:
    """How to read the cell of this column; None where there is none."""
    if name not in names:
        return lambda _cells: None
    place = names.index(name)
    return lambda cells: read(cells[place])


def read_rows(layout: Layout, rows: Iterable[Row]) -> ReadRows:
    """Tell the rows that describe a client from those that do not."""
    read = ReadRows([], [])
    for row in rows:
        try:
            if row.problem:
                raise RowError(f"the row cannot be read: {row.problem}")
            read.clients.append((row, layout.read(row.cells)))
        except RowError as error:
            read.rejected.append(RejectedRow(row.line, str(error), row.cells))
    return read


def merge(read: ReadRows, codes: Mapping[str, str]) -> Group:
    """One entry for each phone, the later row going over the earlier; `codes` are those of `read.without_code`."""
    group = Group(rejected=list(read.rejected))
    for row, client in read.clients:
        earlier = group.clients.get(client.phone)
        if earlier is not None:
            group.clients[client.phone] = earlier.followed_by(client)
            group.repeated += 1
        elif client.operator_code or client.default_code or client.phone in codes:
            group.clients[client.phone] = client
        else:
            reason = "operator_code: required for a new number outside +7"
            group.rejected.append(RejectedRow(row.line, reason, row.cells))
    return group


def _read_phone(text: str) -> str:
    try:
        return phones.normalise(text.strip())
    except ValueError as error:
        raise RowError(f"phone: {error}" if not text.strip() else f"phone: '{_shown(text)}' {error}") from None


def _read_code(text: str) -> str | None:
    code = text.strip()
    if code and not rules.OPERATOR_CODE.match(code):
        raise RowError(f"operator_code: '{_shown(code)}' is not a code of 2 to 10 digits")
    return code or None


# A million rows hold a few hundred different sets of tags.
@functools.lru_cache(maxsize=1000)
def _read_tags(text: str) -> tuple[str, ...] | None:
    tags = tuple(dict.fromkeys(tag for part in text.split(TAG_SEPARATOR) if (tag := part.strip())))
    if len(tags) > rules.TAGS:
        raise RowError(f"tags: {len(tags)} tags, {rules.TAGS} are allowed")
    for tag in tags:
        if len(tag) > rules.TAG_LENGTH:
            raise RowError(f"tags: '{_shown(tag)}' is longer than {rules.TAG_LENGTH} characters")
    return tags or None


def _read_zone(text: str) -> str | None:
    zone = text.strip()
    if zone and zone not in rules.timezones():
        raise RowError(f"timezone: '{_shown(zone)}' is not an IANA time zone such as Europe/Moscow")
    return zone or None


def _shown(text: str) -> str:
    """The beginning of what somebody wrote, short enough for a list of reasons."""
    return text if len(text) <= 50 else f"{text[:50]}…"
