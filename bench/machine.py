"""The machine and the versions that figures belong to."""

from __future__ import annotations

import dataclasses
import os
import platform
import ssl
import subprocess
from pathlib import Path

from tools.servers import RABBITMQ_PROGRAMS, postgresql_programs

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a reader needs to know of the place before comparing figures."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    postgresql: str
    rabbitmq: str
    openssl: str
    load: float  # over the last minute, when the run began
    commit: str

    @property
    def summary(self) -> str:
        """A line for below a heading."""
        return (
            f"{self.cores} cores of {self.processor}, {self.memory_gib:.0f} GiB, {self.system}, "
            f"Python {self.python}, PostgreSQL {self.postgresql}, RabbitMQ {self.rabbitmq}, {self.openssl}; "
            f"load at the start {self.load:.1f}"
        )


def look() -> Machine:
    """This machine as it is now."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}",
        python=platform.python_version(),
        postgresql=_output(str(postgresql_programs() / "postgres"), "--version").split()[2],
        rabbitmq=_rabbitmq(),
        openssl=" ".join(ssl.OPENSSL_VERSION.split()[:2]),
        load=round(os.getloadavg()[0], 2),
        commit=_commit(),
    )


class Theft:
    """What a virtual machine's host withholds of the processors from now on: the neighbours may slow a run."""

    def __init__(self) -> None:
        self._before = _processor_ticks()

    @property
    def share(self) -> float:
        """Of all the processor time since, what was asked for and not given; 0 on a machine of its own."""
        stolen, passed = (now - then for now, then in zip(_processor_ticks(), self._before, strict=True))
        return stolen / passed if passed else 0.0


def _processor_ticks() -> tuple[int, int]:
    """Those stolen and all of them, since the machine started (proc(5), /proc/stat)."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return steal, user + nice + system + idle + iowait + irq + softirq + steal


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _rabbitmq() -> str:
    # Read from where the program lies: asking it starts an Erlang machine for two seconds.
    return (RABBITMQ_PROGRAMS / "rabbitmq-server").resolve().parents[1].name.rpartition("-")[2]


def _commit() -> str:
    """The short commit, with a plus sign when tracked files differ from it."""
    try:
        return _output("git", "rev-parse", "--short", "HEAD") + (
            "+" if _output("git", "status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # an unpacked archive


def _output(*command: str) -> str:
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return finished.stdout.strip()
