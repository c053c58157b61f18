"""Placeholders in texts."""

from __future__ import annotations

import pytest

from db import rules
from db.placeholders import MissingAttributeError, TextTooLongError, check, fill, names
from db.refusals import InvalidError


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


def test_a_name_may_be_as_long_as_that_of_an_attribute() -> None:
    longest = "n" * rules.ATTRIBUTE_NAME_LENGTH
    check(f"{{{longest}}}, {{ {longest} |there}} {'x' * 100}")
    for text in (f"{{{longest}x}}", f"{{name}} {{{longest}x|there}}"):
        with pytest.raises(InvalidError) as error:
            check(text)
        assert (error.value.field, "64" in error.value.reason) == ("text", True)


def test_a_reason_is_never_longer_than_those_that_can_be_asked_for() -> None:
    with pytest.raises(MissingAttributeError) as error:
        fill("{" + "n" * 1900 + "}", {})
    assert len(error.value.reason) == rules.REASON_LENGTH
    assert error.value.reason.startswith("missing_placeholder:nnn")
