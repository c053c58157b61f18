"""Where a message's time goes: samples of a sending process and of the dispatcher, sorted by what they were at."""

from __future__ import annotations

import dataclasses
import linecache
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.figures import Figure
from bench.gateways import MissingProgramError, NginxGateway
from bench.machinery import Bench, MeasurementError
from bench.system import Sending, System

SECTION = "profile"
TITLE = "Where a message's time goes"
SAMPLES_PER_SECOND = 200
_FRAME = re.compile(r"^(?P<function>.+) \((?P<file>[^()]+):(?P<line>\d+)\)$")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Samples in these files, at lines with one of these words (if any are given), belong to a group."""

    group: str
    files: str
    words: str = ""

    def matches(self, file: str, source: str) -> bool:
        """Whether a frame is of this group."""
        return bool(re.search(self.files, file)) and bool(re.search(self.words, source))


# Tried for each frame from the innermost outwards; files of the standard library belong to whoever called them. What
# C code does shows as the line that calls it.
RULES = (
    Rule("JSON", r"", r"\borjson\."),
    Rule("sockets and TLS", r"/sender/connection\.py$", r"_socket\.|\.wrap_socket\("),
    Rule("reading HTTP", r"/sender/connection\.py$", r"\.feed_data\(|def on_|HttpResponseParser"),
    Rule("waking up and polling", r"/sender/(gateway|exchanges)\.py$", r"_epoll\.|eventfd|time\.sleep"),
    # A thread whose wait is over, and that waits for a core now: pika's and Dramatiq's look round ten times a second.
    Rule("waking up and polling", r"/(threading|select_connection)\.py$", r"\.acquire\(|\.poll\("),
    Rule("judging answers", r"/sender/answers\.py$"),
    Rule("the client's own loop", r"/sender/(gateway|exchanges|connection|delivery|pacer|limit)\.py$"),
    Rule(
        "psycopg2: values, statements, commits",
        r"/sqlalchemy/engine/default\.py$",
        r"cursor\.execute|connection\.commit",
    ),
    Rule("SQLAlchemy", r"/(sqlalchemy|psycopg2)/"),
    Rule("recording outcomes", r"/sender/(recorder|outcomes)\.py$"),
    Rule("logging", r"/(structlog|logging)/|/common/logs\.py$"),
    Rule("Dramatiq, pika", r"/(dramatiq|pika)/|/sender/broker\.py$"),
    Rule("taking batches", r"/sender/actors\.py$|/db/placeholders\.py$"),
    Rule("queries, ours", r"/db/"),
    Rule("leases and heartbeats", r"/sender/(keeper|breaker|clock)\.py$"),
    Rule("dispatching", r"/sender/dispatcher\.py$"),
)
OTHER = "everything else"


def run(bench: Bench) -> Iterator[Figure]:
    """Sample one of two sending processes and the dispatcher while a mailing goes out at 0 ms."""
    messages = bench.size(200_000, 30_000)
    with (
        NginxGateway(bench.directory) as gateway,
        bench.database(messages) as database,
        System(bench, database, gateway) as system,
    ):
        sampled = {
            "sender": Samples(bench.directory, system.sending_processes()[0].pid),
            "dispatcher": Samples(bench.directory, system.dispatchers[0].pid or 0),
        }
        sending = system.send_mailing()
        groups = {name: samples.end() for name, samples in sampled.items()}
    yield from _by_process_group(sending)
    for name, counts in groups.items():
        yield from _by_work(name, counts, sending.cpu_microseconds[name])


def _by_process_group(sending: Sending) -> Iterator[Figure]:
    total = sum(sending.cpu_microseconds.values())
    for name, spent in sorted(sending.cpu_microseconds.items(), key=lambda item: -item[1]):
        yield Figure(SECTION, name, spent, "µs/message", total, "all processes")


def _by_work(name: str, counts: Counter[str], spent: float) -> Iterator[Figure]:
    total = counts.total()
    if not total:
        raise MeasurementError(f"no samples of the {name}")
    for group, count in _without_traces(counts).most_common():
        yield Figure(
            SECTION,
            f"{name}: {group}",
            spent * count / total,
            "µs/message",
            spent,
            f"all of {name}",
            f"{count} samples",
        )


def _without_traces(counts: Counter[str]) -> Counter[str]:
    """The same with groups of less than a hundredth put together."""
    found: Counter[str] = Counter()
    for group, count in counts.items():
        found[group if count * 100 >= counts.total() else OTHER] += count
    return found


class Samples:
    """py-spy at work on one process, until `end`."""

    def __init__(self, directory: Path, pid: int) -> None:
        beside = Path(sys.executable).with_name("py-spy")
        program = str(beside) if beside.exists() else shutil.which("py-spy")
        if program is None:
            raise MissingProgramError("py-spy is not installed; it is in requirements/dev.txt")
        self._file = directory / f"samples-{pid}"
        # Idle threads are left out. Without stopping the process for each look, a few looks go wrong; it stays fast.
        options = [
            "--format",
            "raw",
            "--full-filenames",
            "--nonblocking",
            "--rate",
            str(SAMPLES_PER_SECOND),
            "--duration",
            "unlimited",
        ]
        self._process = subprocess.Popen(
            [program, "record", "--pid", str(pid), "--output", str(self._file), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> Counter[str]:
        """Samples by what was being done."""
        self._process.send_signal(signal.SIGINT)
        _, errors = self._process.communicate(timeout=60)
        if not self._file.exists():
            raise MeasurementError(f"py-spy wrote no samples (it needs root, or ptrace): {errors[-500:]}")
        counts: Counter[str] = Counter()
        for line in self._file.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            counts[group_of(stack.split(";"))] += int(count)
        return counts


def group_of(stack: Sequence[str]) -> str:
    """What a stack of py-spy's, outermost frame first, was at."""
    for frame in reversed(stack):
        if match := _FRAME.match(frame):
            source = linecache.getline(match["file"], int(match["line"]))
            for rule in RULES:
                if rule.matches(match["file"], source):
                    return rule.group
    return OTHER
