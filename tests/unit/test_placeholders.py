"""Placeholders in texts."""

from __future__ import annotations

import pytest

from db import rules
from db.placeholders import MissingAttributeError, TextTooLongError, fill, names


@pytest.mark.parametrize(
    ("text", "attributes", "filled"),
    [
        ("Hello", {}, "Hello"),
        ("Hi {name}!", {"name": "Anna"}, "Hi Anna!"),
        ("Hi {name|there}!", {}, "Hi there!"),
        ("Hi {name|there}!", {"name": ""}, "Hi there!"),
        ("Hi {name|there}!", {"name": None}, "Hi there!"),
        ("Hi{name|}!", {}, "Hi!"),
        ("{ name } owes {sum}", {"name": "Anna", "sum": 0}, "Anna owes 0"),
        ("{имя}, скидка {скидка|10} %", {"имя": "Анна"}, "Анна, скидка 10 %"),
        ("a {first name}", {"first name": "Bo"}, "a Bo"),
        ("{} is not one", {}, "{} is not one"),
        ("{a}{a}", {"a": "{b}", "b": "x"}, "{b}{b}"),  # values are not filled in again
        ("open { brace", {}, "open { brace"),
    ],
)
def test_a_text_is_filled_in(text: str, attributes: dict[str, object], filled: str) -> None:
    assert fill(text, attributes) == filled


@pytest.mark.parametrize("attributes", [{}, {"name": ""}, {"name": None}, {"Name": "Anna"}])
def test_a_lacking_attribute_without_fallback_is_named(attributes: dict[str, object]) -> None:
    with pytest.raises(MissingAttributeError) as error:
        fill("Hi {name}", attributes)
    assert error.value.name == "name"


@pytest.mark.parametrize("text", ["{a}" * 11, "{a}" * 10 + ".", "{b|" + "c" * (rules.FILLED_TEXT_LENGTH + 1) + "}"])
def test_a_text_that_grows_beyond_all_measure_is_refused(text: str) -> None:
    attributes = {"a": "x" * (rules.FILLED_TEXT_LENGTH // 10)}
    assert len(fill("{a}" * 10, attributes)) == rules.FILLED_TEXT_LENGTH
    with pytest.raises(TextTooLongError) as error:
        fill(text, attributes)
    assert error.value.reason == "text_too_long"


def test_names_come_once_and_in_order() -> None:
    assert names("{b} {a|x} {b} {} { c }") == ["b", "a", "c"]
