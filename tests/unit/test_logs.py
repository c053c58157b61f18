"""What a log line holds, and what it never does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import logging, threading, warnings
import structlog
from sqlalchemy.exc import IntegrityError
from common import logs

PHONE = "+7916" + "1234567"  # Not in one piece: tracebacks quote the source.

class DriverError(Exception):
    pgcode = "23505"

logs.configure("INFO", {log_format!r}, "api")
log = structlog.get_logger()
log.debug("hidden")
log.info("request", status=200)
thread = threading.Thread(target=lambda: log.info("from_a_thread"))
thread.start()
thread.join()
logging.getLogger("library").warning("careful %s", "there")
logging.getLogger("library").info("hidden")
warnings.warn("old", DeprecationWarning)
try:
    try:
        raise DriverError(f"Key (phone)=({{PHONE}}) already exists.")
    except DriverError as cause:
        raise IntegrityError("INSERT", {{"phone": PHONE}}, cause) from cause
except IntegrityError:
    log.exception("failed")
    logging.getLogger("library").exception("failed there")
try:
    raise ValueError("a reason")
except ValueError as error:
    log.error("refused", exc_info=error)
"""


def _lines(log_format: str) -> list[str]:
    program = PROGRAM.format(log_format=log_format)
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    return ended.stdout.splitlines()


def test_every_line_is_json_with_the_service_and_its_level() -> None:
    lines = [json.loads(line) for line in _lines("json")]

    assert [(line["event"], line["level"]) for line in lines] == [
        ("request", "info"),
        ("from_a_thread", "info"),
        ("careful there", "warning"),
        (lines[3]["event"], "warning"),
        ("failed", "error"),
        ("failed there", "error"),
        ("refused", "error"),
    ]
    assert "DeprecationWarning" in lines[3]["event"]
    assert all(line["service"] == "api" and line["timestamp"].endswith("Z") for line in lines)


def test_errors_tell_where_and_what_but_quote_no_rows() -> None:
    database, library, other = _lines("json")[4:]

    for line in (database, library):
        assert "sqlalchemy.exc.IntegrityError: SQLSTATE 23505" in line
        assert "DriverError: SQLSTATE 23505" in line
        assert "in <module>" in line
        assert "9161234567" not in line
    assert "ValueError: a reason" in other


def test_the_console_format_is_text() -> None:
    lines = _lines("console")

    assert "request" in lines[0]
    assert not lines[0].startswith("{")
    assert "9161234567" not in "\n".join(lines)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_full_disk_loses_the_line_and_stops_nothing(log_format: str) -> None:
    with Path("/dev/full").open("w") as full:
        program = PROGRAM.format(log_format=log_format) + "import os; os._exit(42)"
        ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=full, check=False, timeout=30)
    assert ended.returncode == 42
