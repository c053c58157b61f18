"""The background process of `make up-native`: it starts everything, restarts what dies, and stops everything.

Started by `tools.native`; told to stop by SIGTERM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType
from typing import Any, Protocol
from urllib.parse import urlsplit

from common.settings import SettingsError, load
from tools import credentials
from tools.local import MARK, ROOT, Local, Lock, configuration, is_set, write_json
from tools.processes import FIRST, LAST, Process, StartError, end, free_port, is_free, reserve, rotate, tail, wait_until
from tools.servers import PostgreSQL, RabbitMQ

HEALTHY_WITHIN_SECONDS = 60.0
MIGRATED_WITHIN_SECONDS = 900.0
STOP_SECONDS = 30.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds before something that died is started again
STEADY_SECONDS = 10.0  # what lived this long starts again after the shortest pause
ROTATE_EVERY_SECONDS = 10.0
OPEN_FILES = 65_536
NICENESS = {"api": FIRST, "admin": FIRST, "worker": LAST}


class StopRequested(BaseException):
    """SIGTERM arrived."""


class Child(Protocol):
    """What the supervisor needs of a server or a process."""

    name: str
    log: Path

    @property
    def pid(self) -> int | None: ...

    def launch(self) -> None: ...

    def stop(self, timeout: float = ...) -> None: ...


@dataclasses.dataclass
class Watched:
    """A child and how its life has gone."""

    child: Child
    serves: Callable[[], bool] = lambda: True
    restarts: int = 0
    launched_at: float = 0.0
    pause: float = SHORTEST_PAUSE
    start_at: float | None = None

    def launch(self) -> None:
        """Start the child now."""
        self.launched_at = time.monotonic()
        self.start_at = None
        self.child.launch()

    def restart_if_dead(self) -> bool:
        """Start the child again once its pause is over; return True if that happened."""
        now = time.monotonic()
        if self.child.pid is not None:
            return False
        if self.start_at is None:
            self.pause = (
                SHORTEST_PAUSE if now - self.launched_at > STEADY_SECONDS else min(self.pause * 2, LONGEST_PAUSE)
            )
            self.start_at = now + self.pause
            say(f"{self.child.name} has died, starting it again in {self.pause:.1f} s")
        if now < self.start_at:
            return False
        try:
            self.launch()
        except (OSError, subprocess.TimeoutExpired) as error:
            say(f"{self.child.name} cannot be started: {error}")
            return False
        self.restarts += 1
        return True

    def is_healthy(self) -> bool:
        """Return True if the child runs and can serve."""
        return self.child.pid is not None and self.serves()


class Supervisor:
    """All processes of one native instance."""

    def __init__(self, local: Local, env: dict[str, str]) -> None:
        self.local = local
        self.env = env
        self.watched: list[Watched] = []
        self.notes: list[str] = []
        self.access: dict[str, str] = {}

    def start(self) -> None:
        """Start everything and wait until it is healthy; raise StartError or SettingsError naming what is not."""
        self._reserve_ports()
        self._start_servers()
        self._configure()
        self._migrate()
        for watched in self._services():
            self.watched.append(watched)
            watched.launch()
            self.publish("starting")
        for watched in self.watched:
            self._await_health(watched)

    def watch(self) -> None:
        """Restart what dies, for ever."""
        rotate_at = 0.0
        is_published = True
        while True:
            if [watched for watched in self.watched if watched.restart_if_dead()]:
                is_published = False
            with contextlib.suppress(OSError):  # The disk may be full: what cannot be written now is written later.
                if not is_published:
                    self.publish("ready")
                    is_published = True
                if time.monotonic() > rotate_at:
                    rotate_at = time.monotonic() + ROTATE_EVERY_SECONDS
                    for log in self.local.logs.glob("*.log"):
                        rotate(log)
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop everything, what was started last first."""
        with contextlib.suppress(OSError):
            self.publish("stopping")
        for watched in reversed(self.watched):
            watched.child.stop(STOP_SECONDS)
        end(self.local.members, grace=5.0)
        self.local.access.unlink(missing_ok=True)
        self.local.environment.unlink(missing_ok=True)

    def publish(self, phase: str, message: str = "") -> None:
        """Tell `make up`, `make status` and `make demo` how things stand."""
        children = [
            {"name": watched.child.name, "pid": watched.child.pid, "restarts": watched.restarts}
            for watched in self.watched
        ]
        state: dict[str, Any] = {"phase": phase, "message": message, "pid": os.getpid(), "notes": self.notes}
        write_json(self.local.state, state | {"access": self.access, "children": children})

    # --- the steps of starting ---

    def _reserve_ports(self) -> None:
        # Our own servers draw their ports first; the services would find theirs taken.
        for variable in ("API_PORT", "ADMIN_PORT", "GATEWAY_PORT"):
            if (wanted := self.env.get(variable, "")).isdigit():
                reserve(int(wanted))

    def _start_servers(self) -> None:
        if not is_set("AMQP_URL", self.env):
            rabbitmq = RabbitMQ(
                self.local.path, port=self.local.remembered_port("rabbitmq"), log=self.local.logs / "rabbitmq.log"
            )
            # It takes seconds to come up, in which PostgreSQL and the migrations are done.
            rabbitmq.prepare()
            self.watched.append(Watched(rabbitmq, rabbitmq.answers))
            self.watched[-1].launch()
            self.env["AMQP_URL"] = rabbitmq.url
        if not is_set("DATABASE_URL", self.env):
            postgresql = PostgreSQL(
                self.local.path, port=self.local.remembered_port("postgres"), log=self.local.logs / "postgres.log"
            )
            self.watched.append(Watched(postgresql, postgresql.answers, launched_at=time.monotonic()))
            postgresql.start()
            self.env["DATABASE_URL"] = postgresql.url()
        self.publish("starting")

    def _configure(self) -> None:
        for name in ("SECRET_KEY", "API_KEY", "ADMIN_PASSWORD"):
            if not is_set(name, self.env):
                self.env[name] = credentials.ensure(self.local.secrets, name, self.env)
        if not is_set("GATEWAY_URL", self.env):
            self.env["GATEWAY_PORT"] = port = self._port("GATEWAY_PORT", 8100, "the simulated gateway")
            self.env["GATEWAY_URL"] = f"http://127.0.0.1:{port}"
            if not is_set("GATEWAY_TOKEN", self.env):
                self.env["GATEWAY_TOKEN"] = credentials.ensure(self.local.secrets, "GATEWAY_TOKEN", self.env)
            self.access["gateway"] = self.env["GATEWAY_URL"]
        self.env["API_PORT"] = self._port("API_PORT", 8000, "the API")
        self.env["ADMIN_PORT"] = self._port("ADMIN_PORT", 8001, "the admin pages")
        if not is_set("EMAIL_HOST", self.env):
            self._catch_mail()
        if not is_set("ADMIN_URL", self.env):
            self.env["ADMIN_URL"] = f"http://127.0.0.1:{self.env['ADMIN_PORT']}"
        os.environ.update(self.env)
        settings = load().require("secret_key", "gateway_url", "gateway_token")
        self.access["api"] = f"http://127.0.0.1:{settings.api_port}"
        self.access["api_key"] = str(settings.api_key)
        self.access["admin"] = f"http://127.0.0.1:{settings.admin_port}"
        self.access["admin_email"] = str(settings.admin_email)
        self.access["admin_password"] = str(settings.admin_password)

    def _catch_mail(self) -> None:
        self.env["EMAIL_HOST"], self.env["EMAIL_PORT"] = "127.0.0.1", str(self.local.remembered_port("mail"))
        self.env.pop("EMAIL_HOST_USER", None)
        self.env["EMAIL_USE_TLS"] = self.env["EMAIL_USE_SSL"] = "false"
        self.env.setdefault("EMAIL_FROM", "Mailings <mailings@example.com>")
        if not is_set("REPORT_RECIPIENTS", self.env):
            self.env["REPORT_RECIPIENTS"] = self.env.get("ADMIN_EMAIL", "admin@example.com")
        self.access["mail"] = str(self.local.mail)

    def _port(self, variable: str, usual: int, what: str) -> str:
        if wanted := self.env.get(variable):
            # What is no number at all is left to the settings to refuse.
            if wanted.isdigit() and not is_free(int(wanted)):
                raise StartError(f"{variable}: port {wanted} is taken by another program")
            return wanted
        port = free_port(usual)
        if port != usual:
            self.notes.append(f"Port {usual} is taken by another program: {what} is on port {port}.")
        return str(port)

    def _migrate(self) -> None:
        migration = self._process("migrate", "db", "upgrade")
        migration.launch()
        is_done = wait_until(lambda: migration.pid is None, MIGRATED_WITHIN_SECONDS)
        if not is_done or migration.exit_code:
            migration.stop()
            raise StartError(f"the migration of the database failed; the end of {migration.log}:{tail(migration.log)}")

    def _services(self) -> list[Watched]:
        services = []
        if "gateway" in self.access:
            simulator = self._process(
                "simulator", "simulator", "--host", "127.0.0.1", "--port", self.env["GATEWAY_PORT"]
            )
            services.append(Watched(simulator, partial(answers, f"{self.access['gateway']}/healthz")))
        services.append(Watched(self._process("api", "api"), partial(answers, f"{self.access['api']}/readyz")))
        services.append(
            Watched(self._process("dispatcher", "sender", "dispatcher"), partial(self._beats, "dispatcher"))
        )
        services.append(Watched(self._process("worker", "sender", "worker"), partial(self._beats, "sender")))
        services.append(Watched(self._process("admin", "admin"), partial(answers, f"{self.access['admin']}/readyz")))
        if "mail" in self.access:
            options = ["--port", self.env["EMAIL_PORT"], "--directory", str(self.local.mail)]
            mailbox = self._process("mailbox", "tools.mailbox", *options)
            services.append(Watched(mailbox, lambda: not is_free(int(self.env["EMAIL_PORT"]))))
        services.append(Watched(self._process("reporter", "reporter"), self._reports))
        return services

    def _process(self, name: str, module: str, *arguments: str) -> Process:
        return Process(
            name=name,
            argv=[sys.executable, "-m", module, *arguments],
            env=self.env,
            cwd=ROOT,
            log=self.local.logs / f"{name}.log",
            nice=NICENESS.get(name, 0),
        )

    def _beats(self, kind: str) -> bool:
        check = [sys.executable, "-m", "sender.health", kind]
        return subprocess.run(check, cwd=ROOT, env=self.env, capture_output=True, check=False).returncode == 0

    def _reports(self) -> bool:
        check = [sys.executable, "-m", "reporter", "health"]
        return subprocess.run(check, cwd=ROOT, env=self.env, capture_output=True, check=False).returncode == 0

    def _await_health(self, watched: Watched) -> None:
        child = watched.child
        wait_until(lambda: child.pid is None or watched.is_healthy(), HEALTHY_WITHIN_SECONDS)
        if not watched.is_healthy():
            what = "is not healthy" if child.pid else "has ended"
            raise StartError(f"{child.name} {what}; the end of {child.log}:{tail(child.log)}")


def answers(address: str) -> bool:
    """Return True if the address answers with success."""
    parts = urlsplit(address)
    # Not urllib.request: it would ask a proxy from the environment for our own loopback.
    connection = HTTPConnection(parts.netloc, timeout=3)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def say(text: str) -> None:
    """Write a line into the supervisor's log."""
    with contextlib.suppress(OSError):  # The disk may be full.
        print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}", flush=True)


def request_stop(_number: int, _frame: FrameType | None) -> None:
    """Begin to stop; further signals do not disturb that."""
    handle_stop(signal.SIG_IGN)
    raise StopRequested


def handle_stop(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Set what SIGTERM and Ctrl-C do."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def raise_open_files_limit() -> None:
    """A worker holds a connection per call in flight; Debian's soft limit of 1024 files is too low for that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(local: Local) -> int:
    """Supervise until told to stop; return 1 when the start failed."""
    env = configuration(os.environ, local.env_file) | {MARK: str(local.path), "PYTHONUNBUFFERED": "1"}
    os.environ[MARK] = env[MARK]
    end(local.members, grace=15.0)  # left by a supervisor that was killed
    supervisor = Supervisor(local, env)
    failure = ""
    try:
        handle_stop(request_stop)
        supervisor.publish("starting")
        supervisor.start()
        write_json(local.access, supervisor.access)
        write_json(local.environment, supervisor.env)
        supervisor.publish("ready")
        say("everything is healthy")
        supervisor.watch()
    except StopRequested:
        say("stopping")
    except (StartError, SettingsError, OSError) as error:
        failure = str(error)
        say(failure)
    finally:
        handle_stop(signal.SIG_IGN)
        supervisor.stop()
    with contextlib.suppress(OSError):
        supervisor.publish("failed" if failure else "stopped", failure)
    return 1 if failure else 0


def main() -> int:
    """Run in the directory named on the command line, unless another supervisor does."""
    local = Local(Path(sys.argv[1]), Path(sys.argv[2]))
    local.create()
    raise_open_files_limit()
    with Lock(local.lock) as lock:
        # Whoever just asks whether somebody supervises holds the lock for an instant.
        if not wait_until(lock.take, timeout=2):
            return 0
        lock.sign()
        return run(local)


if __name__ == "__main__":
    sys.exit(main())
