"""The private PostgreSQL and RabbitMQ keep their data through everything that is done to them."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from threading import Thread

import pika
import psycopg2
import pytest

from tools.processes import family, is_free, wait_until
from tools.servers import PostgreSQL, RabbitMQ


def test_postgresql_keeps_port_and_data_through_kill_and_restart(tmp_path: Path) -> None:
    with PostgreSQL(tmp_path, without_disks=True) as server:
        server.execute("CREATE TABLE kept (n int)", "mailings")
        for interrupt in (server.kill, server.stop):
            interrupt()
            assert server.pid is None
            server.start()
            server.execute("INSERT INTO kept VALUES (1)", "mailings")
        members = family(server.pid or 0)
    server.remove()

    assert members
    assert not [member for member in members if member.is_alive]
    assert is_free(server.port)


def test_postgresql_comes_back_while_a_backend_of_the_killed_one_still_runs(tmp_path: Path) -> None:
    with PostgreSQL(tmp_path, without_disks=True) as server:
        client = psycopg2.connect(server.dsn())
        backend = client.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        server.send(signal.SIGKILL)  # the postmaster alone
        thaw = Thread(target=continue_when_refused, args=(server, backend))
        thaw.start()

        server.start()

        thaw.join()
        assert "still in use" in server.log.read_text()
        assert server.answers()
        client.close()
    server.remove()


def continue_when_refused(server: PostgreSQL, backend: int) -> None:
    """Let the backend go on once the new server has found it."""
    wait_until(lambda: "still in use" in server.log.read_text(), timeout=30)
    os.kill(backend, signal.SIGCONT)


def test_postgresql_asks_for_its_password(tmp_path: Path) -> None:
    with (
        PostgreSQL(tmp_path, without_disks=True) as server,
        pytest.raises(psycopg2.OperationalError, match="password authentication failed"),
    ):
        psycopg2.connect(server.dsn().replace(server.password, "guess"))
    server.remove()


def test_postgresql_logs_errors_and_no_personal_data(tmp_path: Path) -> None:
    with PostgreSQL(tmp_path, without_disks=True) as server:
        server.execute("CREATE TABLE person (phone text UNIQUE)", "mailings")
        add = "INSERT INTO person VALUES ('+79161234567')"
        server.execute(add, "mailings")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            server.execute(add, "mailings")
        server.stop()
        log = server.log.read_text()
        assert "duplicate key value" in log
        assert "9161234567" not in log
    server.remove()


def test_server_works_below_a_directory_that_its_account_cannot_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with PostgreSQL(closed / ".local", without_disks=True) as server:
        assert server.answers()
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
    server.remove()

    assert not server.directory.exists()


def test_rabbitmq_keeps_persistent_messages_through_a_kill_and_leaves_no_port_mapper(tmp_path: Path) -> None:
    with RabbitMQ(tmp_path) as server:
        publish(server, b"kept")
        # What was confirmed is the message. The record of its queue is in another log.
        server.control("eval", "ok = mnesia:sync_log().")
        server.kill()
        server.start()
        assert receive(server) == b"kept"

        assert "guest" not in server.control("list_users")
        everyone = family(server.pid or 0)
        mapper_port = int(server.control("eval", 'os:getenv("ERL_EPMD_PORT").').strip().strip('"'))
        assert not is_free(mapper_port)
    server.remove()

    assert not [member for member in everyone if member.is_alive]
    assert is_free(mapper_port)
    assert is_free(server.port)


def publish(server: RabbitMQ, body: bytes) -> None:
    """Leave one persistent message in a durable queue."""
    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True)
        channel.basic_publish("", "kept", body, pika.BasicProperties(delivery_mode=2))


def receive(server: RabbitMQ) -> bytes | None:
    """The first message of that queue."""
    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("kept", passive=True)  # fails if the queue itself was lost
        body: bytes | None = channel.basic_get("kept", auto_ack=True)[2]
        return body
