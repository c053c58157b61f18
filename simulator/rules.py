"""When a fault applies: the JSON of the control API becomes a list of rules, which decide each request's answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from random import Random
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from simulator.answers import ACCEPTED, Answer
from simulator.faults import KINDS, BadAnswer, Delay, Fault, Refuse, within

T = TypeVar("T")


class RuleError(ValueError):
    """A rule that cannot be understood; the text says why, for the person who wrote it."""


@dataclass(kw_only=True)
class Selection:
    """Which requests a fault concerns, and when; every condition given must hold.

    `ids` holds numbers and ranges such as "100-200", `phones` numbers and prefixes such as "7916*". `times` limits the
    fault to the first attempts of each id. `share` draws lots for each attempt, or once and for all for each id.
    The fault begins `after_seconds`, lasts `for_seconds`, and comes again `every_seconds`.
    """

    share: float = 1.0
    share_of: Literal["attempts", "ids"] = "attempts"
    ids: list[int | str] | None = None
    phones: list[int | str] | None = None
    times: int | None = None
    after_seconds: float = 0.0
    for_seconds: float | None = None
    every_seconds: float | None = None

    def __post_init__(self) -> None:
        within("share", self.share, 0, 1)
        within("times", 1 if self.times is None else self.times, 1, 1_000_000)
        for name in ("after_seconds", "for_seconds", "every_seconds"):
            within(name, getattr(self, name) or 0, 0, 1e9)
        if self.every_seconds is not None and not (self.for_seconds or 0) < self.every_seconds:
            raise ValueError("every_seconds must be longer than for_seconds")
        if self.every_seconds is not None and self.for_seconds is None:
            raise ValueError("every_seconds needs for_seconds")
        self._id_ranges = [id_range(text) for text in self.ids or () if isinstance(text, str)]
        self._single_ids = {number for number in self.ids or () if isinstance(number, int)}
        self._phones = {str(phone) for phone in self.phones or () if not str(phone).endswith("*")}
        self._prefixes = tuple(str(phone)[:-1] for phone in self.phones or () if str(phone).endswith("*"))

    def concerns(self, message_id: int, phone: int, attempt: int, random: Random) -> bool:
        """Return whether this attempt is one of those selected."""
        if self.times is not None and attempt > self.times:
            return False
        if self.ids is not None and not self._has_id(message_id):
            return False
        if self.phones is not None and not self._has_phone(str(phone)):
            return False
        if self.share >= 1:
            return True
        # Knuth's multiplicative hash spreads neighbouring ids evenly.
        lot = random.random() if self.share_of == "attempts" else (message_id * 2654435761 % 2**32) / 2**32
        return lot < self.share

    def is_on(self, seconds: float) -> bool:
        """Return whether the fault is in force, `seconds` after it was ordered."""
        seconds -= self.after_seconds
        if seconds < 0:
            return False
        if self.every_seconds is not None:
            seconds %= self.every_seconds
        return self.for_seconds is None or seconds < self.for_seconds

    def is_about_time_only(self) -> bool:
        """Return whether nothing but time decides: the only sense of a fault that has no request to look at."""
        return self.share == 1 and self.ids is None and self.phones is None and self.times is None

    def _has_id(self, message_id: int) -> bool:
        return message_id in self._single_ids or any(message_id in numbers for numbers in self._id_ranges)

    def _has_phone(self, phone: str) -> bool:
        return phone in self._phones or phone.startswith(self._prefixes)


@dataclass
class Rule:
    """A fault with its selection, as ordered at a point in time."""

    spec: dict[str, Any]
    fault: Fault
    selection: Selection
    ordered_at: float
    hits: int = 0

    def is_on(self, now: float) -> bool:
        """Return whether the fault is in force at `now`."""
        return self.selection.is_on(now - self.ordered_at)


@dataclass
class Rules:
    """All faults in force; the first bad answer that matches is given, all delays that match add up."""

    random: Random
    rules: list[Rule] = field(default_factory=list)

    def decide(self, message_id: int, phone: int, attempt: int, now: float) -> tuple[float, Answer]:
        """Return the delay in seconds and the answer for one attempt."""
        delay, answer = 0.0, None
        for rule in self.rules:
            if answer is not None and isinstance(rule.fault, BadAnswer):
                continue
            if not rule.is_on(now) or not rule.selection.concerns(message_id, phone, attempt, self.random):
                continue
            if isinstance(rule.fault, Delay):
                delay += rule.fault.seconds(self.random)
                rule.hits += 1
            elif isinstance(rule.fault, BadAnswer):
                answer = rule.fault.answer(now)
                rule.hits += answer is not None
        return delay, answer or ACCEPTED

    def outage(self, now: float) -> Refuse | None:
        """Return the outage in force at `now`."""
        for rule in self.rules:
            if isinstance(rule.fault, Refuse) and rule.is_on(now):
                return rule.fault
        return None

    def describe(self, now: float) -> list[dict[str, Any]]:
        """Return every rule as it was written, with whether it is on and how many requests it hit."""
        return [{"fault": rule.spec, "on": rule.is_on(now), "hits": rule.hits} for rule in self.rules]


def parse(specs: Any, now: float) -> list[Rule]:
    """Return the rules written in `specs`; raise RuleError at the first that is wrong."""
    if not isinstance(specs, list):
        raise RuleError("faults must be a list")
    return [parse_one(spec, now) for spec in specs]


def parse_one(spec: Any, now: float) -> Rule:
    """Return the rule written in `spec`; raise RuleError if it is wrong."""
    if not isinstance(spec, dict):
        raise RuleError("a fault must be an object")
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise RuleError(f"unknown kind {kind!r}; known are {', '.join(KINDS)}")
    selectors = {item.name for item in fields(Selection)}
    selection = build(Selection, kind, {name: value for name, value in spec.items() if name in selectors})
    rest = {name: value for name, value in spec.items() if name not in selectors and name != "kind"}
    fault = build(KINDS[kind], kind, rest)
    if isinstance(fault, Refuse) and not selection.is_about_time_only():
        raise RuleError("refuse: it concerns all connections, so only the *_seconds fields can select")
    return Rule(spec, fault, selection, now)


def build(cls: type[T], kind: str, values: Mapping[str, Any]) -> T:
    """Return a dataclass filled from JSON; raise RuleError for a field that is unknown, missing or of a wrong type."""
    types = get_type_hints(cls)
    hints = {item.name: types[item.name] for item in fields(cls) if item.init}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in hints:
            raise RuleError(f"{kind}: unknown field {name!r}; known are {', '.join(hints)}")
        if not fits(value, hints[name]):
            raise RuleError(f"{kind}: {name} must be {in_words(hints[name])}")
    try:
        return cls(**values)
    except TypeError as error:
        raise RuleError(f"{kind}: {str(error).partition(' ')[2]}") from error
    except ValueError as error:
        raise RuleError(f"{kind}: {error}") from error


def fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value is of the annotated type; true and false are no numbers."""
    if hint is Any:
        return True
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if isinstance(hint, UnionType):
        return any(fits(value, option) for option in get_args(hint))
    return type(value) in ((int, float) if hint is float else (hint,))


def in_words(hint: Any) -> str:
    """Return the annotated type in the words of JSON."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is list:
        return f"a list of {in_words(get_args(hint)[0])}"
    if isinstance(hint, UnionType):
        return " or ".join(in_words(option) for option in get_args(hint))
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}.get(hint, "null")


def id_range(text: str) -> range:
    """Return the ids meant by "100-200", both ends included; raise ValueError for anything else."""
    first, dash, last = text.partition("-")
    if not dash or not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f'ids holds numbers and ranges such as "100-200", not {text!r}')
    return range(int(first), int(last) + 1)
