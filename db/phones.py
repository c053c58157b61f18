"""Phone numbers: from what people write to E.164, the one form in which they are stored and compared."""

from __future__ import annotations

import re

import phonenumbers
from phonenumbers import NumberParseException, PhoneMetadata, PhoneNumberFormat

# Spaces (the no-break ones come along with copied numbers), brackets and every dash that word processors make of "-".
_SEPARATORS = str.maketrans("", "", " \u00a0\u2009\u202f()-\u2010\u2011\u2012\u2013\u2014\u2212")
_INTERNATIONAL = re.compile(r"\+[1-9][0-9]{6,14}")
_RUSSIAN = re.compile(r"[78][0-9]{10}")
_OPERATOR_CODE = re.compile(r"\+7([0-9]{3})")


def _mobile_pattern() -> re.Pattern[str]:
    """What the library itself holds for a Russian mobile number, behind the country code.

    A number that matches it is valid by the library's own rules, so asking the library again (15 times slower) could
    only give the same answer; a test compares the two.
    """
    metadata = PhoneMetadata.metadata_for_region("RU")
    mobile = metadata.mobile if metadata else None
    if mobile is None or mobile.national_number_pattern is None:
        raise RuntimeError("phonenumbers holds no pattern for Russian mobile numbers")
    # The library's \d would let digits of other scripts through.
    return re.compile(r"\+7(?:{})".format(mobile.national_number_pattern.replace(r"\d", "[0-9]")))


_MOBILE = _mobile_pattern()


def normalise(text: str) -> str:
    """Return the number as E.164, e.g. `+79161234567`; raise ValueError with a reason for the person who wrote it.

    `8` and `7` in front of ten digits mean Russia; numbers of other countries need their `+` and country code.
    """
    number = text.translate(_SEPARATORS)
    if _RUSSIAN.fullmatch(number):
        number = f"+7{number[1:]}"
    if _MOBILE.fullmatch(number):
        return number
    if not _INTERNATIONAL.fullmatch(number):
        raise ValueError(_why_unreadable(number))
    try:
        parsed = phonenumbers.parse(number, None)
    except NumberParseException:
        raise ValueError("has no country code that exists") from None
    if not phonenumbers.is_valid_number(parsed):
        raise ValueError("is not a number that exists")
    return phonenumbers.format_number(parsed, PhoneNumberFormat.E164)


def _why_unreadable(number: str) -> str:
    if not number:
        return "is empty"
    if not re.fullmatch(r"\+?[0-9]+", number):
        return "may hold only digits, spaces, brackets and dashes, with or without a + in front"
    if not 7 <= len(number.lstrip("+")) <= 15:
        return "has too few or too many digits"
    return "must begin with +7, 7 or 8 and have eleven digits, or begin with + and another country code"


def operator_code_of(phone: str) -> str | None:
    """The three digits after the country code of an E.164 number of +7; None for every other country."""
    match = _OPERATOR_CODE.match(phone)
    return match[1] if match else None
