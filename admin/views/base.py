"""What all pages share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import flask_admin
from flask import Response, abort, flash, jsonify, redirect, render_template, request, stream_with_context, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as BareResponse

from admin import access
from admin.database import database, session
from admin.refusals import explain
from common import csv_export
from db.models import Role
from db.refusals import RefusedError

PAGE_SIZE = 50
EXPORTED_AT_ONCE = 2000
_ID = re.compile(r"[0-9]{1,19}\Z")
BIGINT_MAX = 2**63 - 1


View = TypeVar("View", bound=Callable[..., Any])


def expose(url: str = "/", methods: Sequence[str] = ("GET",)) -> Callable[[View], View]:
    """Serve a method of a page at this address."""
    return flask_admin.expose(url, methods)  # type: ignore[no-any-return]


class Page(flask_admin.BaseView):  # type: ignore[misc]
    """A part of the UI; nobody below `min_role` gets in."""

    min_role: ClassVar[Role] = Role.VIEWER
    in_menu: ClassVar[bool] = True
    # The view that stands for the page where it has none at "/", which Flask-Admin insists on.
    main_view: ClassVar[str | None] = None

    def __init__(self, name: Any, **options: Any) -> None:
        if self._default_view is None:
            type(self)._default_view = self.main_view
        super().__init__(name, **options)

    def is_accessible(self) -> bool:
        """Return whether this person may open these pages; the guard has seen to it that there is one."""
        someone = access.person()
        return someone is not None and someone.may(self.min_role)

    def is_visible(self) -> bool:
        """Return whether the menu has an entry for it."""
        return self.in_menu

    def inaccessible_callback(self, name: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Refuse in words."""
        abort(403)

    def _run_view(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Flask-Admin would take any TypeError for a view of an older kind, and run it again.
        return fn(self, *args, **kwargs)

    def live(self, **fragments: str) -> Response:
        """The parts of a page that refresh themselves, by name."""
        return fragments_response(fragments)


class Keyset(NamedTuple):
    """Rows of a list and the way to the next older and the next newer ones; None where there are none."""

    rows: Sequence[Any]
    older: int | None
    newer: int | None


def fragments_response(fragments: Mapping[str, str], **more: Any) -> Response:
    """An answer for the script in `live.js`."""
    return jsonify(fragments=dict(fragments), **more)


def keyset(load: Callable[[int | None, int, bool], Sequence[Any]], limit: int = PAGE_SIZE) -> Keyset:
    """A page of a list without counting it: `load` gets an id, a limit, and whether newer ones are wanted."""
    older_than, newer_than = argument_id("before"), argument_id("after")
    if newer_than is not None:
        found = list(load(newer_than, limit + 1, True))
        more_newer = len(found) > limit
        rows = found[-limit:]
        if not rows:
            return keyset_from(load, None, limit)
        return Keyset(rows, rows[-1].id, rows[0].id if more_newer else None)
    return keyset_from(load, older_than, limit)


def keyset_from(load: Callable[[int | None, int, bool], Sequence[Any]], older_than: int | None, limit: int) -> Keyset:
    """The page that begins below this id, or at the top."""
    found = list(load(older_than, limit + 1, False))
    rows = found[:limit]
    newer = rows[0].id if rows and older_than is not None else None
    return Keyset(rows, rows[-1].id if len(found) > limit else None, newer)


def argument_id(name: str) -> int | None:
    """An id from the query string; what is none counts as not given."""
    text = request.args.get(name, "")
    return int(text) if _ID.match(text) and int(text) <= BIGINT_MAX else None


def argument_choice(name: str, choices: Any) -> Any:
    """A member of an enumeration from the query string; what is none counts as not given."""
    text = request.args.get(name, "")
    return choices(text) if text in {member.value for member in choices} else None


def argument_text(name: str, longest: int = 200) -> str:
    """A text from the query string."""
    return request.args.get(name, "").strip()[:longest]


def notify(text: str, kind: str = "success") -> None:
    """Show a line on top of the next page."""
    flash(text, kind)


def apply(change: Callable[[], Any], success: str | None = None) -> bool:
    """Make a change and commit it; a refusal becomes a line on top of the next page."""
    try:
        change()
    except RefusedError as error:
        session.rollback()
        notify(explain(error), "error")
        return False
    session.commit()
    if success:
        notify(success)
    return True


def go(endpoint: str, **values: Any) -> BareResponse:
    """Show another page."""
    return redirect(url_for(endpoint, **values), 303)


def part(template: str, **values: Any) -> str:
    """A fragment of a page."""
    return render_template(f"parts/{template}.html", **values)


def csv_download(
    filename: str,
    header: Sequence[str],
    load: Callable[[Session, int], Sequence[Any]],
    cells: Callable[[Any], Sequence[str]],
) -> Response:
    """Stream rows as CSV; `load` gets a session and the id to go on behind."""

    def rows() -> Iterator[str]:
        yield csv_export.BYTE_ORDER_MARK + csv_export.lines([header])
        last = 0
        while True:
            # While the browser reads, for minutes maybe, no connection is held.
            with Session(database.engine) as reading:
                found = load(reading, last)
            if not found:
                return
            last = found[-1].id
            yield csv_export.lines([cells(row) for row in found])

    headers = {"Content-Disposition": f'attachment; filename="{filename}"'}
    return Response(stream_with_context(rows()), content_type="text/csv; charset=utf-8", headers=headers)
