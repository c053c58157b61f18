"""Starting, stopping and finding programs."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools import processes
from tools.processes import FIRST, LAST, Process, end, family, free_port, look_up, marked, rotate, wait_until

CAP_SYS_NICE = 1 << 23
MAY_GO_FIRST = bool(int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16) & CAP_SYS_NICE)
SHARED_BY_SESSION = Path("/proc/self/autogroup").exists()
# Each starts a child and tells when both are ready. The first ends at SIGTERM and leaves its child behind.
LEAVES_A_CHILD = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
signal.pause()
"""
# Starts its child as late as can be: when it is asked to stop.
STARTS_A_CHILD_AT_ITS_END = """
import signal, subprocess, sys
def leave(*_):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
signal.pause()
"""
# The kernel takes a moment to end this child, whose memory it has to clear away.
IGNORES_SIGTERM = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import time; held = bytes(range(256)) * 1_000_000; print('ready', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code])
while True:
    signal.pause()
"""


@contextmanager
def running(tmp_path: Path, code: str, *, nice: int = 0, **env: str) -> Iterator[Process]:
    """A program that is ready; afterwards nothing of it is left, whatever the test found."""
    program = Process(
        "program",
        [sys.executable, "-c", code],
        env=dict(os.environ) | env,
        cwd=tmp_path,
        log=tmp_path / "log",
        nice=nice,
    )
    program.launch()
    try:
        assert wait_until(lambda: "ready" in program.log.read_text(), timeout=10)
        yield program
    finally:
        program.kill()


def test_stopping_ends_what_the_program_left_behind(tmp_path: Path) -> None:
    with running(tmp_path, LEAVES_A_CHILD) as program:
        everyone = family(program.pid or 0)
        program.stop(timeout=10)

    assert len(everyone) == 2
    assert program.exit_code == 0
    assert not [member for member in everyone if member.is_alive]


def test_program_that_ignores_the_signal_is_killed_with_its_children(tmp_path: Path) -> None:
    with running(tmp_path, IGNORES_SIGTERM) as program:
        everyone = family(program.pid or 0)
        program.stop(timeout=0.2)

    assert len(everyone) == 2
    assert program.exit_code == -signal.SIGKILL
    assert not [member for member in everyone if member.is_alive]


@pytest.mark.parametrize("nice", [FIRST, LAST])
def test_program_goes_first_or_last_among_all_sessions(tmp_path: Path, nice: int) -> None:
    with running(tmp_path, LEAVES_A_CHILD, nice=nice) as program:
        members = [member.pid for member in family(program.pid or 0)]
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        granted = nice if nice > 0 or MAY_GO_FIRST else 0
        groups = {Path(f"/proc/{pid}/autogroup").read_text().strip() for pid in members} if SHARED_BY_SESSION else set()

        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in members] == [ours + granted, ours + granted]
        assert all(group.endswith(f"nice {granted}") for group in groups)


def test_launching_again_ends_the_orphans_of_a_killed_program_first(tmp_path: Path) -> None:
    with running(tmp_path, LEAVES_A_CHILD) as program:
        first = look_up(program.pid or 0)
        orphans = [member for member in family(program.pid or 0) if member != first]
        program.send(signal.SIGKILL)
        assert wait_until(lambda: program.pid is None, timeout=10)
        assert [orphan for orphan in orphans if orphan.is_alive] == orphans

        program.launch()

        assert not [orphan for orphan in orphans if orphan.is_alive]
        assert program.pid is not None


def test_marked_processes_are_found_without_their_parents_and_strangers_are_not(tmp_path: Path) -> None:
    mark = str(tmp_path)
    with running(tmp_path, LEAVES_A_CHILD, MARK=mark) as ours, running(tmp_path, LEAVES_A_CHILD, MARK="other") as other:
        children = [member for member in family(ours.pid or 0) if member.pid != ours.pid]
        ours.send(signal.SIGKILL)
        assert wait_until(lambda: ours.pid is None, timeout=10)

        found = marked("MARK", mark)
        end(lambda: marked("MARK", mark), grace=5)

        assert len(children) == 1
        assert found == children
        assert not children[0].is_alive
        assert other.pid is not None


def test_what_is_started_while_all_is_ended_is_ended_as_well(tmp_path: Path) -> None:
    mark = str(tmp_path)
    with running(tmp_path, STARTS_A_CHILD_AT_ITS_END, MARK=mark) as program:
        end(lambda: marked("MARK", mark), grace=5)

        assert marked("MARK", mark) == []
        assert program.exit_code == 0


def test_reused_pid_is_not_signalled() -> None:
    myself = look_up(os.getpid())
    assert myself
    predecessor = dataclasses.replace(myself, started=myself.started - 1)

    predecessor.send(signal.SIGKILL)  # would end this test

    assert not predecessor.is_alive


def test_free_port_avoids_one_that_is_listened_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]

        assert free_port(taken) != taken
        assert not processes.is_free(taken)


def test_free_port_is_given_to_one_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_promised", set())
    monkeypatch.setattr(processes, "FREE_PORTS", processes.FREE_PORTS[:200])

    given = [free_port() for _ in range(60)]

    assert len(set(given)) == len(given)
    assert free_port(given[0]) not in given


def test_large_log_is_emptied_after_a_copy_while_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * (processes.LOG_ROTATION_BYTES + 1))
        rotate(log)
        writer.write(b"after\n")

    assert log.read_bytes() == b"after\n"
    assert (tmp_path / "api.log.1").stat().st_size == processes.LOG_ROTATION_BYTES + 1
