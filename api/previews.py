"""What a mailing would do, before it is made."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView
from marshmallow import fields
from marshmallow.validate import OneOf

from api.blueprint import Blueprint
from api.database import session
from api.fields import Answer, FilledText, about
from api.mailings import MailingChanges
from db import placeholders, rules
from db.queries import previews
from db.sms import Encoding

blueprint = Blueprint("preview", __name__, url_prefix="/api/v1/mailing", description="A look before sending.")

COUNTING_SECONDS = 5.0
_ENCODINGS = {Encoding.GSM7: "GSM-7", Encoding.UCS2: "UCS-2"}


class PreviewInput(MailingChanges):
    """A mailing, or no more of it than the text and the filter."""

    text = FilledText(
        1, rules.TEXT_LENGTH, required=True, metadata=about("What would be sent.", "Hello, {name|there}!")
    )


class SampleAnswer(Answer):
    """One of the clients who match, and what they would read."""

    client_id = fields.Integer(required=True, metadata=about("The client.", 1))
    phone = fields.String(required=True, metadata=about("The client's number.", "+79161234567"))
    text = fields.String(
        required=True,
        allow_none=True,
        metadata=about(
            f"The text filled in; null when it cannot be, or then has over {rules.FILLED_TEXT_LENGTH:,} characters.",
            "Hello, Anna!",
        ),
    )
    missing = fields.String(
        required=True,
        allow_none=True,
        metadata=about("The attribute that the client lacks, for want of which the message would fail.", "name"),
    )


class PreviewAnswer(Answer):
    """What the mailing would do."""

    clients = fields.Integer(required=True, metadata=about("How many clients match now.", 6))
    is_exact = fields.Boolean(
        required=True, metadata=about("False when counting them took too long, and they were estimated.", True)
    )
    encoding = fields.String(
        required=True,
        validate=OneOf(list(_ENCODINGS.values())),
        metadata=about("The alphabet that the text needs.", "GSM-7"),
    )
    forced_by = fields.List(fields.String(), required=True, metadata=about("The characters that force UCS-2.", ["Я"]))
    characters = fields.Integer(required=True, metadata=about("The length of the text.", 12))
    parts = fields.Integer(required=True, metadata=about("Into how many SMS one message is cut.", 1))
    total_parts = fields.Integer(required=True, metadata=about("SMS for all clients together.", 6))
    sample = fields.Nested(
        SampleAnswer,
        required=True,
        allow_none=True,
        metadata=about("The first client who matches; null when none does. The sizes are those of this client's text."),
    )


@blueprint.route("/preview/")
class Preview(MethodView):
    """The preview."""

    @blueprint.arguments(PreviewInput)
    @blueprint.response(200, PreviewAnswer)
    def post(self, values: dict[str, Any]) -> dict[str, Any]:
        """Look at a mailing before making it

        How many clients match, how long the text is as SMS, and how it reads for one of them. Nothing is stored.
        """
        placeholders.check(values["text"])
        found = previews.preview(
            session(),
            values["text"],
            values.get("operator_codes", []),
            values.get("tags", []),
            shown=1,
            patience_seconds=COUNTING_SECONDS,
        )
        return {
            "clients": found.audience.clients,
            "is_exact": found.audience.is_exact,
            "encoding": _ENCODINGS[found.measure.encoding],
            "forced_by": list(found.measure.forcing),
            "characters": found.measure.characters,
            "parts": found.measure.parts,
            "total_parts": found.total_parts,
            "sample": _represent(found.readings[0]) if found.readings else None,
        }


def _represent(reading: previews.Reading) -> dict[str, Any]:
    return {
        "client_id": reading.client.id,
        "phone": reading.client.phone,
        "text": reading.text,
        "missing": reading.missing,
    }
