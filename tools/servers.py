"""A private PostgreSQL and a private RabbitMQ from this machine's programs, for the tests and the native runner.

Each has its own port, data and password, listens on the loopback only, and shares nothing with servers that may run
here already. `tools/bootstrap servers` installs the programs.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg2

from tools.processes import Process, StartError, as_account, free_port, is_free, tail, wait_until

RABBITMQ_PROGRAMS = Path("/usr/lib/rabbitmq/bin")
POSTGRESQL_PROGRAMS = Path("/usr/lib/postgresql")
START_SECONDS = 90.0  # a large database may have to be recovered first
RETRY_SECONDS = 10.0  # for servers that end by themselves
USER = "mailings"

# docker-compose.yml gives the same ones to its server.
POSTGRESQL_SETTINGS = {
    "shared_buffers": "256MB",
    "max_connections": "200",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",
    "wal_compression": "lz4",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "autovacuum_naptime": "15s",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
# For tests, which would lose their data in a power cut only. (Without synchronous_commit a kill -9 would do, too.)
POSTGRESQL_SETTINGS_WITHOUT_DISKS = {"fsync": "off", "full_page_writes": "off"}


class Server:
    """What both servers share: a directory, a log, and the life of one process on a fixed port."""

    name: str
    system_account: str

    def __init__(self, directory: Path, *, port: int | None, password: str | None, log: Path | None) -> None:
        self.account = _account(self.system_account)
        self.directory = _usable_directory(directory / self.name, self.account)
        self.port = port or free_port()
        self.password = password or _remembered(self.directory / "password")
        self.log = log or directory / f"{self.name}.log"
        self.dies_with_parent = False
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.dies_with_parent = True
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The server's main process, None when it does not run."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server and wait until it answers; raise StartError with the end of its log otherwise."""
        self.prepare()
        # After a kill -9 PostgreSQL refuses to start until the last orphaned backend has noticed: try again.
        give_up_at = time.monotonic() + RETRY_SECONDS
        self.launch()
        while not (wait_until(lambda: self.pid is None or self.answers(), START_SECONDS) and self.pid):
            if self.pid or time.monotonic() > give_up_at:
                self.kill()
                raise StartError(f"{self.name} did not start; the end of its log ({self.log}):{tail(self.log)}")
            time.sleep(0.2)
            self.launch()

    def launch(self) -> None:
        """Start the prepared server without waiting for it."""
        if self._process is None:
            self._process = self.process()
        self._process.launch()

    def stop(self, timeout: float = 30.0) -> None:
        """Stop cleanly, within `timeout` seconds or by force; everything committed or persistent is kept."""
        if self._process:
            self._process.stop(timeout)

    def kill(self) -> None:
        """kill -9 of the server with all its processes."""
        if self._process:
            self._process.kill()

    def restart(self) -> None:
        """Stop cleanly and start again on the same port with the same data."""
        self.stop()
        self.start()

    def send(self, number: signal.Signals) -> None:
        """Signal the main process, for instance SIGSTOP and SIGCONT."""
        if self._process:
            self._process.send(number)

    def remove(self) -> None:
        """Stop the server and delete its data."""
        self.kill()
        remove_directory(self.directory)

    def prepare(self) -> None:
        """Bring the directory to where `launch` works; quick when it was done before."""
        raise NotImplementedError

    def process(self) -> Process:
        """The server's command line."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Return True if clients can be served now."""
        raise NotImplementedError

    def _own(self, *paths: Path) -> None:
        if self.account:
            for path in paths:
                _give(path, self.account)

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "MAILINGS_INSTANCE") if name in os.environ}
        return {"LANG": "C.UTF-8", "HOME": str(self.directory), **kept}


class PostgreSQL(Server):
    """A PostgreSQL server; `url()` is for SQLAlchemy, `dsn()` for psycopg2 and psql."""

    name = "postgres"
    system_account = "postgres"

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        password: str | None = None,
        log: Path | None = None,
        without_disks: bool = False,
    ) -> None:
        super().__init__(directory, port=port, password=password, log=log)
        self.settings = POSTGRESQL_SETTINGS | (POSTGRESQL_SETTINGS_WITHOUT_DISKS if without_disks else {})
        self.data = self.directory / "data"

    def url(self, database: str = USER) -> str:
        """The value for DATABASE_URL."""
        return f"postgresql+psycopg2://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def dsn(self, database: str = USER) -> str:
        """The same address as the C library spells it."""
        return self.url(database).replace("+psycopg2", "")

    def prepare(self) -> None:
        """Create the cluster if there is none."""
        if (self.data / "PG_VERSION").exists():
            return
        unfinished = self.directory / "unfinished"
        password_file = self.directory / "initial-password"
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file.write_text(self.password)
        password_file.chmod(0o600)
        self._own(self.directory, password_file)
        initdb = Process(
            name="initdb",
            argv=[
                str(postgresql_programs() / "initdb"),
                *("-D", str(unfinished), "-U", USER, "--pwfile", str(password_file), "--auth", "scram-sha-256"),
                *("--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync", "--no-instructions"),
            ],
            env=self._environment(),
            cwd=self.directory,
            log=self.log,
            account=self.account,
        )
        initdb.launch()
        if not wait_until(lambda: initdb.pid is None, START_SECONDS) or initdb.exit_code:
            initdb.kill()
            raise StartError(f"PostgreSQL's initdb failed; the end of its log:{tail(self.log)}")
        password_file.unlink()
        # Renamed last: an interrupted initdb leaves nothing that looks like a cluster.
        unfinished.rename(self.data)

    def process(self) -> Process:
        """SIGINT is PostgreSQL's fast shutdown; at SIGTERM it would wait for every client to leave."""
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            **self.settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Process(
            name=self.name,
            argv=[str(postgresql_programs() / "postgres"), "-D", str(self.data), *options],
            env=self._environment(),
            cwd=self.data,
            log=self.log,
            account=self.account,
            stop_signal=signal.SIGINT,
            dies_with_parent=self.dies_with_parent,
        )

    def start(self) -> None:
        """As for every server; the database `mailings` exists afterwards."""
        super().start()
        with contextlib.suppress(psycopg2.errors.DuplicateDatabase):
            self.execute(f"CREATE DATABASE {USER}")

    def answers(self) -> bool:
        """Log in, since the port opens before the server accepts work."""
        try:
            psycopg2.connect(self.dsn("postgres"), connect_timeout=3).close()
        except psycopg2.OperationalError:
            return False
        return True

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside a transaction, such as CREATE DATABASE."""
        connection = psycopg2.connect(self.dsn(database), connect_timeout=10)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()


class RabbitMQ(Server):
    """A RabbitMQ server with an Erlang port mapper (epmd) of its own."""

    name = "rabbitmq"
    system_account = "rabbitmq"

    def __init__(
        self, directory: Path, *, port: int | None = None, password: str | None = None, log: Path | None = None
    ) -> None:
        super().__init__(directory, port=port, password=password, log=log)
        self.data = self.directory / "data"
        self._mapper: Process | None = None
        self._mapper_port = free_port()
        self._distribution_port = free_port()

    @property
    def url(self) -> str:
        """The value for AMQP_URL."""
        return f"amqp://{USER}:{self.password}@127.0.0.1:{self.port}/%2F"

    def prepare(self) -> None:
        """Write the configuration. User and password count only until the first start has created them."""
        if not (RABBITMQ_PROGRAMS / "rabbitmq-server").exists():
            raise StartError("RabbitMQ is not installed: tools/bootstrap servers")
        self.data.mkdir(exist_ok=True)
        configuration = self.directory / "rabbitmq.conf"
        configuration.write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\n"
            f"default_user = {USER}\n"
            f"default_pass = {self.password}\n"
            "log.file = false\n"
            "log.console = true\n"
            "log.console.level = info\n"
        )
        configuration.chmod(0o600)
        plugins = self.directory / "enabled_plugins"
        plugins.write_text("[].\n")
        cookie = self.directory / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(20))
            cookie.chmod(0o400)
        self._own(self.directory, self.data, configuration, plugins, cookie)

    def launch(self) -> None:
        """Start epmd first: the server would start one that nobody stops."""
        if self._mapper is None or self._mapper.pid is None:
            if not is_free(self._mapper_port):
                self._mapper_port = free_port()
            self._mapper = self._program("epmd", "epmd", "-port", str(self._mapper_port), "-address", "127.0.0.1")
            self._mapper.launch()
        super().launch()

    def process(self) -> Process:
        """The script itself, not the wrapper in /usr/sbin, which insists on the system's directories."""
        return self._program(self.name, str(RABBITMQ_PROGRAMS / "rabbitmq-server"))

    def _program(self, name: str, *argv: str) -> Process:
        return Process(
            name=name,
            argv=argv,
            env=self._environment(),
            cwd=self.directory,
            log=self.log,
            account=self.account,
            dies_with_parent=self.dies_with_parent,
        )

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {
            "RABBITMQ_NODENAME": f"{USER}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.data),
            "RABBITMQ_LOG_BASE": str(self.directory),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.directory / "generated"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.directory / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            # "Input allowed" makes the script replace itself by the server, so that the pid is the server's; the
            # arguments then forbid input after all.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput +B i",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def answers(self) -> bool:
        """Greet in AMQP; the port opens last, when users and queues are there."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=3) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False

    def stop(self, timeout: float = 30.0) -> None:
        """Stop the server, then its port mapper."""
        super().stop(timeout)
        if self._mapper:
            self._mapper.stop()

    def kill(self) -> None:
        """kill -9 of the server and its port mapper."""
        super().kill()
        if self._mapper:
            self._mapper.kill()

    def wipe(self) -> None:
        """Delete all queues, messages and users of the stopped server; the next start begins anew."""
        shutil.rmtree(self.data)

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl; raise CalledProcessError when it fails. It takes a second or two."""
        program = self._program("rabbitmqctl", str(RABBITMQ_PROGRAMS / "rabbitmqctl"), *arguments)
        finished = subprocess.run(
            program.command,
            env=dict(program.env),
            cwd=program.cwd,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return finished.stdout


def postgresql_programs() -> Path:
    """The newest installed PostgreSQL's programs; raise StartError when there is none."""
    found = [path for path in POSTGRESQL_PROGRAMS.glob("*/bin") if (path / "postgres").exists()]
    if not found:
        raise StartError("PostgreSQL is not installed: tools/bootstrap servers")
    return max(found, key=lambda path: float(path.parent.name))


def remove_directory(directory: Path) -> None:
    """Delete a server's directory, also where it is a link to a place that the server's account can reach."""
    target = directory.resolve()
    shutil.rmtree(target, ignore_errors=True)
    if directory.is_symlink():
        directory.unlink()


def _account(preferred: str) -> str | None:
    # Neither server should run as root, and PostgreSQL refuses to.
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(preferred).pw_name
    except KeyError:
        return "nobody"


def _usable_directory(wanted: Path, account: str | None) -> Path:
    """Create and return the directory, elsewhere and linked when a parent is closed to the account (as /root is)."""
    wanted = wanted.absolute()
    if wanted.is_symlink():
        wanted.resolve().mkdir(parents=True, exist_ok=True)
    elif not wanted.exists():
        wanted.parent.mkdir(parents=True, exist_ok=True)
        if account and not _may_enter(wanted.parent, account):
            wanted.symlink_to(tempfile.mkdtemp(prefix="mailings-", dir="/var/lib"))
        else:
            wanted.mkdir()
    directory = wanted.resolve()
    if account:
        _give(directory, account)
    directory.chmod(0o700)
    return directory


def _give(path: Path, account: str) -> None:
    owner = pwd.getpwnam(account)
    os.chown(path, owner.pw_uid, owner.pw_gid)


def _may_enter(directory: Path, account: str) -> bool:
    test = ["setpriv", *as_account(account), "--", "test", "-x", str(directory)]
    return subprocess.run(test, check=False, cwd="/").returncode == 0


def _remembered(path: Path) -> str:
    """The password kept beside the data it opens; made up at first."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(20))
    return path.read_text()
