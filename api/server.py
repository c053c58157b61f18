"""The API behind gunicorn: with metrics of all worker processes together, and JSON even for what cannot be read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from common.serving import THREADS, Server, shared_memory
from common.settings import Settings

_PREFIX = "mailings-api-"


def serve(settings: Settings) -> None:
    """Serve until SIGTERM; requests at work then get the time to finish."""
    memory = shared_memory()
    _remove_left_behind(Path(memory or tempfile.gettempdir()))
    metrics_directory = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=memory)
    # Read by prometheus_client when it is imported: nothing before this line may do that.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_directory

    def make_app() -> Any:
        from api.app import create_app

        return create_app(settings, THREADS)

    def remove_metrics() -> None:
        shutil.rmtree(metrics_directory, ignore_errors=True)

    Server("api", settings.api_port, settings, make_app, _describe_error, _forget_metrics_of, remove_metrics).run()


def _remove_left_behind(parent: Path) -> None:
    """Remove the directories of servers that were killed and could not do it themselves."""
    for directory in parent.glob(f"{_PREFIX}*-*"):
        pid = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(directory, ignore_errors=True)


def _forget_metrics_of(pid: int) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)


def _describe_error(status: int, reason: str, message: str) -> tuple[str, bytes]:
    body = {"code": status, "status": reason, "message": message or reason, "errors": {}}
    return "application/json", json.dumps(body).encode()
