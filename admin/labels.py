"""The words for states, statuses, roles, reasons and actions: what is stored is for programs, this is for people."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any

from flask import Flask

from admin.locale import day, to_the_second
from admin.texts import LazyString, gettext
from admin.texts import lazy_gettext as _
from admin.texts import lazy_pgettext as _in
from db.models import GatewayState, ImportState, MailingState, MessageStatus, ReportDelivery, Role, Scope
from db.queries.report_deliveries import Trouble

STATES = {
    MailingState.DRAFT: _("Draft"),
    MailingState.SCHEDULED: _("Scheduled"),
    MailingState.RUNNING: _("Running"),
    MailingState.PAUSED: _("Paused"),
    MailingState.COMPLETED: _("Completed"),
    MailingState.CANCELLED: _("Cancelled"),
}
STATUSES = {
    MessageStatus.PENDING: _("Waiting"),
    MessageStatus.SENDING: _("Being sent"),
    MessageStatus.SENT: _("Sent"),
    MessageStatus.DELIVERED: _("Delivered"),
    MessageStatus.FAILED: _("Failed"),
    MessageStatus.EXPIRED: _("Expired"),
    MessageStatus.CANCELLED: _in("messages", "Cancelled"),
}
STATUS_HINTS = {
    MessageStatus.PENDING: _("wait for their time, or to be tried again"),
    MessageStatus.SENDING: _("are with the senders right now"),
    MessageStatus.SENT: _("were accepted by the gateway"),
    MessageStatus.DELIVERED: _("reached the phone, as the gateway reported"),
    MessageStatus.FAILED: _("were refused, or given up"),
    MessageStatus.EXPIRED: _("were not sent before the end of the mailing"),
    MessageStatus.CANCELLED: _("were withdrawn: the mailing was cancelled, or the client has gone"),
}
IMPORT_STATES = {
    ImportState.PENDING: _("Waiting"),
    ImportState.RUNNING: _("Being imported"),
    ImportState.COMPLETED: _in("import", "Completed"),
    ImportState.FAILED: _in("import", "Failed"),
}
ROLES = {Role.VIEWER: _("Viewer"), Role.OPERATOR: _("Operator"), Role.ADMIN: _("Admin")}
ROLE_HINTS = {
    Role.VIEWER: _("looks at everything but users, keys and the audit log"),
    Role.OPERATOR: _("also creates and controls mailings, edits and imports clients"),
    Role.ADMIN: _("also manages users and API keys, and reads the audit log"),
}
SCOPES = {Scope.FULL: _("Everything"), Scope.RECEIPTS: _("Delivery receipts only")}
GATEWAY_STATES = {
    GatewayState.CLOSED: _("Working"),
    GatewayState.OPEN: _("Not answering"),
    GatewayState.BLOCKED: _("Refusing our token"),
}
OUTCOMES = {
    "sent": _("Accepted"),
    "retry": _("No success, tried again later"),
    "failed": _("Failed"),
    "blocked": _("Our token was refused"),
    "deferred": _("Told to wait"),
    "lost": _("Outcome unknown, tried again later"),
    "receipt": _("Receipt from the gateway"),
}
REPORTS = {
    "pending": _("Waiting"),
    "sending": _("Being sent"),
    "sent": _in("report", "Sent"),
    "failed": _in("import", "Failed"),
}
ALERTS = {
    "gateway_blocked": _("the gateway refuses our token"),
    "gateway_open": _("the gateway does not answer"),
    "mailing_failing": _("a mailing does not get through"),
    "mailing_expired": _("a mailing ended before everything was sent"),
}
PROCESSES = {"dispatcher": _("Dispatcher"), "reporter": _("Reporter"), "sender": _("Sender")}
ACTIONS = {
    "mailing.create": _("created the mailing"),
    "mailing.change": _("changed the mailing"),
    "mailing.start": _("started the mailing"),
    "mailing.pause": _("paused the mailing"),
    "mailing.resume": _("resumed the mailing"),
    "mailing.cancel": _("cancelled the mailing"),
    "mailing.delete": _("deleted the mailing"),
    "mailing.retry_failed": _("put failed messages back in the queue"),
    "mailing.test": _("sent a test message"),
    "client.create": _("added a client"),
    "client.change": _("changed a client"),
    "client.delete": _("erased a client"),
    "client.export": _("exported clients"),
    "import.create": _("uploaded a file of clients"),
    "api_key.create": _("made an API key"),
    "api_key.revoke": _("revoked an API key"),
    "user.create": _("added a user"),
    "user.change": _("changed a user"),
    "user.password": _("set a password"),
    "user.login": _("logged in"),
    "user.login_failed": _("gave a wrong password"),
    "user.logout_everywhere": _("ended all sessions"),
    "mailing.export": _("exported the results of a mailing"),
}
_REASONS = {
    "dns": _("The gateway's name could not be resolved"),
    "connection_refused": _("The gateway refused the connection"),
    "tls": _("No secure connection to the gateway"),
    "timeout_connect": _("No connection to the gateway in time"),
    "timeout": _("The gateway did not answer in time"),
    "timeout_body": _("The gateway's answer did not end in time"),
    "connection_reset": _("The gateway broke the connection off"),
    "connection_closed": _("The gateway closed the connection without an answer"),
    "truncated": _("The gateway's answer was cut short"),
    "body_too_large": _("The gateway's answer was too large"),
    "not_http": _("The gateway's answer was not HTTP"),
    "transport": _("The connection to the gateway failed"),
    "redirect": _("The gateway answered with a redirect"),
    "not_json": _("The gateway's answer could not be read"),
    "empty_body": _("The gateway's answer was empty"),
    "wrong_shape": _("The gateway's answer could not be understood"),
    "wrong_code": _("The gateway answered with an unknown code"),
    "text_too_long": _("Filled in for this client, the text is too long"),
    "receipt": _("Reported as failed by the gateway"),
    "ended": _("The mailing ended first"),
    "cancelled": _("The mailing was cancelled"),
    "client_deleted": _("The client was deleted"),
    "opted_out": _("The client has opted out"),
    "worker_lost": _("The sending process was lost before it noted the answer"),
}
_STATUS_REASON = re.compile(r"(http|code)_([0-9]+)\Z")


def reason(stored: str | None) -> str:
    """Why a message did not go, in a sentence; the gateway's own words stay as they are."""
    if stored is None:
        return ""
    if stored in _REASONS:
        return str(_REASONS[stored])
    if stored.startswith("missing_placeholder:"):
        return gettext("The client has no “%(name)s”", name=stored.partition(":")[2])
    if found := _STATUS_REASON.match(stored):
        if found[1] == "http":
            return gettext("The gateway answered HTTP %(status)s", status=found[2])
        return gettext("The gateway refused it with code %(code)s", code=found[2])
    return stored


def report(mail: ReportDelivery | Trouble) -> str:
    """What a mail is about: a day, a week, or what needs a person."""
    kind, _colon, name = mail.kind.partition(":")
    if kind == "daily":
        return gettext("Daily report, %(day)s", day=day(date.fromisoformat(mail.period)))
    if kind == "weekly":
        return gettext("Weekly report, from %(day)s", day=day(date.fromisoformat(f"{mail.period}-1")))
    return gettext("Alert: %(what)s", what=ALERTS.get(name, name))


_COLUMNS = {
    "name": _("name"),
    "text": _("text"),
    "starts_at": _("start"),
    "ends_at": _("end"),
    "operator_codes": _("operator codes"),
    "operator_code": _("operator code"),
    "tags": _("tags"),
    "window_from": _("sending hours from"),
    "window_to": _("sending hours until"),
    "state": _("state"),
    "phone": _("phone"),
    "timezone": _("time zone"),
    "attributes": _("attributes"),
    "opted_out_at": _("opted out"),
    "opted_out": _("opted out"),
    "phone_prefix": _("beginning of the number"),
    "tag": _("tag"),
    "email": _("e-mail"),
    "role": _("role"),
    "disabled": _("locked out"),
    "scope": _("scope"),
    "rows": _("rows"),
    "columns": _("columns"),
    "client_id": _("client"),
    "retried": _("put back"),
    "reasons": _("reasons"),
}
# A text that looks like a time may be anybody's name for something.
_TIMES = frozenset({"starts_at", "ends_at", "opted_out_at"})
# What the values of some columns are called.
_WORDS: Mapping[str, Mapping[Any, LazyString]] = {"state": STATES, "role": ROLES, "scope": SCOPES}


def actor(stored: str) -> str:
    """Who did it: the address of a person, the name of a key."""
    kind, _space, name = stored.partition(" ")
    if stored == "system":
        return gettext("the system")
    if stored == "anonymous":
        return gettext("somebody")
    return gettext("API key “%(name)s”", name=name) if kind.startswith("key:") else name or stored


def column(stored: str) -> str:
    """What a column is called."""
    return str(_COLUMNS.get(stored, stored))


def plain_value(value: Any, name: str = "") -> str:
    """A value of the audit log, of the column with this name, as people write it."""
    if value is None or value in ([], {}, ""):
        return "–"
    if isinstance(value, bool):
        return gettext("yes") if value else gettext("no")
    if isinstance(value, str) and value in (words := _WORDS.get(name, {})):
        return str(words[value])
    if isinstance(value, dict):
        value = [f"{key} = {each}" for key, each in value.items()]
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = str(value)
    if name in _TIMES:
        with contextlib.suppress(ValueError):
            return to_the_second(datetime.fromisoformat(text))
    return text


def action(stored: str) -> str:
    """What somebody did."""
    return str(ACTIONS.get(stored, stored))


def _looked_up(words: Mapping[Any, LazyString]) -> Callable[[str], str]:
    return lambda value: str(words.get(value, value))


def init(app: Flask) -> None:
    """Offer the words to templates."""
    app.jinja_env.filters.update(
        state_label=_looked_up(STATES),
        status_label=_looked_up(STATUSES),
        status_hint=_looked_up(STATUS_HINTS),
        import_label=_looked_up(IMPORT_STATES),
        role_label=_looked_up(ROLES),
        role_hint=_looked_up(ROLE_HINTS),
        scope_label=_looked_up(SCOPES),
        gateway_label=_looked_up(GATEWAY_STATES),
        outcome_label=_looked_up(OUTCOMES),
        process_label=_looked_up(PROCESSES),
        report_label=_looked_up(REPORTS),
        report_name=report,
        action_label=action,
        actor_label=actor,
        column_label=column,
        plain_value=plain_value,
        reason_label=reason,
    )
