"""Russian mobile numbers are recognised without asking the library again: the answer has to be the library's."""

from __future__ import annotations

import phonenumbers
import pytest

from db import phones


def test_shortcut_agrees_with_the_library() -> None:
    # Every seventh group of numbers, and all around 930, of which only parts are given to operators.
    groups = sorted({*range(900_000, 1_000_000, 7), *range(929_000, 932_000)})
    taken = 0
    for group in groups:
        number = f"+7{group}{group % 10_000:04}"
        try:
            normalised = phones.normalise(number)
        except ValueError:
            normalised = ""
        parsed = phonenumbers.parse(number, None)
        expected = number if phonenumbers.is_valid_number(parsed) else ""
        assert normalised == expected
        taken += bool(expected)

    assert 0 < taken < len(groups)


@pytest.mark.parametrize("number", ["+7916123456٧", "+79161234567\n", "+791612345678", "+7916123456"])
def test_shortcut_takes_eleven_ascii_digits_only(number: str) -> None:
    with pytest.raises(ValueError, match=r"digits|number"):
        phones.normalise(number)
