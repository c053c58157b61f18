"""How samples of a process are sorted: by the innermost line that tells what was being done."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bench.machinery import ROOT
from bench.profile import OTHER, group_of

OUTERMOST = f"main ({ROOT / 'sender/__main__.py'}:36)"


def frame(path: str, words: str) -> str:
    """A frame at the first line of one of our files with these words."""
    lines = (ROOT / path).read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if words in line)
    return f"function ({ROOT / path}:{number})"


# The words are looked up in the code as it is: when they are gone, the rules of bench/profile.py need a look, too.
@pytest.mark.parametrize(
    ("path", "words", "group"),
    [
        ("sender/connection.py", "_socket.recv(", "sockets and TLS"),
        ("sender/connection.py", "_socket.send(", "sockets and TLS"),
        ("sender/connection.py", ".do_handshake(", "sockets and TLS"),
        ("sender/connection.py", ".feed_data(", "reading HTTP"),
        ("sender/connection.py", "def on_body(", "reading HTTP"),
        ("sender/exchanges.py", "orjson.dumps(", "JSON"),
        ("sender/answers.py", "orjson.loads(", "JSON"),
        ("sender/exchanges.py", "_epoll.poll(", "waking up and polling"),
        ("sender/gateway.py", "time.sleep(", "waking up and polling"),
        ("sender/exchanges.py", "def _proceed(", "the client's own loop"),
        ("sender/answers.py", "def judge(", "judging answers"),
        ("sender/recorder.py", "def _write(", "recording outcomes"),
        ("sender/dispatcher.py", "def ", "dispatching"),
        ("db/queries/outcomes.py", "def record(", "queries, ours"),
    ],
)
def test_line_belongs_to_its_group(path: str, words: str, group: str) -> None:
    assert group_of([OUTERMOST, frame(path, words)]) == group


@pytest.mark.parametrize(
    ("file", "group"),
    [
        ("/venv/lib/python3.11/site-packages/sqlalchemy/engine/base.py", "SQLAlchemy"),
        ("/venv/lib/python3.11/site-packages/dramatiq/worker.py", "Dramatiq, pika"),
        ("/venv/lib/python3.11/site-packages/structlog/_base.py", "logging"),
    ],
)
def test_libraries_count_for_themselves(file: str, group: str) -> None:
    assert group_of([frame("sender/recorder.py", "def _write("), f"function ({file}:1)"]) == group


def test_standard_library_counts_for_its_caller() -> None:
    stack = [frame("sender/recorder.py", "def _write("), "counter (/usr/lib/python3.11/collections/__init__.py:629)"]
    assert group_of(stack) == "recording outcomes"


def test_wait_that_is_over_does_not_count_for_its_caller() -> None:
    lines = Path(threading.__file__).read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if "waiter.acquire(True, timeout)" in line)
    stack = [frame("sender/recorder.py", "def _write("), f"wait ({threading.__file__}:{number})"]
    assert group_of(stack) == "waking up and polling"


def test_stack_without_a_known_frame_is_something_else() -> None:
    assert group_of(["_bootstrap (/usr/lib/python3.11/threading.py:1002)", "<native>"]) == OTHER


def test_file_that_is_gone_is_no_obstacle(tmp_path: Path) -> None:
    assert group_of([f"run ({tmp_path / 'gone.py'}:3)"]) == OTHER
