"""Statistics over all mailings."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView
from marshmallow import fields
from marshmallow.validate import OneOf

from api.blueprint import Blueprint
from api.database import reading_at_one_instant
from api.fields import Answer, PageQuery, about
from api.mailings import STATES, ByStatus
from api.paging import X_PAGINATION, Paged, offset_of, paged
from db.queries import mailings, statistics

blueprint = Blueprint("statistics", __name__, url_prefix="/api/v1/mailing", description="Counts over all mailings.")


class MailingCounts(Answer):
    """A mailing in numbers."""

    id = fields.Integer(required=True, metadata=about("The mailing's id.", 1))
    name = fields.String(required=True, metadata=about("Its name.", "Sale"))
    state = fields.String(required=True, validate=OneOf(STATES), metadata=about("Where it stands.", "running"))
    starts_at = fields.AwareDateTime(required=True, metadata=about("When sending begins.", "2026-11-23T09:00:00Z"))
    ends_at = fields.AwareDateTime(required=True, metadata=about("When sending ends.", "2026-11-23T21:00:00Z"))
    messages = fields.Integer(required=True, metadata=about("All its messages.", 6))
    by_status = fields.Nested(ByStatus, required=True, metadata=about("The same by status."))


class Totals(Answer):
    """All mailings in numbers."""

    mailings = fields.Integer(required=True, metadata=about("How many mailings.", 2))
    messages = fields.Integer(required=True, metadata=about("How many messages.", 12))
    by_status = fields.Nested(ByStatus, required=True, metadata=about("The same by status."))


class Overall(Answer):
    """The totals, and a page of mailings."""

    totals = fields.Nested(Totals, required=True, metadata=about("Over all mailings, on whatever page."))
    mailings = fields.List(fields.Nested(MailingCounts), required=True, metadata=about("The mailings of this page."))


@blueprint.route("/mailingsStatisticsOverall/")
class OverallStatistics(MethodView):
    """The statistics."""

    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, Overall, headers=X_PAGINATION)
    def get(self, query: dict[str, Any]) -> Paged:
        """Return every mailing with its message counts by status, and the totals

        All numbers are of the same instant: the totals are the sum of the mailings on all pages.
        """
        with reading_at_one_instant() as reader:
            found, total = mailings.page(reader, None, offset_of(query), query["page_size"])
            counts = statistics.by_mailing(reader, [mailing.id for mailing in found])
            totals = statistics.totals(reader)
        body = {
            "totals": {"mailings": total, "messages": sum(totals.values()), "by_status": totals},
            "mailings": [
                {
                    "id": mailing.id,
                    "name": mailing.name,
                    "state": mailing.state,
                    "starts_at": mailing.starts_at,
                    "ends_at": mailing.ends_at,
                    "messages": sum(counts[mailing.id].values()),
                    "by_status": counts[mailing.id],
                }
                for mailing in found
            ],
        }
        return paged(body, total, query)
