"""What a form was filled from: saving it may not overwrite what somebody else has changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import orjson
from flask import request

from admin.texts import gettext
from db.refusals import ConflictError

FIELD = "version"


def version_of(row: Any, columns: Sequence[str]) -> str:
    """A digest of these columns, for a hidden field; `updated_at` would tell of a start or a pause as well."""
    stored = [getattr(row, name) for name in columns]
    return sha256(orjson.dumps(stored, option=orjson.OPT_SORT_KEYS)).hexdigest()


def is_stale(row: Any, columns: Sequence[str]) -> bool:
    """Whether the form was filled from other values than those of the row, which should be locked."""
    return request.form.get(FIELD) != version_of(row, columns)


def refuse_stale(row: Any, columns: Sequence[str], values: Mapping[str, Any]) -> None:
    """Raise ConflictError when the form is stale (`is_stale`).

    A form that would change nothing is never refused: it may be the second click on its button.
    """
    would_change = any(getattr(row, name) != value for name, value in values.items())
    if would_change and is_stale(row, columns):
        reason = gettext(
            "This was changed after the page had been opened, maybe by somebody else. Nothing was saved; what you typed"
            " is still here."
        )
        raise ConflictError(reason, field=FIELD)
