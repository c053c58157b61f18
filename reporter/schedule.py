"""The process: APScheduler calls the rounds. When exactly it does decides nothing; the rows in the database do."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import psycopg2
import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from common.settings import Settings
from common.stopping import stop_signal
from db.engine import cause_name, make_engine
from db.queries import processes, report_deliveries
from reporter.deliveries import Reporter
from reporter.mail import Mailer

log = structlog.get_logger(__name__)

BEAT_SECONDS = 2
DELIVER_SECONDS = 5
PLAN_SECONDS = 30  # what the cron trigger missed: a stop, a clock that was set, a database that was away
WATCH_SECONDS = 30
TIDY_SECONDS = 3600


def process_name() -> str:
    """A name of this process that no other has, and that tells a person where it runs."""
    return f"{name_prefix()}{os.getpid()}:{uuid.uuid4().hex[:6]}"


def name_prefix() -> str:
    """How the names of reporters on this machine begin."""
    return f"reporter@{socket.gethostname()}:"


def run(settings: Settings) -> None:
    """Report until SIGTERM or SIGINT; a mail that is on its way is finished then, no other is begun."""
    stopping = stop_signal()
    assert settings.database_url
    engine = make_engine(settings.database_url, "mailings reporter", pool_size=5, statement_timeout_seconds=30)
    sessions = sessionmaker(engine, expire_on_commit=False)
    name = process_name()
    # It says every two seconds that all is well.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    zone = ZoneInfo(settings.report_timezone)
    scheduler = BackgroundScheduler(
        timezone=zone,
        executors={"default": ThreadPoolExecutor(4)},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    _every(scheduler, BEAT_SECONDS, _guarded("beat", lambda: _beat(sessions, name)))
    missing = _missing(settings)
    if missing:
        log.warning("reporter_idle", reason=f"{missing} is not set: no mails are sent")
    else:
        _add_rounds(scheduler, settings, Reporter(sessions, settings, Mailer(settings), stopping=stopping))
        log.info("reporter_started", process=name, recipients=len(settings.report_recipients))
    scheduler.start()
    stopping.wait()
    scheduler.shutdown(wait=True)
    _guarded("leave", lambda: _leave(sessions, name))()
    log.info("reporter_stopped", process=name)


def _missing(settings: Settings) -> str | None:
    if not settings.email_host:
        return "EMAIL_HOST"
    return None if settings.report_recipients else "REPORT_RECIPIENTS"


def _add_rounds(scheduler: BackgroundScheduler, settings: Settings, reporter: Reporter) -> None:
    plan, deliver = _guarded("plan", reporter.plan), _guarded("deliver", reporter.deliver)
    clock, zone = settings.report_time, ZoneInfo(settings.report_timezone)

    def plan_and_deliver() -> None:
        plan()
        deliver()

    scheduler.add_job(
        plan_and_deliver, CronTrigger(hour=clock.hour, minute=clock.minute, second=clock.second, timezone=zone)
    )
    _every(scheduler, PLAN_SECONDS, plan)
    _every(scheduler, WATCH_SECONDS, _guarded("watch", reporter.watch))
    _every(scheduler, DELIVER_SECONDS, deliver)
    _every(scheduler, TIDY_SECONDS, _guarded("tidy", lambda: _tidy(reporter.sessions)))


def _every(scheduler: BackgroundScheduler, seconds: int, work: Callable[[], None]) -> None:
    # The first time at once, then every so often.
    scheduler.add_job(work, IntervalTrigger(seconds=seconds), next_run_time=datetime.now(UTC))


def _guarded(name: str, work: Callable[[], object]) -> Callable[[], None]:
    """The same work, which logs what goes wrong and is tried again with its next turn."""

    def guarded() -> None:
        try:
            work()
        except (SQLAlchemyError, psycopg2.Error, OSError) as error:
            log.warning("database_away", round=name, error=cause_name(error))
        except Exception:
            log.exception("round_failed", round=name)

    return guarded


def _beat(sessions: sessionmaker[Session], name: str) -> None:
    with sessions.begin() as session:
        processes.beat(session, name, "reporter", 0)


def _leave(sessions: sessionmaker[Session], name: str) -> None:
    with sessions.begin() as session:
        processes.leave(session, name)


def _tidy(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        report_deliveries.forget_old(session)
