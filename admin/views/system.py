"""The machinery: gateway, processes, reports, and what this installation is set to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Response, current_app

from admin.database import session
from admin.texts import lazy_gettext as _
from admin.views.base import Page, expose, part
from admin.views.dashboard import gateway_state
from db.models import Role
from db.queries import dashboard, machinery


class System(Page):
    """What keeps it going."""

    min_role = Role.ADMIN

    def __init__(self) -> None:
        super().__init__(_("System"), endpoint="system", url="/system", menu_icon_value="gear")

    @expose("/")
    def index(self) -> Any:
        """Return the page."""
        settings = {"DEFAULT_TIMEZONE": current_app.config["DEFAULT_TIMEZONE"]}
        return self.render("system.html", fragments=_fragments(), settings=settings, sizes=machinery.sizes(session()))

    @expose("/live")
    def refresh(self) -> Response:
        """Return what has changed."""
        return self.live(**_fragments())


def _fragments() -> dict[str, str]:
    return {
        "gateway": part("gateway", **gateway_state(datetime.now(UTC))),
        "processes": part("processes", beats=dashboard.heartbeats(session())),
        "reports": part("reports", deliveries=machinery.latest_reports(session(), 10)),
    }
