"""The pages, in the order of the menu."""

from __future__ import annotations

from admin.views import (
    account,
    api_keys,
    audit,
    clients,
    imports,
    mailing,
    mailing_form,
    mailings,
    messages,
    system,
    users,
)
from admin.views.base import Page


def all_views() -> list[Page]:
    """One of each; the dashboard is the index and not among them."""
    return [
        mailings.Mailings(),
        mailing_form.MailingForm(),
        mailing.OneMailing(),
        messages.Messages(),
        clients.Clients(),
        imports.Imports(),
        api_keys.ApiKeys(),
        users.Users(),
        audit.AuditLog(),
        system.System(),
        account.Account(),
    ]
