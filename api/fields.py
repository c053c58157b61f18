"""Fields that let nothing through that PostgreSQL or Python would stumble over, and document themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from marshmallow import RAISE, Schema, ValidationError, fields
from marshmallow.validate import Length, OneOf, Range

from db import phones, rules

BIGINT_MAX = 2**63 - 1

# RFC 3339, in ASCII digits. Python reads more (week dates, no seconds, other scripts' digits): callers need not.
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?([Zz]|[+-][0-9]{2}:[0-9]{2})?\Z"
)
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"


def about(description: str, example: Any = None, **more: Any) -> dict[str, Any]:
    """What the OpenAPI document says of a field."""
    return {"description": description, **({} if example is None else {"example": example}), **more}


class Input(Schema):
    """What callers send: unknown fields are refused, so that a misspelt one is not silently ignored."""

    class Meta:
        unknown = RAISE


class OptionalInput(Input):
    """The same, and no body at all says as much as an empty object."""


class Answer(Schema):
    """What callers get. The schema documents it; the views build it, in plain types that orjson writes at once."""

    class Meta:
        unknown = RAISE

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:  # noqa: ARG002
        """Return what the view built: going over it field by field would cost more than the rest of the request."""
        return obj


class Text(fields.String):
    """A string that PostgreSQL can store."""

    def __init__(self, shortest: int = 0, longest: int | None = None, **options: Any) -> None:
        bounded = shortest or longest
        super().__init__(validate=Length(shortest, longest) if bounded else None, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **options: Any) -> str:
        text = super()._deserialize(value, attr, data, **options)
        if _NOT_STORABLE.search(text):
            raise ValidationError("may not hold NUL characters or lone surrogates")
        return text


class FilledText(Text):
    """A text with something to read in it."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **options: Any) -> str:
        text = super()._deserialize(value, attr, data, **options)
        if not text.strip():
            raise ValidationError("may not be blank")
        return text


class Number(fields.Integer):
    """A whole number in plain digits; `5.0` is one too, `true` and `"5"` are not."""

    def __init__(self, lowest: int = 1, highest: int = BIGINT_MAX, **options: Any) -> None:
        super().__init__(validate=Range(lowest, highest), **options)

    def _deserialize(self, value: Any, *_place: Any, **_options: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ValidationError("not a whole number")


class QueryNumber(Number):
    """A whole number in a query string, where all is text."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **options: Any) -> int:
        digits = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value)
        return super()._deserialize(int(value) if digits else value, attr, data, **options)


class Timestamp(fields.AwareDateTime):
    """An instant: a time without an offset is refused, and one that some zone's calendar may lack."""

    def _deserialize(self, value: Any, *_place: Any, **_options: Any) -> datetime:
        if not isinstance(value, str) or not (found := _TIMESTAMP.match(value)):
            raise ValidationError("not a time such as 2026-11-23T09:00:00+03:00")
        if found[3] is None:
            raise ValidationError("a time needs an offset, such as Z or +03:00")
        try:
            instant = datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValidationError("no such time") from None
        if not rules.is_known_year(instant):
            raise ValidationError(f"must be in the years {rules.FIRST_YEAR} to {rules.LAST_YEAR} (UTC)")
        return instant


class Phone(Text):
    """A phone number, as E.164 once loaded."""

    def __init__(self, **options: Any) -> None:
        super().__init__(shortest=1, longest=40, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **options: Any) -> str:
        try:
            return phones.normalise(super()._deserialize(value, attr, data, **options))
        except ValidationError:
            raise
        except ValueError as error:
            raise ValidationError(str(error)) from None


class Matching(Text):
    """A short text of a fixed form; the whole of it has to match."""

    def __init__(self, pattern: str, refusal: str, **options: Any) -> None:
        metadata = {**options.pop("metadata", {}), "pattern": f"^{pattern}$"}
        super().__init__(metadata=metadata, **options)
        self._pattern = re.compile(pattern)
        self._refusal = refusal

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **options: Any) -> str:
        text = super()._deserialize(value, attr, data, **options)
        if not self._pattern.fullmatch(text):
            raise ValidationError(self._refusal)
        return text


class OperatorCode(Matching):
    """A mobile operator's code."""

    def __init__(self, **options: Any) -> None:
        super().__init__(rules.OPERATOR_CODE_PATTERN, "an operator code is 2 to 10 digits", **options)


class ClockTime(Matching):
    """A time on the wall clock, to the minute."""

    def __init__(self, **options: Any) -> None:
        super().__init__(_CLOCK, "not a time of day such as 09:00", **options)


class Timezone(Text):
    """An IANA time zone."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **options: Any) -> str:
        name = super()._deserialize(value, attr, data, **options)
        if name not in rules.timezones():
            raise ValidationError("not an IANA time zone such as Europe/Moscow")
        return name


class Distinct(fields.List[Any]):
    """A list in which each value counts once."""

    def __init__(self, item: fields.Field[Any], longest: int, **options: Any) -> None:
        super().__init__(item, validate=Length(max=longest), **options)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **options: Any) -> list[Any]:
        return list(dict.fromkeys(super()._deserialize(value, attr, data, **options)))


class Tags(Distinct):
    """Tags: blank ones are refused, surrounding spaces dropped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(FilledText(1, rules.TAG_LENGTH), rules.TAGS, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **options: Any) -> list[Any]:
        return list(dict.fromkeys(tag.strip() for tag in super()._deserialize(value, attr, data, **options)))


class Attributes(fields.Dict):
    """What is known of a client besides: names with plain values."""

    def __init__(self, **options: Any) -> None:
        name = FilledText(1, rules.ATTRIBUTE_NAME_LENGTH)
        metadata = {"maxProperties": rules.ATTRIBUTES, **options.pop("metadata", {})}
        metadata["additionalProperties"] = {"type": ["string", "number", "boolean", "null"]}
        super().__init__(keys=name, validate=Length(max=rules.ATTRIBUTES), metadata=metadata, **options)

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **options: Any
    ) -> dict[str, Any]:
        attributes: dict[str, Any] = super()._deserialize(value, attr, data, **options)  # type: ignore[no-untyped-call]
        for name, content in attributes.items():
            if not isinstance(content, str | int | float | None):
                raise ValidationError({name: ["a string, a number, true, false or null is needed"]})
            if isinstance(content, str) and "\x00" in content:
                raise ValidationError({name: ["may not hold NUL characters"]})
        if len(orjson.dumps(attributes)) > rules.ATTRIBUTES_BYTES:
            raise ValidationError(f"may not be larger than {rules.ATTRIBUTES_BYTES} bytes")
        return attributes


class PageQuery(Schema):
    """`?page=1&page_size=50`."""

    page = QueryNumber(highest=1_000_000_000, load_default=1, metadata=about("The page to return, from 1.", 1))
    page_size = QueryNumber(highest=500, load_default=50, metadata=about("Rows on a page.", 50))


class KeyQuery(Schema):
    """`?after=<id>&limit=50`."""

    after = QueryNumber(lowest=0, load_default=0, metadata=about("Return what comes after this id.", 0))
    limit = QueryNumber(highest=500, load_default=50, metadata=about("The most rows to return.", 50))


def choice(*values: str, **options: Any) -> fields.String:
    """A string that is one of these."""
    return fields.String(validate=OneOf(list(values)), **options)
