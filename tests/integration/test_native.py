"""`make up-native` and `make down` with the real services."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.local import ROOT, Local
from tools.processes import free_port, look_up, wait_until

SERVICES = {"rabbitmq", "postgres", "simulator", "api", "dispatcher", "worker", "mailbox", "reporter"}


class Native:
    """The commands on an instance of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.local = Local(directory / ".local", directory / ".env")
        self.env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.env |= {"API_PORT": str(free_port()), "GATEWAY_PORT": str(free_port()), "ADMIN_PORT": str(free_port())}
        self.env["SENDER_PROCESSES"] = "1"

    def launch(self, command: str, **env: str) -> subprocess.Popen[str]:
        """Begin one command."""
        options = ["--directory", str(self.local.path), "--env-file", str(self.local.env_file)]
        return subprocess.Popen(
            # Tests that run in the background are started with Ctrl-C ignored, and hand that on.
            ["env", "--default-signal=INT", sys.executable, "-m", "tools.native", command, *options],
            cwd=ROOT,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        process = self.launch(command, **env)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def pids(self) -> dict[str, int | None]:
        """The pids that the supervisor has written down."""
        return {child["name"]: child["pid"] for child in json.loads(self.local.state.read_text())["children"]}

    def call(self, path: str, body: Any = None) -> Any:
        """GET, or POST where there is a body, with the address and the key that `up` tells."""
        access = json.loads(self.local.access.read_text())
        request = urllib.request.Request(
            f"{access['api']}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {access['api_key']}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def answers(self) -> bool:
        """Return True if the API serves from its database."""
        try:
            return isinstance(self.call("/api/v1/client/"), list)
        except OSError:
            return False


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Native]:
    """One instance for all tests, since a start takes seconds; each test starts it if it does not run."""
    instance = Native(tmp_path_factory.mktemp("native"))
    yield instance
    instance.run("clean")


def start(native: Native) -> str:
    """Start it if it does not run, and return what was printed."""
    started = native.run("up")
    assert started.returncode == 0, started.stdout + started.stderr
    return started.stdout


@pytest.mark.timeout(300)
def test_starting_again_changes_nothing_and_prints_the_same(native: Native) -> None:
    first = start(native)
    before = native.pids()

    again = start(native)

    assert set(before) >= SERVICES
    assert native.pids() == before
    assert f"http://127.0.0.1:{native.env['API_PORT']}/docs/" in again
    assert "running already" in again
    assert again.partition("  API")[2] == first.partition("  API")[2]


@pytest.mark.timeout(300)
def test_everything_comes_back_when_all_processes_are_killed(native: Native) -> None:
    start(native)
    before = native.pids()

    pids = [pid for pid in before.values() if pid is not None]
    assert len(pids) == len(before)  # 0 would be this test's own process group.
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    assert wait_until(lambda: all(native.pids()[name] not in (None, pid) for name, pid in before.items()), timeout=30)
    assert wait_until(native.answers, timeout=30)


@pytest.mark.timeout(300)
def test_the_supervisor_goes_on_while_its_disk_is_full(native: Native) -> None:
    start(native)
    before = native.pids()
    supervisor = int(native.local.lock.read_text())
    worker = before["worker"]
    assert worker is not None

    # What a full disk does, to the supervisor and what it starts: writing to any file fails.
    _, hard = resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    os.kill(worker, signal.SIGKILL)
    assert wait_until(lambda: workers(native) not in ([], [worker]), timeout=30)
    assert native.pids() == before  # Nothing could be written about it.

    resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (hard, hard))
    assert wait_until(lambda: workers(native) == [native.pids()["worker"]], timeout=30)
    assert int(native.local.lock.read_text()) == supervisor


def workers(native: Native) -> list[int]:
    """The sender's parent process, whoever knows of it."""
    return [member.pid for member in native.local.members() if member.last_argument == "worker"]


@pytest.mark.timeout(300)
def test_down_ends_what_a_killed_supervisor_left_running(native: Native) -> None:
    start(native)
    supervisor = look_up(int(native.local.lock.read_text()))
    orphans = native.local.members()
    assert supervisor
    supervisor.send(signal.SIGKILL)
    assert wait_until(lambda: not supervisor.is_alive, timeout=10)
    assert "make up" in native.run("status").stdout

    assert native.run("down").returncode == 0

    assert len(orphans) >= len(SERVICES)
    assert not [orphan for orphan in orphans if orphan.is_alive]
    assert native.local.members() == []


@pytest.mark.timeout(300)
def test_down_leaves_no_process_and_the_data_and_clean_leaves_nothing(native: Native) -> None:
    start(native)
    native.call("/api/v1/client/", {"phone": "+79161234567"})
    access = native.local.access.read_text()
    supervisor = look_up(int(native.local.lock.read_text()))
    assert supervisor
    members = [supervisor, *native.local.members()]

    assert native.run("down").returncode == 0
    assert len(members) > len(SERVICES)
    assert not [member for member in members if member.is_alive]
    assert native.run("status").returncode == 1

    start(native)
    assert native.local.access.read_text() == access
    assert [client["phone"] for client in native.call("/api/v1/client/")] == ["+79161234567"]

    assert native.run("clean").returncode == 0
    assert native.local.members() == []
    assert not native.local.path.exists()


def test_a_server_does_not_take_the_port_that_is_set_for_a_service(tmp_path: Path) -> None:
    native = Native(tmp_path)
    native.local.create()
    ports = native.local.path / "ports.json"
    ports.write_text(json.dumps({"mail": int(native.env["API_PORT"])}))
    # The start fails once the ports are chosen: there is no GATEWAY_TOKEN.
    outside = {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
        "AMQP_URL": "amqp://127.0.0.1:9",
        "GATEWAY_URL": "http://127.0.0.1:9",
    }

    started = native.run("up", **outside)

    assert "GATEWAY_TOKEN is not set" in started.stderr
    assert json.loads(ports.read_text())["mail"] != int(native.env["API_PORT"])


def test_interrupted_start_goes_on_and_says_so(tmp_path: Path) -> None:
    native = Native(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        servers = {
            "DATABASE_URL": f"postgresql://nobody@127.0.0.1:{silent_server.getsockname()[1]}/none",
            "AMQP_URL": "amqp://127.0.0.1:9",
        }
        up = native.launch("up", **servers)
        try:
            assert wait_until((native.local.logs / "migrate.log").exists, timeout=30)
            up.send_signal(signal.SIGINT)
            _, complaint = up.communicate(timeout=10)
            went_on = native.local.members()
        finally:
            down = native.run("down")

    assert up.returncode == 130
    assert complaint.strip().startswith("Interrupted.")
    assert "Traceback" not in complaint
    assert went_on
    assert down.returncode == 0
    assert native.local.members() == []


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL"),
        ({"API_PORT": "none"}, "API_PORT"),
        ({"GATEWAY_URL": "http://127.0.0.1:9"}, "GATEWAY_TOKEN is not set"),
    ],
)
def test_start_that_cannot_succeed_says_why_and_leaves_nothing(
    tmp_path: Path, env: dict[str, str], complaint: str
) -> None:
    native = Native(tmp_path)
    # Servers of one's own are not started; these do not even exist.
    servers = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none", "AMQP_URL": "amqp://127.0.0.1:9"}

    started = native.run("up", **servers, **env)

    assert started.returncode == 1
    assert started.stderr.startswith(f"Mailings could not be started: {complaint}")
    assert native.local.members() == []
    assert not (native.local.path / "postgres").exists()
