"""What the gateway received, kept in columns so that millions of messages fit: about 200 bytes each."""

import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

BUCKET_SECONDS = 0.1
KEPT_ATTEMPTS = 5_000_000  # 14 bytes each; beyond that attempts are counted, no longer listed.
KEPT_COMPLAINTS = 20

# Time is read from the monotonic clock, so that a jump of the wall clock bends no measured pace.
_EPOCH = time.time() - time.monotonic()


def clock() -> float:
    """Return the time in seconds since 1970, never going back while the process lives."""
    return _EPOCH + time.monotonic()


class Ledger:
    """Every request to /send, every id with its first phone and text, and the counts over all of them."""

    def __init__(self, kept_attempts: int = KEPT_ATTEMPTS) -> None:
        self.kept_attempts = kept_attempts
        self.in_flight = 0
        self.forget()

    def forget(self) -> None:
        """Start from nothing; only the requests now in flight stay counted as such."""
        self._rows: dict[int, int] = {}
        self._ids = array("q")
        self._phones = array("q")
        self._texts = array("I")
        self._attempts = array("I")
        self._accepted = array("I")
        self._first_accepted = array("d")
        self._conflicting = bytearray()
        self._last_attempt = array("i")  # Where the id's newest attempt stands in the log, -1 for none.

        # The log of attempts; each entry points back to the one before of the same id.
        self._log_at = array("d")
        self._log_answer = array("H")
        self._log_previous = array("i")

        self._text_numbers: dict[str, int] = {}
        self._text_list: list[str] = []
        self._label_numbers: dict[str, int] = {}

        self._last_second: deque[float] = deque()
        self._buckets: Counter[int] = Counter()
        self.by_answer: Counter[str] = Counter()
        self.complaints: deque[dict[str, Any]] = deque(maxlen=KEPT_COMPLAINTS)
        self.requests = self.accepted_ids = self.repeats = self.conflicts = self.bad_requests = self.unauthorized = 0
        self.abandoned = 0
        self.max_in_flight = self.in_flight
        self.max_per_second = 0
        self.first_at: float | None = None
        self.last_at: float | None = None

    def __contains__(self, message_id: int) -> bool:
        return message_id in self._rows

    def __len__(self) -> int:
        return len(self._ids)

    def attempts_of(self, message_id: int) -> int:
        """Return how often the id was seen."""
        row = self._rows.get(message_id)
        return 0 if row is None else self._attempts[row]

    def record(self, message_id: int, phone: int, text: str, label: str, accepted: bool, now: float) -> bool:
        """Note one well-formed attempt and its answer; return whether the id was accepted for the first time."""
        self._count(now, label)
        row = self._rows.get(message_id)
        if row is None:
            row = self._add_row(message_id, phone, text)
        elif self._phones[row] != phone or self._text_list[self._texts[row]] != text:
            self._conflicting[row] = 1
            self.conflicts += 1
        self._attempts[row] += 1
        self._log(row, label, now)
        return accepted and self._accept(row, now)

    def complain(self, status: int, reason: str, path: str, now: float) -> None:
        """Note a request that was refused for its form (400 and the like) or its token (401)."""
        self._count(now, str(status))
        if status == 401:
            self.unauthorized += 1
        else:
            self.bad_requests += 1
        self.complaints.append({"at": now, "status": status, "reason": reason, "path": path})

    def started(self) -> None:
        """Note that a request waits for its answer."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def finished(self, abandoned: bool) -> None:
        """Note that a request was answered, or that its caller went away before."""
        self.in_flight -= 1
        self.abandoned += abandoned

    def summary(self) -> dict[str, Any]:
        """Return the counts over everything received; times are seconds since 1970."""
        return {
            "requests": self.requests,
            "ids": len(self._ids),
            "accepted": self.accepted_ids,
            "repeats": self.repeats,
            "conflicts": self.conflicts,
            "bad_requests": self.bad_requests,
            "unauthorized": self.unauthorized,
            "abandoned": self.abandoned,
            "by_answer": dict(self.by_answer),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "max_per_second": self.max_per_second,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "complaints": list(self.complaints),
        }

    def page(self, after: int | None, limit: int) -> list[dict[str, Any]]:
        """Return ids in the order of their first arrival, from the one behind `after` on; KeyError if unknown."""
        start = 0 if after is None else self._rows[after] + 1
        return [self._describe(row) for row in range(start, min(start + limit, len(self._ids)))]

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """Return the ids that arrived last, newest first."""
        rows = range(len(self._ids) - 1, -1, -1)
        return [self._describe(row) for row in islice(rows, limit)]

    def one(self, message_id: int) -> dict[str, Any]:
        """Return one id with every attempt that is still listed; KeyError if unknown."""
        row = self._rows[message_id]
        listed = list(self._walk(row))[::-1]
        return {**self._describe(row), "log": listed, "log_complete": len(listed) == self._attempts[row]}

    def timeline(self, since: float = 0.0) -> list[tuple[float, int]]:
        """Return the start of every tenth of a second in which anything arrived, with the number of arrivals."""
        found = sorted((bucket, count) for bucket, count in self._buckets.items() if bucket * BUCKET_SECONDS >= since)
        return [(round(bucket * BUCKET_SECONDS, 1), count) for bucket, count in found]

    def arrivals(self) -> bytes:
        """Return the exact time of every listed attempt, in order, as native doubles."""
        return self._log_at.tobytes()

    def _count(self, now: float, label: str) -> None:
        self.requests += 1
        self.by_answer[label] += 1
        self.first_at = now if self.first_at is None else self.first_at
        self.last_at = now
        self._buckets[int(now / BUCKET_SECONDS)] += 1
        recent = self._last_second
        recent.append(now)
        while recent[0] <= now - 1:
            recent.popleft()
        self.max_per_second = max(self.max_per_second, len(recent))

    def _add_row(self, message_id: int, phone: int, text: str) -> int:
        row = self._rows[message_id] = len(self._ids)
        number = self._text_numbers.setdefault(text, len(self._text_list))
        if number == len(self._text_list):
            self._text_list.append(text)
        self._ids.append(message_id)
        self._phones.append(phone)
        self._texts.append(number)
        self._attempts.append(0)
        self._accepted.append(0)
        self._first_accepted.append(0.0)
        self._conflicting.append(0)
        self._last_attempt.append(-1)
        return row

    def _accept(self, row: int, now: float) -> bool:
        first = self._accepted[row] == 0
        self._accepted[row] += 1
        if first:
            self.accepted_ids += 1
            self._first_accepted[row] = now
        else:
            self.repeats += 1
        return first

    def _log(self, row: int, label: str, now: float) -> None:
        if len(self._log_at) >= self.kept_attempts:
            return
        self._log_at.append(now)
        self._log_answer.append(self._label_numbers.setdefault(label, len(self._label_numbers)))
        self._log_previous.append(self._last_attempt[row])
        self._last_attempt[row] = len(self._log_at) - 1

    def _walk(self, row: int) -> Iterator[dict[str, Any]]:
        labels = list(self._label_numbers)
        entry = self._last_attempt[row]
        while entry >= 0:
            yield {"at": self._log_at[entry], "answer": labels[self._log_answer[entry]]}
            entry = self._log_previous[entry]

    def _describe(self, row: int) -> dict[str, Any]:
        return {
            "id": self._ids[row],
            "phone": self._phones[row],
            "text": self._text_list[self._texts[row]],
            "accepted": self._accepted[row],
            "attempts": self._attempts[row],
            "first_accepted_at": self._first_accepted[row] if self._accepted[row] else None,
            "conflicting": bool(self._conflicting[row]),
        }
