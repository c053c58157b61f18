"""How a text travels as SMS: the alphabet it needs and the parts that it is cut into (3GPP TS 23.038 and 23.040)."""

from __future__ import annotations

import dataclasses
from enum import StrEnum

_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
# Written as an escape and a character: two septets.
_EXTENDED = frozenset("\f^{}\\[~]|€")


class Encoding(StrEnum):
    """The two alphabets in use."""

    GSM7 = "gsm7"
    UCS2 = "ucs2"


# Units that fit into a single SMS, and into each part of several: there a header takes seven septets, or six octets.
_CAPACITY = {Encoding.GSM7: (160, 153), Encoding.UCS2: (70, 67)}


@dataclasses.dataclass(frozen=True, slots=True)
class Measure:
    """The size of a text. Units are septets or UTF-16 code units: what the limits count."""

    encoding: Encoding
    characters: int
    units: int
    parts: int
    left: int  # units until another part begins
    forcing: tuple[str, ...]  # the characters that force UCS-2, each once, in order
    extended: tuple[str, ...]  # the characters that take two septets, each once, in order; only with GSM-7


def measure(text: str) -> Measure:
    """The alphabet, the size and the parts of a text."""
    forcing = tuple(dict.fromkeys(c for c in text if c not in _BASIC and c not in _EXTENDED))
    encoding = Encoding.UCS2 if forcing else Encoding.GSM7
    widths = [_width(character, encoding) for character in text]
    units = sum(widths)
    alone, together = _CAPACITY[encoding]
    if units <= alone:
        parts, left = 1, alone - units
    else:
        parts, left = _pack(widths, together)
    extended = () if forcing else tuple(dict.fromkeys(c for c in text if c in _EXTENDED))
    return Measure(encoding, len(text), units, parts, left, forcing, extended)


def _width(character: str, encoding: Encoding) -> int:
    if encoding is Encoding.UCS2:
        return 2 if ord(character) > 0xFFFF else 1
    return 2 if character in _EXTENDED else 1


def _pack(widths: list[int], capacity: int) -> tuple[int, int]:
    """Parts, and the units left in the last: a pair of units is never torn apart, so a part may stay one unit short."""
    parts, used = 1, 0
    for width in widths:
        if used + width > capacity:
            parts, used = parts + 1, 0
        used += width
    return parts, capacity - used
