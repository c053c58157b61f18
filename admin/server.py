"""The admin UI behind gunicorn."""

from __future__ import annotations

from typing import Any

from common.serving import THREADS, Server
from common.settings import Settings


def serve(settings: Settings) -> None:
    """Serve until SIGTERM."""

    def make_app() -> Any:
        from admin.app import create_app

        return create_app(settings, THREADS)

    Server("admin", settings.admin_port, settings, make_app, _describe_error).run()


def _describe_error(status: int, reason: str, message: str) -> tuple[str, bytes]:
    return "text/plain; charset=utf-8", f"{status} {reason}\n{message}\n".encode()
