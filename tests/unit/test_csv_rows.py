"""Reading CSV files: whatever spreadsheets and people make of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from common import csv_export
from db import csv_rows
from db.csv_rows import Row, Table, UnreadableFileError


def read(content: str | bytes, block: int | None = None) -> list[Row]:
    data = content.encode() if isinstance(content, str) else content
    return list(Table(blocks_of(data, block or len(data) or 1)).rows())


def blocks_of(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def refusal(content: str | bytes) -> str:
    with pytest.raises(UnreadableFileError) as refused:
        read(content)
    return str(refused.value)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiter_is_told_from_the_header(delimiter: str) -> None:
    table = Table([f"name{delimiter}phone{delimiter}tags\nAnna{delimiter}1{delimiter}a|b\n".encode()])

    assert table.delimiter == delimiter
    assert table.columns == ["name", "phone", "tags"]
    assert list(table.rows()) == [Row(2, ["Anna", "1", "a|b"])]


def test_header_with_a_comma_in_a_name_is_still_split_at_semicolons() -> None:
    assert Table([b'"name, first";phone\n']).columns == ["name, first", "phone"]


def test_single_column_needs_no_delimiter() -> None:
    assert read("phone\n1\n2") == [Row(2, ["1"]), Row(3, ["2"])]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_lines_end_as_on_any_system_in_blocks_of_any_size(end: str, last: bool, bom: str) -> None:
    text = bom + end.join(["phone,имя", "1,Анна", '2,"a' + end + 'b"', "3,ёж"]) + (end if last else "")
    expected = [Row(2, ["1", "Анна"]), Row(3, ["2", f"a{end}b"]), Row(5, ["3", "ёж"])]

    for size in range(1, 20):
        assert read(text, block=size) == expected


def test_blank_lines_and_rows_without_values_are_passed_over_but_counted_as_lines() -> None:
    assert read("\n \nphone,name\n\n1,a\n,\n ; \n2,b\n,,\n") == [Row(5, ["1", "a"]), Row(7, ["; "]), Row(8, ["2", "b"])]


def test_only_line_ends_end_lines() -> None:
    row = "1,a\x0bb\x0cc\x1cd\x85e\u2028f"

    assert read(f"phone,name\n{row}\n") == [Row(2, row.split(","))]


def test_quoted_cells_hold_delimiters_quotes_and_lines() -> None:
    assert read('phone,name\n1,"a,""b""\n\nc"\n2, "d"\n') == [Row(2, ["1", 'a,"b"\n\nc']), Row(5, ["2", "d"])]


def test_exported_cells_come_back_as_they_were() -> None:
    cells = ["+79161234567", "-Bob", "=1+1", "'quoted'", "'-", "O'Neil", "+5", "'"]
    exported = csv_export.lines([["phone", *"abcdefg"], cells])

    assert "'-Bob" in exported
    assert read(exported) == [Row(2, cells)]


def test_unclosed_quote_costs_one_row_only() -> None:
    rows = read('phone,name\n1,"Anna\n2,Boris\n3,Vera\n')

    assert [(row.line, row.problem is None) for row in rows] == [(2, False), (3, True), (4, True)]
    assert rows[0].cells == ['1,"Anna']
    assert "quotation mark" in (rows[0].problem or "")


def test_undoubled_quote_costs_one_row_only() -> None:
    rows = read('phone,name\n1,"ООО "Ромашка""\n2,"ok"\n3,"a\nb" c\n4,d\n')

    # What is left of row 4 is read as a row of its own: it has too few cells, and will be refused for that.
    assert [(row.line, row.problem is None) for row in rows] == [
        (2, False),
        (3, True),
        (4, False),
        (5, True),
        (6, True),
    ]
    assert rows[3].cells == ['b" c']


def test_unclosed_quotes_without_end_are_no_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_UNCLOSED_QUOTES", 3)

    # Every second row is swallowed by the one before it, which is then broken by the letter behind the quote.
    assert "more than 3 rows" in refusal("phone,name\n" + '1,"a\n2,"b\n' * 10).lower()


def test_cell_beyond_the_limit_costs_one_row_only() -> None:
    rows = read("phone,name\n1," + "x" * 140_000 + "\n2,b\n")

    assert [row.line for row in rows] == [2, 3]
    assert rows[0].problem == "a cell is longer than 131072 characters"
    assert rows[1].problem is None


def test_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield b"phone\n"
        while True:
            taken += 1
            yield b"1" * 65536

    with pytest.raises(UnreadableFileError, match="Line 2 is longer than"):
        list(Table(endless()).rows())
    assert taken < 10


def test_more_rows_than_can_be_imported_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_ROWS", 3)

    assert len(read("phone\n1\n2\n3\n")) == 3
    assert "more than 3 rows" in refusal("phone\n1\n2\n3\n4\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "The file is empty."),
        (b"\xef\xbb\xbf", "The file is empty."),
        (b"\n\n  \n", "The file is empty."),
        (b"PK\x03\x04....", "Excel file"),
        (b"\xd0\xcf\x11\xe0....", "old Excel file"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"%PDF-1.7", "PDF"),
        ("phone\n1".encode("utf-16"), "UTF-16"),
        ("phone\n1".encode("utf-16-be"), "NUL"),
        (b"phone\n1\x002\n", "NUL"),
        ("phone;имя\n1;Анна\n".encode("cp1251"), "not UTF-8 (line 1), it looks like Windows-1251"),
        ("phone;name\n1;Anna\n2;Боря\n".encode("cp1251"), "not UTF-8 (line 3), it looks like Windows-1251"),
        ("phone;name\r\n1;Anna\r\n2;José\r\n".encode("latin-1"), "not UTF-8 (line 3): save"),
        (b"phone,name\n1,\xd0", "not UTF-8 (line 2)"),
        (b"tel,name\n1,a\n", "no column 'phone'; its columns are 'tel', 'name'"),
        (b"<html><body>", "no column 'phone'"),
        (b"phone,name,name\n1,a,b\n", "'name' twice"),
        (b"phone,Phone\n1,2\n", "'phone' twice"),
    ],
)
def test_file_that_is_no_list_of_clients_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    assert reason in refusal(content)


def test_header_of_a_great_many_names_is_judged_at_once() -> None:
    # The delimiter is told from the first line, which may not be that long.
    header = 'phone,"two\nlines",' + ",".join(f"{number:x}" for number in range(45_000))
    assert 200_000 < len(header) < csv_rows.MAX_ROW_CHARACTERS
    begin = time.process_time()

    Table([header.encode()])
    assert "'aaa' twice" in refusal(f"{header},aaa\n")

    assert time.process_time() - begin < 2  # Counting each name among all took 20 s.


def test_wrong_encoding_far_into_the_file_names_its_line() -> None:
    content = "phone,name\n" + "1,ok\n" * 50_000 + "2,Жанна\n"

    with pytest.raises(UnreadableFileError, match=r"line 50002\)"):
        list(Table(blocks_of(content.encode("cp1251"), 1000)).rows())


def test_names_of_columns_are_trimmed_and_may_be_missing() -> None:
    assert Table([b" Phone , name ,,\n"]).columns == ["Phone", "name", "", ""]
