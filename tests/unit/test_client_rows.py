"""What the cells of a row say about a client."""

from __future__ import annotations

import pytest

from db import rules
from db.client_rows import ImportedClient, Layout, RejectedRow, RowError, merge, read_rows
from db.csv_rows import Row, UnreadableFileError

COLUMNS = ["Phone", "OPERATOR_CODE", "tags", "timezone", "name", "Город"]


def client(*cells: str) -> ImportedClient:
    return Layout(COLUMNS).read([*cells, *[""] * (len(COLUMNS) - len(cells))])


def reason(*cells: str) -> str:
    with pytest.raises(RowError) as refused:
        client(*cells)
    return str(refused.value)


def test_row_becomes_a_client() -> None:
    assert client(" 8 (916) 123-45-67 ", " 999 ", " a | b||a | ", " Asia/Omsk ", " Анна ", "") == ImportedClient(
        phone="+79161234567",
        operator_code="999",
        tags=("a", "b"),
        timezone="Asia/Omsk",
        attributes={"name": "Анна"},
    )


def test_blank_cells_say_nothing() -> None:
    assert client("+79161234567", " ", " | ", "\t") == ImportedClient("+79161234567", None, None, None, {})


def test_columns_come_in_any_order_and_may_be_missing() -> None:
    assert Layout(["name", "phone"]).read(["Anna", "89161234567"]) == ImportedClient(
        "+79161234567", None, None, None, {"name": "Anna"}
    )


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["", "916"], "phone: is empty"),
        (["12", "916"], "phone: '12' has too few or too many digits"),
        (["+7916123456７"], "phone: '+7916123456７' may hold only digits"),
        (["+79161234567", "9a"], "operator_code: '9a' is not a code of 2 to 10 digits"),
        (["+79161234567", "９１６"], "operator_code: '９１６' is not"),
        (["+79161234567", "", "x" * 65], f"tags: '{'x' * 50}…' is longer than 64 characters"),
        (["+79161234567", "", "|".join(map(str, range(101)))], "tags: 101 tags, 100 are allowed"),
        (["+79161234567", "", "", "Mars/Phobos"], "timezone: 'Mars/Phobos' is not an IANA time zone"),
        (["+79161234567", "", "", "europe/moscow"], "timezone: 'europe/moscow' is not"),
        (["+79161234567", "", "", "../etc/passwd"], "timezone: '../etc/passwd' is not"),
        (["+79161234567", "", "", "", "я" * 8192], "name: the attributes take"),
    ],
)
def test_reason_of_a_refusal_names_the_column(cells: list[str], expected: str) -> None:
    assert reason(*cells).startswith(expected)


def test_a_row_is_told_all_its_mistakes() -> None:
    assert reason("12", "9a", "x" * 65, "Moscow", "я" * 8192).split("; ") == [
        "phone: '12' has too few or too many digits",
        "operator_code: '9a' is not a code of 2 to 10 digits",
        f"tags: '{'x' * 50}…' is longer than 64 characters",
        "timezone: 'Moscow' is not an IANA time zone such as Europe/Moscow",
        "name: the attributes take 16395 bytes, 16384 are allowed",
    ]


def test_attributes_up_to_the_limit_are_taken() -> None:
    filling = rules.ATTRIBUTES_BYTES - len('{"name":""}')

    assert client("+79161234567", "", "", "", "x" * filling).attributes == {"name": "x" * filling}
    assert "16385 bytes" in reason("+79161234567", "", "", "", "x" * (filling + 1))
    # A control character takes six bytes of JSON.
    assert "bytes" in reason("+79161234567", "", "", "", "a" + "\x01" * (filling // 6 + 1) + "a")


def test_row_of_another_length_is_refused() -> None:
    layout = Layout(["phone", "name", "", "town"])

    with pytest.raises(RowError, match="town: missing, the row ends before this column"):
        layout.read(["+79161234567", "a", ""])
    with pytest.raises(RowError, match="column 3: missing"):
        layout.read(["+79161234567", "a"])
    with pytest.raises(RowError, match="column 5: the row has 5 cells, but the header 4 columns"):
        layout.read(["+79161234567", "a", "", "b", "c"])


def test_value_in_a_column_without_a_name_is_refused() -> None:
    layout = Layout(["phone", ""])

    assert layout.read(["+79161234567", " "]).attributes == {}
    with pytest.raises(RowError, match="column 2: has a value but no name"):
        layout.read(["+79161234567", "x"])


def test_header_with_more_than_a_client_can_hold_is_refused() -> None:
    Layout(["phone", *map(str, range(100))])

    with pytest.raises(UnreadableFileError, match="more than 100 columns for attributes"):
        Layout(["phone", *map(str, range(101))])
    with pytest.raises(UnreadableFileError, match="longer than 64 characters"):
        Layout(["phone", "x" * 65])


def rows(*lines: list[str]) -> list[Row]:
    return [Row(number, cells) for number, cells in enumerate(lines, start=2)]


def test_later_row_of_a_phone_goes_over_the_earlier_as_if_imported_after_it() -> None:
    layout = Layout(["phone", "operator_code", "tags", "name", "town"])
    read = read_rows(
        layout,
        rows(
            ["+79161234567", "916", "a", "Anna", "Omsk"],
            ["89161234567", "", "b|c", "Vera", ""],
            ["+79160000000", "", "", "", ""],
        ),
    )

    group = merge(read, {})

    assert group.clients == {
        "+79161234567": ImportedClient("+79161234567", "916", ("b", "c"), None, {"name": "Vera", "town": "Omsk"}),
        "+79160000000": ImportedClient("+79160000000", None, None, None, {}),
    }
    assert group.repeated == 1
    assert read.total == 3


def test_number_outside_plus_seven_needs_an_operator_code_unless_it_is_known() -> None:
    layout = Layout(["phone", "operator_code"])
    read = read_rows(layout, rows(["+4930123456", ""], ["+4930123457", ""], ["+4930123458", "30"]))

    group = merge(read, {"+4930123457": "30"})

    assert sorted(read.without_code) == ["+4930123456", "+4930123457"]
    assert list(group.clients) == ["+4930123457", "+4930123458"]
    assert group.rejected == [
        RejectedRow(2, "operator_code: required for a new number outside +7", ["+4930123456", ""])
    ]


def test_row_that_could_not_be_read_is_rejected_with_its_text() -> None:
    read = read_rows(Layout(["phone"]), [Row(7, ['"+7916'], "a quotation mark is not closed")])

    assert read.rejected == [RejectedRow(7, "the row cannot be read: a quotation mark is not closed", ['"+7916'])]
    assert read.clients == []
