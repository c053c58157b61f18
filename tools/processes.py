"""Start, stop, find and kill programs: what the native runner and the tests' servers have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

# Below Linux's range for outgoing connections, so that no client socket sits on a port while its server restarts.
FREE_PORTS = range(20_000, 32_000)
LOG_ROTATION_BYTES = 10_000_000

# The niceness of pages and API, and of the sender. Farther apart than the shares in docker-compose.yml: each connection
# of PostgreSQL is a session of its own here and keeps the usual weight, which the sender's have, too.
FIRST = -10
LAST = 5


class StartError(Exception):
    """A program did not come up; the text is for the operator and ends with what the program said."""


def is_free(port: int) -> bool:
    """Return True if nothing listens on this port, on any address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


# Ports that are spoken for in this process: between the promise and the server's start they look free.
_promised: set[int] = set()


def reserve(port: int) -> None:
    """Have `free_port` never return this one."""
    _promised.add(port)


def free_port(preferred: int | None = None) -> int:
    """Return `preferred` if it is free, otherwise a random free port; the same one never again."""
    wished = [] if preferred is None else [preferred]
    candidates = wished + random.SystemRandom().sample(FREE_PORTS, 200)
    port = next(port for port in candidates if port not in _promised and is_free(port))
    reserve(port)
    return port


def wait_until(condition: Callable[[], bool], timeout: float, pause: float = 0.05) -> bool:
    """Return True as soon as `condition` holds, False when it still does not after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, indented to stand below a message."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        last = file.read().decode(errors="replace").splitlines()[-lines:]
    return "".join(f"\n    {line}" for line in last)


def rotate(log: Path) -> None:
    """Keep one older copy of a log that has grown large.

    The writers hold the file open for appending, so it is emptied rather than renamed. Lines written between the
    copy and the truncation are lost.
    """
    if log.exists() and log.stat().st_size > LOG_ROTATION_BYTES:
        log.with_suffix(".log.1").write_bytes(log.read_bytes())
        os.truncate(log, 0)


# --- what runs, as /proc tells it -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Running:
    """A line of the process table. A pid alone may be somebody else's by now; with its start time it is not."""

    pid: int
    started: int  # clock ticks after boot
    parent: int = dataclasses.field(compare=False)  # changes when the parent dies
    session: int = dataclasses.field(compare=False)

    @property
    def is_alive(self) -> bool:
        """Return True while this very process runs."""
        return look_up(self.pid) == self

    @property
    def last_argument(self) -> str:
        """The last word of its command line; empty once it is gone."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/cmdline").read_text().rstrip("\0").rpartition("\0")[2]
        return ""

    def send(self, number: signal.Signals) -> None:
        """Signal this very process, if it still runs."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def look_up(pid: int) -> Running | None:
    """Return the process with this pid, None if there is none or only its exit status is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in ("Z", "X"):
        return None
    return Running(pid, started=int(fields[19]), parent=int(fields[1]), session=int(fields[3]))


def all_running() -> Iterator[Running]:
    """Every process of this machine."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := look_up(int(entry))):
            yield found


def family(leader: int) -> list[Running]:
    """The living members of this process's session and its descendants, itself included."""
    found: dict[int, Running] = {}
    table = list(all_running())
    members = [entry for entry in table if leader in (entry.pid, entry.session)]
    while members:
        found.update((entry.pid, entry) for entry in members)
        members = [entry for entry in table if entry.parent in found and entry.pid not in found]
    return list(found.values())


def marked(variable: str, value: str) -> list[Running]:
    """The processes that were started with this environment variable, as far as we may look into them."""
    wanted = f"{variable}={value}".encode()
    found = []
    for entry in all_running():
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{entry.pid}/environ").read_bytes().split(b"\0"):
                found.append(entry)
    return found


def end(find: Callable[[], Iterable[Running]], grace: float) -> None:
    """Ask all that `find` finds to stop; kill what still runs after `grace` seconds.

    It is asked until nothing is left: a process may start another one just before the signal reaches it.
    """
    if not _signal(find, signal.SIGTERM, grace, pause=0.05):
        _kill(find)


def _kill(find: Callable[[], Iterable[Running]]) -> None:
    """Kill these processes and wait for their end: until then they hold their ports, and are not gone yet."""
    _signal(find, signal.SIGKILL, timeout=5.0, pause=0.01)


def _signal(find: Callable[[], Iterable[Running]], number: signal.Signals, timeout: float, pause: float) -> bool:
    """Send each of these processes this signal once; return True when all are gone, False after `timeout` seconds."""
    seen: set[Running] = set()  # a descendant cannot be found any more once its parents are gone
    told: set[Running] = set()

    def is_over() -> bool:
        seen.update(entry for entry in find() if entry.pid != os.getpid())
        left = {entry for entry in seen if entry.is_alive}
        for entry in left - told:
            entry.send(number)
        told.update(left)
        return not left

    return wait_until(is_over, timeout, pause)


def as_account(account: str) -> list[str]:
    """The options that make setpriv change to this user."""
    group = pwd.getpwnam(account).pw_gid
    return ["--reuid", account, "--regid", str(group), "--clear-groups"]


# --- one program ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Process:
    """One program in a session of its own, its output appended to a log."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    account: str | None = None  # the user to run as, when we are root
    stop_signal: signal.Signals = signal.SIGTERM
    dies_with_parent: bool = False
    nice: int = 0  # below 0 only when we are root
    _popen: subprocess.Popen[bytes] | None = dataclasses.field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        """The pid of the running program, None when it does not run."""
        return self._popen.pid if self._popen and self._popen.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """How the program ended; None while it runs and before it was started."""
        return self._popen.poll() if self._popen else None

    def launch(self) -> None:
        """Start the program and return at once. What an earlier one of ours left running is ended first."""
        if self._popen:
            # It may be dying just now, and its pid in a lock file counts as alive until somebody has waited for it.
            self._popen.wait(timeout=5.0)
            end(self._left_behind, grace=5.0)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command,
                env=dict(self.env),
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if self._niceness:
            # Where the kernel shares the processor among sessions, a niceness counts within its session only.
            with contextlib.suppress(OSError):
                Path(f"/proc/{self._popen.pid}/autogroup").write_text(str(self._niceness))

    @property
    def command(self) -> list[str]:
        """The whole command line; nice and setpriv replace themselves by the program, so the pid is the program's."""
        weight = ["nice", "-n", str(self._niceness)] if self._niceness else []
        options = as_account(self.account) if self.account else []
        if self.dies_with_parent:
            options += ["--pdeathsig", "KILL"]
        return [*weight, *(["setpriv", *options, "--"] if options else []), *self.argv]

    @property
    def _niceness(self) -> int:
        return self.nice if os.geteuid() == 0 else max(0, self.nice)

    def send(self, number: signal.Signals) -> None:
        """Signal the program itself, not its children."""
        if self.pid is not None:
            os.kill(self.pid, number)

    def stop(self, timeout: float = 30.0) -> None:
        """Ask the program itself to stop; after `timeout` seconds kill it with everything it started."""
        if self._popen is None:
            return
        self.send(self.stop_signal)
        if wait_until(lambda: self.pid is None, timeout):
            end(self._left_behind, grace=5.0)
        else:
            self.kill()

    def kill(self) -> None:
        """Kill the program and everything it started, at once, as a power cut would."""
        if self._popen is None:
            return
        _kill(self._left_behind if self.pid is None else self._family)
        self._popen.wait()

    def _family(self) -> list[Running]:
        # Nobody else can bear the number before it has been waited for.
        return family(self._popen.pid) if self._popen else []

    def _left_behind(self) -> list[Running]:
        # The kernel does not reuse the number while the dead program's session has members: whoever bears it now
        # is a stranger.
        return [] if self._popen is None or look_up(self._popen.pid) else family(self._popen.pid)
