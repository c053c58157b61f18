"""Whatever the code can store has words for people."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

from admin import labels
from db.models import DeliveryState, GatewayState, ImportState, MailingState, MessageStatus, Role, Scope
from db.placeholders import TextTooLongError
from db.queries import clients, directory, mailings, receipts
from reporter.words import LANGUAGES, Words
from sender.answers import Fault
from sender.outcomes import HISTORY_WORDS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("sender", "reporter", "db/queries", "admin/views")
CALLS = [
    node
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call)
]


def texts(called: str, *keywords: str) -> set[str]:
    """The literal texts that the code hands to a function by position, or by these keywords."""
    calls = [call for call in CALLS if ast.unparse(call.func).rpartition(".")[2] == called]
    values = [value for call in calls for value in call.args]
    values += [keyword.value for call in calls for keyword in call.keywords if keyword.arg in keywords]
    nodes = [node for value in values for node in ast.walk(value)]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


# Why a call failed, or a message did. `code_` and others go on with something of the gateway's or the client's.
FAILURES = (texts("Judgement") - {"code_"}) | {fault.value for fault in Fault}
FAILURES |= {TextTooLongError().reason, receipts.RECEIPT}
BEGINNINGS = {"http_503", "code_400", "missing_placeholder:name"}
# Why a message was not sent, or its outcome is not known.
NOT_SENT = texts("unsendable") | texts("Outcome", "reason", "error") | {"ended", "cancelled"}
NOT_SENT |= {clients.CLIENT_DELETED, clients.OPTED_OUT}
AUDITED = texts("record", "before", "after")


@pytest.mark.parametrize(
    ("table", "stored"),
    [
        (labels.STATES, MailingState),
        (labels.STATUSES, MessageStatus),
        (labels.STATUS_HINTS, MessageStatus),
        (labels.IMPORT_STATES, ImportState),
        (labels.ROLES, Role),
        (labels.ROLE_HINTS, Role),
        (labels.SCOPES, Scope),
        (labels.GATEWAY_STATES, GatewayState),
        (labels.REPORTS, DeliveryState),
        (labels.PROCESSES, texts("beat")),
        (labels.OUTCOMES, {*HISTORY_WORDS.values(), *texts("Outcome", "outcome"), receipts.RECEIPT}),
        (labels._REASONS, FAILURES | NOT_SENT),
    ],
)
def test_pages_have_a_word_for_each_stored_one(table: Iterable[str], stored: Iterable[str]) -> None:
    assert set(table) == set(stored)


def test_audit_log_has_a_word_for_each_action() -> None:
    actions = {text for text in AUDITED if "." in text} - {"mailing."}
    assert len(actions) > 10
    actions |= {f"mailing.{action.replace('-', '_')}" for action in mailings.ACTIONS} | {
        "mailing.create",
        "client.create",
    }

    assert set(labels.ACTIONS) == actions


def test_audit_log_has_a_word_for_each_column() -> None:
    kept_to_ourselves = {"created_at", "updated_at", "idempotency_key", "idempotency_digest"}
    columns = {*mailings._COLUMNS, *clients._COLUMNS, *directory.Filter._fields} - kept_to_ourselves
    columns |= {text for text in AUDITED if text.isidentifier()} | {"retried", "reasons"}

    assert set(labels._COLUMNS) == columns


@pytest.mark.parametrize("language", LANGUAGES)
def test_reports_have_words_for_each_failure(language: str) -> None:
    words = Words(language, "UTC")

    assert {reason for reason in FAILURES | BEGINNINGS if words.reason(reason) == reason} == set()
