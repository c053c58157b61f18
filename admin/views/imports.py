"""Bulk import of clients from CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Response, jsonify, request, url_for
from sqlalchemy.orm import Session

from admin.access import requires, wants_json
from admin.database import session
from admin.refusals import translate
from admin.texts import lazy_gettext as _
from admin.views.base import Page, csv_download, expose, go, keyset, notify, part
from common.upload import UploadError, file_blocks
from db.client_rows import RejectedRow
from db.csv_rows import UnreadableFileError
from db.models import ImportJob, ImportState, Role
from db.queries import imports
from db.refusals import MissingError

MAX_FILE_BYTES = 512 * 1024 * 1024
REJECTED_SHOWN = 100
_REJECTED_AT_ONCE = 1000
_EXAMPLE = "phone,operator_code,tags,timezone,name\n+79161234567,916,vip|new,Europe/Moscow,Anna\n"


class Imports(Page):
    """Uploading files, and watching them go in."""

    def __init__(self) -> None:
        super().__init__(_("Imports"), endpoint="imports", url="/imports", menu_icon_value="upload")

    @expose("/")
    def index(self) -> Any:
        """Return the list, with the place to drop a file."""

        def load(beyond: int | None, limit: int, newer: bool) -> Sequence[ImportJob]:
            return imports.latest(session(), beyond, limit, newer=newer)

        return self.render("imports.html", page=keyset(load, 20), max_bytes=MAX_FILE_BYTES)

    @expose("/upload", methods=("POST",))
    @requires(Role.OPERATOR)
    def upload(self) -> Any:
        """Take a file; the page of its import follows."""
        try:
            job = imports.create(session(), file_blocks(request, MAX_FILE_BYTES))
        except (UploadError, UnreadableFileError) as error:
            session.rollback()
            return _refused(translate(str(error)))
        session.commit()
        if wants_json():
            return jsonify(location=url_for("imports.show", import_id=job.id))
        return go("imports.show", import_id=job.id)

    @expose("/<id:import_id>/")
    def show(self, import_id: int) -> Any:
        """Return one import."""
        job = _find(import_id)
        return self.render("import.html", job=job, **_parts(job))

    @expose("/<id:import_id>/live")
    def refresh(self, import_id: int) -> Response:
        """Return what has changed."""
        return self.live(**_parts(_find(import_id))["fragments"])

    @expose("/<id:import_id>/rejected.csv")
    def rejected(self, import_id: int) -> Response:
        """Return the rejected rows as they were, with line and reason."""
        job = _find(import_id)

        def load(reading: Session, last: int) -> Sequence[_NumberedRow]:
            found = imports.rejected_after(reading, import_id, last, _REJECTED_AT_ONCE)
            return [_NumberedRow(row) for row in found]

        header = ["line", "reason", *job.columns]
        return csv_download(
            f"import-{import_id}-rejected.csv",
            header,
            load,
            lambda row: [str(row.id), translate(row.row.reason), *row.row.cells],
        )

    @expose("/example.csv")
    def example(self) -> Response:
        """Return a file to begin with."""
        headers = {"Content-Disposition": 'attachment; filename="clients-example.csv"'}
        return Response(_EXAMPLE, content_type="text/csv; charset=utf-8", headers=headers)


class _NumberedRow:
    def __init__(self, row: RejectedRow) -> None:
        self.id = row.line
        self.row = row


def _refused(text: str) -> Any:
    # Without `close` the server would read on, all of what it has just refused, to find the next request.
    if wants_json():
        return jsonify(error=text), 422, {"Connection": "close"}
    notify(text, "error")
    return go("imports.index")


def _find(import_id: int) -> ImportJob:
    job = imports.get(session(), import_id)
    if job is None:
        raise MissingError("no such import")
    return job


def _parts(job: ImportJob) -> dict[str, Any]:
    errors = [(line, translate(reason)) for line, reason in imports.errors(session(), job.id)] if job.rejected else []
    fragments = {
        "progress": part("import_progress", job=job),
        "rejected": part("import_rejected", job=job, errors=errors, shown=REJECTED_SHOWN),
    }
    return {"fragments": fragments, "is_open": job.state in (ImportState.PENDING, ImportState.RUNNING)}
