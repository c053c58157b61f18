"""gunicorn, set up by code for the API and the admin UI alike: threads, our logs, answers of our own kind."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gunicorn.util
import structlog
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from common import logs
from common.settings import Settings

log = structlog.get_logger(__name__)

THREADS = 8
# Without a byte from a client whose request is not whole, or a byte taken of its answer. A thread waits meanwhile; but
# on a poor line a packet may have to be sent five times.
STALL_SECONDS = 20.0
# How often a process leaves a new connection to one that has fewer before it takes it after all, and for how long.
LEFT_TO_OTHERS = 5
LEFT_SECONDS = 0.0005
_SLOTS = 256  # for the processes of one server; a new one gets the next
_FULL, _GONE = 0xFFFE, 0xFFFF
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # Private files and directories are made in it.


def shared_memory() -> str | None:
    """Where files that are never to reach a disk may be made; None where there is no such place."""
    return str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None


# How many connections each worker process holds, or that no thread of it is free; shared by all forked from here.
_held = memoryview(mmap.mmap(-1, 2 * _SLOTS)).cast("H")
_held[:] = array("H", [_GONE] * _SLOTS)


class ClientSocket(socket.socket):
    """A client's connection that breaks when the client stalls. gunicorn itself would wait for ever, with a thread."""

    def setblocking(self, flag: bool) -> None:
        """Wait for the client as long as it does not stall, or not at all."""
        self.settimeout(STALL_SECONDS if flag else 0.0)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Wait for the next bytes; raise ConnectionResetError when there are none."""
        with self._breaking_when_stalled():
            return super().recv(size, flags)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send it in as many pieces as the client takes; raise ConnectionResetError when it takes none."""
        rest = memoryview(data)
        with self._breaking_when_stalled():
            while rest:
                rest = rest[self.send(rest, flags) :]

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file in the same way."""
        with self._breaking_when_stalled():
            return super().sendfile(file, offset, count)

    @contextlib.contextmanager
    def _breaking_when_stalled(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            if self.gettimeout() != STALL_SECONDS:
                raise  # gunicorn's own patience, which is shorter, ran out.
            log.info("client_stalled", seconds=STALL_SECONDS)
            with contextlib.suppress(OSError):
                self.shutdown(socket.SHUT_RD)  # gunicorn would wait for the client once more when it closes.
            raise ConnectionResetError(errno.ECONNRESET, "the client stalled") from None


class EvenWorker(ThreadWorker):
    """Leaves a new connection to the worker process that has the fewest, and a thread to spare.

    The kernel wakes all of them, and whoever runs first would take what there is: of sixteen connections opened at once
    all may end up in one process, which has one processor, while the other processes idle for as long as they are kept.
    """

    def __init__(self, age: int, *more: Any) -> None:
        self._slot = age % _SLOTS
        self._left = 0
        self._busy = 0  # threads with a request, or waiting for the first of a new connection
        super().__init__(age, *more)

    @property
    def nr_conns(self) -> int:
        """gunicorn's own count."""
        return self._connections

    @nr_conns.setter
    def nr_conns(self, count: int) -> None:
        self._connections = count
        self._tell()

    def _tell(self) -> None:
        _held[self._slot] = _FULL if self._busy >= self.cfg.threads else min(self._connections, _FULL)

    def enqueue_req(self, conn: Any) -> None:
        """Have a thread read and answer the next request of this connection."""
        if not isinstance(conn.sock, ClientSocket):
            accepted = conn.sock
            conn.sock = ClientSocket(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self._busy += 1
        self._tell()
        super().enqueue_req(conn)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Keep the connection, or close it."""
        self._busy -= 1
        super().finish_request(conn, fs)
        self._tell()

    def accept(self, listener: Any) -> None:
        """Accept a connection, unless another process should; it waits in the kernel meanwhile."""
        held = _held[self._slot]
        # The other may be frozen: who has a thread to spare does not wait for it for long.
        if min(_held) < held and (held == _FULL or self._left < LEFT_TO_OTHERS):
            self._left += 1
            time.sleep(LEFT_SECONDS)
            return
        self._left = 0
        super().accept(listener)

    def forget(self) -> None:
        """Leave no more connections to this process, which has ended; called in the parent process."""
        _held[self._slot] = _GONE


class Server(BaseApplication):
    """Serves an application, made in each worker process, until SIGTERM; requests at work get the time to finish."""

    def __init__(
        self,
        name: str,
        port: int,
        settings: Settings,
        make_app: Callable[[], Any],
        describe_error: Callable[[int, str, str], tuple[str, bytes]],
        worker_ended: Callable[[int], None] = lambda _pid: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """`describe_error` gives content type and body for a request that gunicorn cannot even read.

        `worker_ended` is told the pid of every worker process that is no more, `ended` called when all are.
        """
        self._name = name
        self._settings = settings
        self._make_app = make_app

        def child_exit(_arbiter: Any, worker: EvenWorker) -> None:
            worker.forget()
            worker_ended(worker.pid)

        self._options = {
            "bind": f"{settings.listen_address}:{port}",
            "workers": min(max(os.cpu_count() or 2, 2), 8),
            "worker_class": EvenWorker,
            "child_exit": child_exit,
            "on_exit": lambda _arbiter: ended(),
            "threads": THREADS,
            "worker_tmp_dir": shared_memory(),
            "control_socket_disable": True,
            "timeout": 60,
            "graceful_timeout": 20,
            "keepalive": 30,
            "accesslog": None,
            "logger_class": _Logger,
            "proc_name": f"mailings-{name}",
        }

        def write_error(sock: Any, status: int, reason: str, message: str) -> None:
            content_type, body = describe_error(status, reason, message)
            head = (
                f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: {content_type}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            gunicorn.util.write_nonblock(sock, head.encode("latin1") + body)

        gunicorn.util.write_error = write_error
        super().__init__()

    def load_config(self) -> None:
        """Hand our options to gunicorn."""
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Make the application, in a worker process."""
        logs.configure(self._settings.log_level, self._settings.log_format, self._name)
        return self._make_app()


class _Logger(Logger):
    """Hands gunicorn's own lines to our log."""

    def setup(self, cfg: Any) -> None:  # noqa: ARG002  # gunicorn's signature
        self.error_log.propagate = True
        self.error_log.setLevel("INFO")
