"""What the domain refuses, in the language of the page."""

from __future__ import annotations

from collections.abc import Iterator

import flask_babel
import pytest
from flask import Flask

from admin.refusals import translate
from db.client_rows import Layout, RowError

COLUMNS = ["phone", "operator_code", "tags", "timezone", "имя"]


@pytest.fixture(autouse=True)
def russian() -> Iterator[None]:
    """A request from somebody who reads Russian."""
    app = Flask("admin")
    flask_babel.Babel(app, locale_selector=lambda: "ru")
    with app.test_request_context():
        yield


def reason(*cells: str) -> str:
    """Why this row is rejected, for the reader."""
    with pytest.raises(RowError) as refused:
        Layout(COLUMNS).read([*cells, *[""] * (len(COLUMNS) - len(cells))])
    return translate(str(refused.value))


def test_each_of_several_mistakes_is_translated() -> None:
    assert reason("12; tags", "9; a", "", "Moscow") == (
        "phone: номер «12; tags» может содержать только цифры, пробелы, скобки и дефисы, с + впереди или без него; "
        "operator_code: «9; a» — не код из 2–10 цифр; "
        "timezone: «Moscow» — не часовой пояс; пример: Europe/Moscow"
    )
