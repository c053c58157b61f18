"""The table of figures at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system import FIGURES

# For those that `make test` runs, too: a whole system is started, and waits for itself for up to three minutes.
TIMEOUT_SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder the time that they may need."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not any(map(item.get_closest_marker, ("faults", "timeout"))):
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))


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
