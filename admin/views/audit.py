"""Who did what, when, and from where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from admin.database import session
from admin.labels import ACTIONS
from admin.texts import lazy_gettext as _
from admin.views.base import Page, argument_id, argument_text, expose, keyset_from
from db.models import AuditEntry, Role
from db.queries import audit


class AuditLog(Page):
    """Every change, by a person here or a program over the API."""

    min_role = Role.ADMIN

    def __init__(self) -> None:
        super().__init__(_("Audit log"), endpoint="audit", url="/audit", menu_icon_value="log")

    @expose("/")
    def index(self) -> Any:
        """Return a page of the log, newest first."""
        wanted = audit.Filter(
            actor=argument_text("actor", 400) or None,
            action=argument_text("action") or None,
            subject=argument_text("subject") or None,
        )

        def load(beyond: int | None, limit: int, _newer: bool) -> Sequence[AuditEntry]:
            return audit.page(session(), wanted, beyond, limit)

        return self.render(
            "audit.html", page=keyset_from(load, argument_id("before"), 50), wanted=wanted, actions=list(ACTIONS)
        )
