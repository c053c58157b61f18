"""gunicorn, set up by code for the API and the admin UI alike: threads, our logs, answers of our own kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gunicorn.util
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from common import logs
from common.settings import Settings

THREADS = 8
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # Private files and directories are made in it.


def shared_memory() -> str | None:
    """Where files that are never to reach a disk may be made; None where there is no such place."""
    return str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types.
    """Serves an application, made in each worker process, until SIGTERM; requests at work get the time to finish."""

    def __init__(
        self,
        name: str,
        port: int,
        settings: Settings,
        make_app: Callable[[], Any],
        describe_error: Callable[[int, str, str], tuple[str, bytes]],
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """`describe_error` gives content type and body for a request that gunicorn cannot even read."""
        self._name = name
        self._settings = settings
        self._make_app = make_app
        self._options = {
            "bind": f"{settings.listen_address}:{port}",
            "workers": min(max(os.cpu_count() or 2, 2), 8),
            "worker_class": "gthread",
            "threads": THREADS,
            "worker_tmp_dir": shared_memory(),
            "control_socket_disable": True,
            "timeout": 60,
            "graceful_timeout": 20,
            "keepalive": 30,
            "accesslog": None,
            "logger_class": _Logger,
            "proc_name": f"mailings-{name}",
            **(more or {}),
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


class _Logger(Logger):  # type: ignore[misc]  # as above
    """Hands gunicorn's own lines to our log."""

    def setup(self, cfg: Any) -> None:  # noqa: ARG002  # gunicorn's signature
        self.error_log.propagate = True
        self.error_log.setLevel("INFO")
