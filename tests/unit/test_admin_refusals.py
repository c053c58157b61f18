"""What the domain refuses, in the language of the page."""

from __future__ import annotations

import re
from collections.abc import Iterator

import flask_babel
import pytest
from flask import Flask

from admin.refusals import translate
from db import csv_rows
from db.client_rows import Layout, merge, read_rows
from db.csv_rows import Table, UnreadableFileError


@pytest.fixture(autouse=True)
def russian() -> Iterator[None]:
    """A request from somebody who reads Russian."""
    app = Flask("admin")
    flask_babel.Babel(app, locale_selector=lambda: "ru")
    with app.test_request_context():
        yield


def reason(content: bytes) -> str:
    """Why the first row of this file is rejected, for the reader."""
    table = Table([content])
    return translate(merge(read_rows(Layout(table.columns), table.rows()), {}).rejected[0].reason)


def refusal(content: bytes) -> str:
    """Why this file is refused as a whole, for the reader."""
    try:
        table = Table([content])
        Layout(table.columns)
        list(table.rows())
    except UnreadableFileError as error:
        return translate(str(error))
    pytest.fail("the file was taken")


def test_each_of_several_mistakes_is_translated() -> None:
    assert reason(b"phone,operator_code,timezone\n12; tags,9; a,Moscow\n") == (
        "phone: номер «12; tags» может содержать только цифры, пробелы, скобки и дефисы, с + впереди или без него; "
        "operator_code: «9; a» — не код из 2–10 цифр; "
        "timezone: «Moscow» — не часовой пояс; пример: Europe/Moscow"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"phone\n12\n",
        b"phone,tags\n,a\n",
        b"phone,\n+79161234567,a\n",
        b"phone,tags\n+79161234567\n",
        b"phone\n+79161234567,a\n",
        b'phone\n"+7916\n',
        b"phone\n+4930123456\n",
        b"phone,tags\n+79161234567," + b"a" * 65 + b"\n",
        b"phone,tags\n+79161234567," + b"|".join(b"%d" % number for number in range(101)) + b"\n",
        b"phone,timezone,tags\n12,Moscow," + b"a" * 20_000 + b"\n",
        "phone,имя\n12,".encode() + b"a" * 20_000 + b"\n",
        b"phone\n" + b"1" * 140_000 + b"\n",
    ],
)
def test_nothing_said_of_a_row_is_left_in_english(content: bytes) -> None:
    assert english(reason(content)) == set()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"%PDF",
        b"phone\0",
        "phone\nПривет".encode("cp1251"),
        b"phone\n\xff",
        b"tel\n1\n",
        b",\n1,2\n",
        b"phone,tags,tags\n",
        b'phone,"tags\n',
        b"phone," + b"a" * 140_000 + b"\n",
        b"phone," + b"a" * 65 + b"\n",
        b"phone," + b",".join(b"%d" % number for number in range(101)) + b"\n",
        b"phone\n" + b"a" * 300_000 + b"\n",
        b"phone\n" + b'"a\n' * 1003,
        b"phone\n1\n2\n3\n",
    ],
)
def test_nothing_said_of_a_file_is_left_in_english(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_ROWS", 2 if content.startswith(b"phone\n1") else csv_rows.MAX_ROWS)

    assert english(refusal(content)) == set()


def english(text: str) -> set[str]:
    """Words that are neither names nor what the file held."""
    names = "CSV UTF PDF Excel ZIP Windows NUL phone operator_code tags timezone tel Europe Moscow"
    return {word for word in re.findall("[A-Za-z_]{2,}", text) if word not in names.split() and set(word) != {"a"}}


def test_the_columns_of_a_header_without_phone_are_listed_as_they_are() -> None:
    assert refusal(b"name,tel\n1,2\n") == "В заголовке нет столбца «phone»; его столбцы: name, tel."
