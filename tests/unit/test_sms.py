"""Counting SMS."""

from __future__ import annotations

import pytest

from db.sms import Encoding, measure


@pytest.mark.parametrize(
    ("text", "encoding", "units", "parts", "left"),
    [
        ("", Encoding.GSM7, 0, 1, 160),
        ("a" * 160, Encoding.GSM7, 160, 1, 0),
        ("a" * 161, Encoding.GSM7, 161, 2, 145),  # 153 + 8
        ("a" * 306, Encoding.GSM7, 306, 2, 0),
        ("a" * 307, Encoding.GSM7, 307, 3, 152),
        ("é@£Ω\n", Encoding.GSM7, 5, 1, 155),
        ("€" * 80, Encoding.GSM7, 160, 1, 0),  # two septets each
        ("€" * 81, Encoding.GSM7, 162, 2, 143),  # 76 in a part of 153, one septet of it unused; then 5
        ("a" * 152 + "€" + "a" * 20, Encoding.GSM7, 174, 2, 131),  # the pair does not fit behind 152: 2 + 20 in part 2
        ("я" * 70, Encoding.UCS2, 70, 1, 0),
        ("я" * 71, Encoding.UCS2, 71, 2, 63),  # 67 + 4
        ("😀" * 35, Encoding.UCS2, 70, 1, 0),  # two UTF-16 units each
        ("😀" * 36, Encoding.UCS2, 72, 2, 61),  # 33 in 67 units, then 3
        ("a" * 69 + "я", Encoding.UCS2, 70, 1, 0),
        ("ç", Encoding.UCS2, 1, 1, 69),  # GSM-7 has only the capital one
    ],
)
def test_units_and_parts(text: str, encoding: Encoding, units: int, parts: int, left: int) -> None:
    found = measure(text)
    assert (found.encoding, found.units, found.parts, found.left) == (encoding, units, parts, left)


def test_characters_that_force_the_larger_alphabet_are_named_once_in_order() -> None:
    found = measure("Привет, `мир` – €")
    assert found.forcing == tuple("Привет`м–")
    assert found.extended == ()
    assert found.characters == 17


def test_characters_that_count_twice_are_named() -> None:
    assert measure("[10€] ~ [20€]").extended == ("[", "€", "]", "~")
