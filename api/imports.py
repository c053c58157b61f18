"""Bulk import of clients: a file is stored and checked here, and imported by a worker in the background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from flask import Response, current_app, request, url_for
from flask.views import MethodView
from flask_smorest import abort
from marshmallow import fields
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.blueprint import Blueprint, id_parameter
from api.database import database, session
from api.fields import Answer, PageQuery, about
from api.paging import X_PAGINATION, Paged, offset_of, paged
from common import csv_export
from common.upload import FILE_FIELD, UploadError, file_blocks
from db.csv_rows import UnreadableFileError
from db.models import ImportJob, ImportState
from db.queries import imports
from db.refusals import MissingError

blueprint = Blueprint("import", __name__, url_prefix="/api/v1/client/import", description="Bulk import of clients.")

MAX_FILE_BYTES = 512 * 1024 * 1024
REJECTED_AT_ONCE = 1000
_EXAMPLE = "phone,operator_code,tags,timezone,name\n+79161234567,916,vip|new,Europe/Moscow,Anna\n"
_NO_SUCH = "There is no such import."


class ErrorLineSchema(Answer):
    """A row that was refused."""

    line = fields.Integer(required=True, metadata=about("The line of the file in which the row starts, from 1.", 3))
    reason = fields.String(
        required=True,
        metadata=about(
            "Why, the column first; several mistakes one after the other.", "phone: '123' is not a number that exists"
        ),
    )


class ImportSummarySchema(Answer):
    """An import job."""

    id = fields.Integer(required=True, metadata=about("The id.", 1))
    state = fields.String(
        required=True,
        metadata=about("Where the job stands.", "completed", enum=[state.value for state in ImportState]),
    )
    total = fields.Integer(required=True, metadata=about("Rows in the file, without the header and blank ones.", 10000))
    processed = fields.Integer(required=True, metadata=about("Rows that are done: the three below together.", 10000))
    created = fields.Integer(required=True, metadata=about("Rows that added a client.", 9990))
    updated = fields.Integer(required=True, metadata=about("Rows whose phone was known.", 7))
    rejected = fields.Integer(required=True, metadata=about("Rows that were refused.", 3))
    failure = fields.String(
        required=True, allow_none=True, metadata=about("Why the job failed; null unless it did.", "the file is damaged")
    )
    created_at = fields.AwareDateTime(required=True, metadata=about("When the file came.", "2026-11-23T09:00:00Z"))
    finished_at = fields.AwareDateTime(
        required=True, allow_none=True, metadata=about("When the job ended; null before.", "2026-11-23T09:00:20Z")
    )


class ImportSchema(ImportSummarySchema):
    """An import job with the first of its rejected rows."""

    errors = fields.List(
        fields.Nested(ErrorLineSchema),
        required=True,
        metadata=about(f"The first {imports.SHOWN_ERRORS} rejected rows; `rejected/` has all of them."),
    )


def _summary(job: ImportJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "total": job.total,
        "processed": job.processed,
        "created": job.created,
        "updated": job.updated,
        "rejected": job.rejected,
        "failure": job.failure,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
    }


def represent(job: ImportJob, errors: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """An import job as callers see it."""
    return {**_summary(job), "errors": [{"line": line, "reason": reason} for line, reason in errors]}


def _find(import_id: int) -> ImportJob:
    job = imports.get(session(), import_id)
    if job is None:
        raise MissingError("no such import")
    return job


@blueprint.route("/")
class Imports(MethodView):
    """The list."""

    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, ImportSummarySchema(many=True), headers=X_PAGINATION)
    def get(self, query: dict[str, int]) -> Paged:
        """List imports, newest first"""
        jobs, total = imports.page(session(), offset_of(query), query["page_size"])
        return paged([_summary(job) for job in jobs], total, query)

    @blueprint.response(
        202,
        ImportSchema,
        headers={"Location": {"description": "Where to watch the job.", "schema": {"type": "string"}}},
    )
    @blueprint.refuses(413, "The file is larger than 512 MB.")
    @blueprint.refuses(415, "Neither CSV nor a form with a file, or not sent as UTF-8.")
    @blueprint.refuses(422, "The file as a whole cannot be imported; the message says why.")
    @blueprint.doc(
        requestBody={
            "required": True,
            "content": {
                "text/csv": {"schema": {"type": "string"}, "example": _EXAMPLE},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            FILE_FIELD: {"type": "string", "format": "binary", "description": "The CSV file."}
                        },
                        "required": [FILE_FIELD],
                    }
                },
            },
        }
    )
    def post(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Import clients from a CSV file

        UTF-8, with comma, semicolon or tab; the header names the columns `phone` (required), `operator_code`, `tags`
        (separated by `|`) and `timezone`, and every other column becomes an attribute. A known phone is updated: what
        the file leaves out or blank stays. The file is checked as a whole and imported in the background.
        """
        max_bytes = current_app.config.get("IMPORT_FILE_BYTES", MAX_FILE_BYTES)
        try:
            job = imports.create(session(), file_blocks(request, max_bytes))
        except UploadError as error:
            abort(error.status, message=error.message)
        except UnreadableFileError as error:
            abort(422, message=str(error), errors={FILE_FIELD: [str(error)]})
        session.commit()
        return represent(job, []), {"Location": url_for("import.OneImport", import_id=job.id)}


@blueprint.route("/<id:import_id>/", parameters=id_parameter("import_id", "import"))
class OneImport(MethodView):
    """One import."""

    @blueprint.response(200, ImportSchema)
    @blueprint.refuses(404, _NO_SUCH)
    def get(self, import_id: int) -> dict[str, Any]:
        """Show an import, its progress and its first rejected rows"""
        return represent(_find(import_id), imports.errors(session(), import_id))


@blueprint.route("/<id:import_id>/rejected/", parameters=id_parameter("import_id", "import"))
class RejectedRows(MethodView):
    """What an import refused."""

    @blueprint.refuses(404, _NO_SUCH)
    @blueprint.doc(responses={200: {"description": "OK", "content": {"text/csv": {"schema": {"type": "string"}}}}})
    def get(self, import_id: int) -> Response:
        """Download all rejected rows as CSV

        `line`, `reason`, then the row as it was. A cell that a spreadsheet would take for a formula begins with `'`.
        """
        job = _find(import_id)
        headers = {"Content-Disposition": f'attachment; filename="import-{import_id}-rejected.csv"'}
        return Response(_rejected_csv(database.engine, job), content_type="text/csv; charset=utf-8", headers=headers)


def _rejected_csv(engine: Engine, job: ImportJob) -> Iterator[str]:
    yield csv_export.BYTE_ORDER_MARK + csv_export.lines([["line", "reason", *job.columns]], job.delimiter)
    # While the caller reads, for hours maybe, no connection is held.
    line = 0
    while True:
        with Session(engine) as reading:
            rows = imports.rejected_after(reading, job.id, line, REJECTED_AT_ONCE)
        if not rows:
            return
        line = rows[-1].line
        yield csv_export.lines([[str(row.line), row.reason, *row.cells] for row in rows], job.delimiter)
