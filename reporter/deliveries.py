"""One round of work at a time: what has become due is written down, what is written down is sent."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from common.settings import Settings, split_mail_address
from db.engine import cause_name
from db.queries import report_deliveries
from db.queries.report_deliveries import ALERT_PREFIX, Claimed
from reporter import periods
from reporter.alerts import THROTTLE_SECONDS, current_alerts
from reporter.facts import collect
from reporter.letter import Letter, compose, compose_alert
from reporter.mail import Mailer, MailError, message_id, write
from reporter.periods import Kind, Period

log = structlog.get_logger(__name__)

RETRY_SECONDS = (15.0, 1800.0)  # the first pause, doubled up to the last
REPORT_GIVE_UP_SECONDS = 86_400.0
ALERT_GIVE_UP_SECONDS = 3600.0
COLLECT_SECONDS = 60.0  # what reading and composing may take at the most; the engine's statement timeout is below that
MARK_SECONDS = 20.0


def utcnow() -> datetime:
    """The time of day that decides what is due."""
    return datetime.now(UTC)


def _about(claimed: Claimed) -> dict[str, Any]:
    return {"delivery_id": claimed.id, "kind": claimed.kind, "period": claimed.period, "attempt": claimed.attempt}


@dataclasses.dataclass
class Reporter:
    """What the rounds share."""

    sessions: sessionmaker[Session]
    settings: Settings
    mailer: Mailer
    clock: Callable[[], datetime] = utcnow
    stopping: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        # By bare address in small letters, so that a changed name or case does not make somebody new.
        self.recipients = {split_mail_address(text)[1].casefold(): text for text in self.settings.report_recipients}
        self._letters: dict[tuple[str, str], Letter] = {}

    def plan(self) -> int:
        """Write down every report that has become due; how many mails are new."""
        now = self.clock()
        settings = self.settings
        new = 0
        with self.sessions.begin() as session:
            report_deliveries.register(session, list(self.recipients), now)
            for period in periods.due(
                now, settings.report_time, settings.report_timezone, weekly=settings.report_weekly
            ):
                due_at = period.due_at(settings.report_time)
                new += report_deliveries.owe(session, period.kind.value, period.key, list(self.recipients), due_at)
        return new

    def watch(self) -> int:
        """Write down an alert for every trouble that needs a person; how many mails are new."""
        new = 0
        with self.sessions.begin() as session:
            for name, detail in current_alerts(session, self.clock()):
                raised = report_deliveries.raise_alert(session, name, detail, list(self.recipients), THROTTLE_SECONDS)
                if raised:
                    log.warning("alert_raised", alert=name)
                new += raised
        return new

    def deliver(self) -> int:
        """Send everything that is due, oldest first; how many mails the server took."""
        sent = 0
        self._letters.clear()
        while not self.stopping.is_set():
            with self.sessions.begin() as session:
                lease = self.mailer.longest_seconds + COLLECT_SECONDS + MARK_SECONDS
                claimed = report_deliveries.claim(session, list(self.recipients), lease)
            if claimed is None:
                break
            sent += self._deliver(claimed)
        return sent

    def _deliver(self, claimed: Claimed) -> bool:
        try:
            letter = self._letter(claimed)
            identifier = message_id(self.mailer.sender, claimed.kind, claimed.period, claimed.recipient)
            # No transaction is open here: a slow server must not hold a connection.
            self.mailer.send(write(letter, self.mailer.sender, self.recipients[claimed.recipient], identifier))
        except Exception as error:  # noqa: BLE001  # Whatever it is, it is recorded, and tried again.
            self._note_trouble(claimed, error)
            return False
        if self._mark(lambda session: report_deliveries.mark_sent(session, claimed)):
            log.info("report_sent", **_about(claimed))
        else:
            log.error("report_sent_but_not_recorded", **_about(claimed))
        return True

    def _note_trouble(self, claimed: Claimed, error: Exception) -> None:
        again = self._retry_after(claimed)
        if isinstance(error, MailError):
            say = log.warning if again else log.error
            say("report_not_sent", reason=error.reason, retry_after_seconds=again, **_about(claimed))
            told = str(error)
        else:
            # The database is away, or there is a mistake in a report: neither may hold up the other mails for long.
            log.error("report_failed", retry_after_seconds=again, exc_info=error, **_about(claimed))
            told = cause_name(error)
        self._mark(lambda session: report_deliveries.mark_troubled(session, claimed, told, again))

    def _retry_after(self, claimed: Claimed) -> float | None:
        """The back-off; None when it would be too late then."""
        first, longest = RETRY_SECONDS
        pause = min(first * 2 ** (min(claimed.attempt, 20) - 1), longest)
        is_alert = claimed.kind.startswith(ALERT_PREFIX)
        give_up = ALERT_GIVE_UP_SECONDS if is_alert else REPORT_GIVE_UP_SECONDS
        return pause if claimed.age_seconds + pause < give_up else None

    def _mark(self, mark: Callable[[Session], bool]) -> bool:
        """Record what happened, for a while also against a database that is away: a mail sent twice is worse."""
        give_up_at = time.monotonic() + MARK_SECONDS
        while True:
            try:
                with self.sessions.begin() as session:
                    return mark(session)
            except SQLAlchemyError as error:
                if time.monotonic() > give_up_at:
                    return False
                log.warning("database_away", error=cause_name(error))
                time.sleep(0.5)

    def _letter(self, claimed: Claimed) -> Letter:
        zone, language = self.settings.report_timezone, self.settings.report_language
        if claimed.kind.startswith(ALERT_PREFIX):
            name = claimed.kind.removeprefix(ALERT_PREFIX)
            return compose_alert(name, claimed.detail or {}, self.clock(), zone, language, self.settings.admin_url)
        # Everybody gets the same numbers: the letter of one round is made once.
        key = (claimed.kind, claimed.period)
        if key not in self._letters:
            period = Period.from_key(Kind(claimed.kind), claimed.period, zone)
            with self.sessions.begin() as session:
                facts = collect(session, period, self.clock())
            self._letters[key] = compose(facts, language, self.settings.admin_url)
        return self._letters[key]
