"""The table of figures at the end."""

from __future__ import annotations

import pytest

from tests.system import FIGURES


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
