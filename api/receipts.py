"""Delivery receipts from the gateway."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask.views import MethodView
from marshmallow import fields
from marshmallow.validate import OneOf

from api.auth import RECEIPT_BLUEPRINT
from api.blueprint import Blueprint
from api.database import session
from api.fields import Answer, Input, Number, Text, about, choice
from api.mailings import STATUSES
from db import rules
from db.models import MessageStatus
from db.queries import receipts

blueprint = Blueprint(RECEIPT_BLUEPRINT, __name__, url_prefix="/api/v1/receipt", description="Delivery receipts.")


class ReceiptInput(Input):
    """What became of a message that the gateway accepted."""

    id = Number(required=True, metadata=about("The message's id.", 1))
    status = choice("delivered", "failed", required=True, metadata=about("What became of it.", "delivered"))
    reason = Text(
        0,
        rules.REASON_LENGTH,
        allow_none=True,
        metadata=about("Why it failed; a short word that can be counted.", "absent"),
    )


class ReceiptAnswer(Answer):
    """The message after the receipt."""

    id = fields.Integer(required=True, metadata=about("The message's id.", 1))
    status = fields.String(
        required=True, validate=OneOf(STATUSES), metadata=about("Its status now.", "delivered", enum=STATUSES)
    )


@blueprint.route("/")
class Receipts(MethodView):
    """Where receipts are handed in."""

    @blueprint.arguments(ReceiptInput)
    @blueprint.response(200, ReceiptAnswer)
    @blueprint.refuses(404, "There is no such message.")
    @blueprint.refuses(409, "The message was never sent.")
    def post(self, values: dict[str, Any]) -> dict[str, Any]:
        """Hand in a delivery receipt

        A final status stands: doubled and late receipts change nothing and are answered with 200. A receipt that comes
        before our own record of the attempt is kept and applied with it. A key of the scope `receipts` is enough.
        """
        status = receipts.apply(
            session(), values["id"], MessageStatus(values["status"]), values.get("reason"), datetime.now(UTC)
        )
        session.commit()
        return {"id": values["id"], "status": status}
