"""One PostgreSQL and one RabbitMQ for all scenarios, a system of its own for each, and the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system import FIGURES, Servers, System

SystemMaker = Callable[..., System]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers to kill: they are brought back for the next scenario."""
    with Servers(tmp_path_factory.mktemp("servers")) as started:
        yield started


@pytest.fixture
def make_system(tmp_path: Path, servers: Servers) -> SystemMaker:
    """Make a system, to be used in a `with` statement."""

    def make(**options: Any) -> System:
        return System(tmp_path, servers, **options)

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of docs/reliability.md."""
    if not FIGURES:
        return
    terminalreporter.write_sep("=", "figures")
    terminalreporter.write_line(
        "| scenario | messages | s | ended as | arrivals | repeats (allowed) | longest silence, s | |"
    )
    terminalreporter.write_line("|---|---|---|---|---|---|---|---|")
    for line in FIGURES:
        statuses = ", ".join(f"{count} {status}" for status, count in line.statuses.items())
        allowed = "any" if line.repeats_allowed is None else line.repeats_allowed
        terminalreporter.write_line(
            f"| {line.scenario} | {line.messages} | {line.seconds} | {statuses} | {line.attempts}"
            f" | {line.repeats} ({allowed}) | {line.longest_silence} | {line.note} |"
        )
