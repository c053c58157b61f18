"""How the remote gateway is doing, as the dispatcher sees it."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView
from marshmallow import fields
from marshmallow.validate import OneOf

from api.blueprint import Blueprint
from api.database import reading
from api.fields import Answer, about
from db.models import GatewayState
from db.queries import gateway

blueprint = Blueprint("gateway", __name__, url_prefix="/api/v1/gateway", description="The remote gateway.")


class GatewayAnswer(Answer):
    """The state of the gateway."""

    state = fields.String(
        required=True,
        validate=OneOf([state.value for state in GatewayState]),
        metadata=about(
            "`closed`: the circuit is closed and messages flow. `open`: most calls fail, only probes go."
            " `blocked`: the gateway refuses our credentials, only slow probes go.",
            "blocked",
        ),
    )
    reason = fields.String(
        required=True, allow_none=True, metadata=about("Why it is not closed; null when it is.", "http_401")
    )
    since = fields.AwareDateTime(required=True, metadata=about("Since when.", "2026-11-23T09:00:00Z"))
    next_probe_at = fields.AwareDateTime(
        required=True,
        allow_none=True,
        metadata=about("When the next single message finds out whether it is back.", "2026-11-23T09:00:10Z"),
    )
    pace = fields.Float(
        required=True,
        allow_none=True,
        metadata=about("Messages per second after the gateway asked to slow down; null when it did not.", 120.0),
    )


@blueprint.route("/")
class GatewayItem(MethodView):
    """The one gateway."""

    @blueprint.response(200, GatewayAnswer)
    def get(self) -> dict[str, Any]:
        """Return how the gateway is doing, and why nothing is sent when nothing is"""
        with reading() as reader:
            row = gateway.read(reader)
        return {
            "state": row.state.value,
            "reason": row.reason,
            "since": row.changed_at,
            "next_probe_at": row.probe_at,
            "pace": row.pace,
        }
