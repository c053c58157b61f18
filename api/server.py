"""gunicorn, set up by code: threads, our logs, JSON even for requests that no application gets to see."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gunicorn.util
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from common import logs
from common.settings import Settings

THREADS = 8
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # Private directories are made in it.
_PREFIX = "mailings-api-"


def serve(settings: Settings) -> None:
    """Serve until SIGTERM; requests at work then get the time to finish."""
    memory = str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None
    _remove_left_behind(Path(memory or tempfile.gettempdir()))
    metrics_directory = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=memory)
    # Read by prometheus_client when it is imported: nothing before this line may do that.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_directory
    gunicorn.util.write_error = _write_error
    _Server(settings, memory, metrics_directory).run()


def _remove_left_behind(parent: Path) -> None:
    """Remove the directories of servers that were killed and could not do it themselves."""
    for directory in parent.glob(f"{_PREFIX}*-*"):
        pid = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(directory, ignore_errors=True)


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: Settings, memory: str | None, metrics_directory: str) -> None:
        self._settings = settings
        self._options = {
            "bind": f"{settings.listen_address}:{settings.api_port}",
            "workers": min(max(os.cpu_count() or 2, 2), 8),
            "worker_class": "gthread",
            "threads": THREADS,
            "worker_tmp_dir": memory,
            "control_socket_disable": True,
            "timeout": 60,
            "graceful_timeout": 20,
            "keepalive": 30,
            "accesslog": None,
            "logger_class": _Logger,
            "proc_name": "mailings-api",
            "child_exit": _forget_worker,
            "on_exit": lambda _arbiter: shutil.rmtree(metrics_directory, ignore_errors=True),
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        from api.app import create_app

        logs.configure(self._settings.log_level, self._settings.log_format, "api")
        return create_app(self._settings, THREADS)


class _Logger(Logger):  # type: ignore[misc]
    """Hands gunicorn's own lines to our log."""

    def setup(self, cfg: Any) -> None:  # noqa: ARG002
        self.error_log.propagate = True
        self.error_log.setLevel("INFO")


def _forget_worker(_arbiter: Any, worker: Any) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def _write_error(sock: Any, status_int: int, reason: str, mesg: str) -> None:
    """What gunicorn answers to a request that it cannot even read."""
    body = json.dumps({"code": status_int, "status": reason, "message": mesg or reason, "errors": {}}).encode()
    head = (
        f"HTTP/1.1 {status_int} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    gunicorn.util.write_nonblock(sock, head.encode("latin1") + body)
