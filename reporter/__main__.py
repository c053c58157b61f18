"""`python -m reporter`: send every report when it is due; `python -m reporter send`: one report now."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from environs import EnvError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from common import logs
from common.settings import Settings, SettingsError, exit_with, mail_addresses, settings
from db.engine import cause_name, make_engine
from db.queries import processes
from reporter import schedule
from reporter.facts import collect
from reporter.letter import Letter, compose
from reporter.mail import Mailer, MailError, new_message_id, write
from reporter.periods import Kind, Period, local_day

STDOUT = "-"


def main() -> int:
    """Run one command; the exit status."""
    arguments = _parse()
    try:
        given = settings().require("database_url")
        if arguments.command is None and given.email_host:
            Mailer(given)  # Refuses settings that could never send.
        if arguments.command == "send" and not arguments.dry_run:
            Mailer(given)
            if not (arguments.to or given.report_recipients):
                raise SettingsError("REPORT_RECIPIENTS is not set, and there is no --to")
    except SettingsError as error:
        exit_with(error)
    if arguments.command == "health":
        return _health(given)
    if arguments.command == "send":
        # Standard output is for the preview.
        return _send(given, arguments)
    logs.configure(given.log_level, given.log_format, "reporter")
    schedule.run(given)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m reporter",
        description="Send every report and alert when it is due, until SIGTERM. Configured by environment variables.",
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("health", help="exit status 0 if a reporter works on this machine")
    send = commands.add_parser("send", help="send or preview one report now; the regular ones are not affected")
    send.add_argument("--day", default="today", help="YYYY-MM-DD, yesterday, or today (so far; the default)")
    send.add_argument("--week", action="store_true", help="the report of the whole week that the day is in")
    send.add_argument("--to", type=_addresses, default=(), help="addresses; default: REPORT_RECIPIENTS")
    send.add_argument(
        "--dry-run",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="send nothing, write the HTML to this file or to standard output",
    )
    return parser.parse_args()


def _addresses(text: str) -> tuple[str, ...]:
    try:
        return mail_addresses(text)
    except EnvError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _period(day: str, zone: str, now: datetime, *, week: bool) -> Period:
    today = local_day(now, zone)
    named = {"today": today, "yesterday": today - timedelta(days=1)}
    wanted = named.get(day) or date.fromisoformat(day)
    if wanted > today:
        raise ValueError
    return Period.week_of(wanted, zone) if week else Period(Kind.DAILY, wanted, zone)


def _send(given: Settings, arguments: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    try:
        period = _period(arguments.day, given.report_timezone, now, week=arguments.week)
    except ValueError:
        sys.stderr.write(f"--day: {arguments.day!r} is not a day that has begun, such as 2026-11-22\n")
        return 2
    engine = make_engine(given.database_url or "", "mailings report", statement_timeout_seconds=60)
    try:
        with Session(engine) as session:
            facts = collect(session, period, now)
    except SQLAlchemyError as error:
        sys.stderr.write(f"the database could not be read: {cause_name(error)}\n")
        return 1
    letter = compose(facts, given.report_language, given.admin_url)
    if arguments.dry_run:
        return _preview(letter, arguments.dry_run)
    return _mail(letter, Mailer(given), arguments.to or given.report_recipients)


def _preview(letter: Letter, target: str) -> int:
    if target == STDOUT:
        sys.stdout.write(letter.html)
    else:
        Path(target).write_text(letter.html)
        print(f"{letter.subject}\nwritten to {target}")
    return 0


def _mail(letter: Letter, mailer: Mailer, recipients: tuple[str, ...]) -> int:
    failures = 0
    for recipient in recipients:
        try:
            mailer.send(write(letter, mailer.sender, recipient, new_message_id(mailer.sender)))
        except MailError as error:
            failures += 1
            sys.stderr.write(f"not sent to {recipient}: {error}\n")
        else:
            print(f"sent to {recipient}: {letter.subject}")
    return 1 if failures else 0


def _health(given: Settings) -> int:
    try:
        with Session(make_engine(given.database_url or "", "mailings health")) as session:
            return 0 if processes.is_beating(session, schedule.name_prefix()) else 1
    except SQLAlchemyError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
