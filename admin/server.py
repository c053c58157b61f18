"""gunicorn, set up by code: threads, our logs, no traces of errors in answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gunicorn.util
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from common import logs
from common.settings import Settings

THREADS = 8
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # Only gunicorn's own heartbeat files are made in it.


def serve(settings: Settings) -> None:
    """Serve until SIGTERM; requests at work then get the time to finish."""
    gunicorn.util.write_error = _write_error
    _Server(settings).run()


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._options = {
            "bind": f"{settings.listen_address}:{settings.admin_port}",
            "workers": 2,
            "worker_class": "gthread",
            "threads": THREADS,
            "worker_tmp_dir": str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None,
            "control_socket_disable": True,
            "timeout": 60,
            "graceful_timeout": 20,
            "keepalive": 30,
            "accesslog": None,
            "logger_class": _Logger,
            "proc_name": "mailings-admin",
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        from admin.app import create_app

        logs.configure(self._settings.log_level, self._settings.log_format, "admin")
        return create_app(self._settings, THREADS)


class _Logger(Logger):  # type: ignore[misc]
    """Hands gunicorn's own lines to our log."""

    def setup(self, cfg: Any) -> None:  # noqa: ARG002
        self.error_log.propagate = True
        self.error_log.setLevel("INFO")


def _write_error(sock: Any, status_int: int, reason: str, mesg: str) -> None:
    """What gunicorn answers to a request that it cannot even read."""
    body = f"{status_int} {reason}\n{mesg}\n".encode()
    head = (
        f"HTTP/1.1 {status_int} {reason}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    gunicorn.util.write_nonblock(sock, head.encode("latin1") + body)
