"""`make up-native` and `make down` with the real services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.local import ROOT, Local
from tools.processes import free_port, look_up, wait_until

SERVICES = {"rabbitmq", "postgres", "simulator", "api", "dispatcher", "worker"}


class Native:
    """The commands on an instance of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.local = Local(directory / ".local", directory / ".env")
        self.env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.env |= {"API_PORT": str(free_port()), "GATEWAY_PORT": str(free_port()), "ADMIN_PORT": str(free_port())}
        self.env["SENDER_PROCESSES"] = "1"

    def run(self, command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        options = ["--directory", str(self.local.path), "--env-file", str(self.local.env_file)]
        return subprocess.run(
            [sys.executable, "-m", "tools.native", command, *options],
            cwd=ROOT,
            env=self.env | env,
            capture_output=True,
            text=True,
            check=False,
        )

    def pids(self) -> dict[str, int | None]:
        """The pids that the supervisor has written down."""
        return {child["name"]: child["pid"] for child in json.loads(self.local.state.read_text())["children"]}

    def call(self, path: str) -> Any:
        """GET from the API with the key that `up` tells."""
        access = json.loads(self.local.access.read_text())
        request = urllib.request.Request(
            f"{access['api']}{path}", headers={"Authorization": f"Bearer {access['api_key']}"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def answers(self) -> bool:
        """Return True if the API serves from its database."""
        try:
            return bool(self.call("/api/v1/client/") == [])
        except OSError:
            return False


@pytest.fixture
def native(tmp_path: Path) -> Iterator[Native]:
    """Nothing of it outlives the test."""
    instance = Native(tmp_path)
    yield instance
    instance.run("clean")


@pytest.mark.timeout(300)
def test_everything_comes_up_comes_back_when_killed_and_is_gone_when_stopped(native: Native) -> None:
    started = native.run("up")
    assert started.returncode == 0, started.stdout + started.stderr
    assert f"http://127.0.0.1:{native.env['API_PORT']}/docs/" in started.stdout
    assert native.answers()
    before = native.pids()
    assert set(before) >= SERVICES

    again = native.run("up")
    assert again.returncode == 0
    assert "running already" in again.stdout
    assert started.stdout.partition("API")[2] in again.stdout
    assert native.pids() == before

    for pid in before.values():
        os.kill(pid or 0, signal.SIGKILL)
    assert wait_until(lambda: all(native.pids()[name] not in (None, pid) for name, pid in before.items()), timeout=20)
    assert wait_until(native.answers, timeout=30)

    members = native.local.members()
    assert native.run("down").returncode == 0
    assert members
    assert not [member for member in members if member.is_alive]
    assert native.run("status").returncode == 1


@pytest.mark.timeout(300)
def test_after_a_kill_of_the_supervisor_down_ends_the_orphans_and_up_finds_the_data(native: Native) -> None:
    native.run("up")
    access = native.local.access.read_text()
    supervisor = look_up(int(native.local.lock.read_text()))
    orphans = native.local.members()
    assert supervisor
    supervisor.send(signal.SIGKILL)
    assert wait_until(lambda: not supervisor.is_alive, timeout=10)
    assert "make up" in native.run("status").stdout

    assert native.run("down").returncode == 0

    assert len(orphans) >= len(SERVICES)
    assert not [orphan for orphan in orphans if orphan.is_alive]

    native.run("up")
    assert native.local.access.read_text() == access
    assert native.answers()

    assert native.run("clean").returncode == 0
    assert not native.local.path.exists()
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
    native: Native, env: dict[str, str], complaint: str
) -> None:
    # Servers of one's own are not started; these do not even exist.
    servers = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none", "AMQP_URL": "amqp://127.0.0.1:9"}

    started = native.run("up", **servers, **env)

    assert started.returncode == 1
    assert started.stderr.startswith(f"Mailings could not be started: {complaint}")
    assert native.local.members() == []
    assert not (native.local.path / "postgres").exists()
