"""What a mailing would do, before it is made: how many clients match, who they are, what they would read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db import placeholders, sms
from db.models import Client

# So many clients are asked whether they have the attributes that the text names.
SAMPLE = 1000
_QUERY_CANCELED = "57014"


class Audience(NamedTuple):
    """How many clients match now; roughly, if counting them would have taken too long."""

    clients: int
    is_exact: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What one client would read. `missing` is the attribute for want of which the message would fail.

    Neither is there when the text, filled in for this client, is too long.
    """

    client: Client
    text: str | None
    missing: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Preview:
    """Everything to know before sending. `sampled` clients were looked at, of which `lacking` would get nothing."""

    audience: Audience
    readings: Sequence[Reading]
    measure: sms.Measure  # of the first client's text, of the text as it stands when there is none
    total_parts: int  # over the whole audience, by the sample's average
    total_is_exact: bool
    sampled: int
    lacking: int


def preview(
    session: Session,
    text: str,
    operator_codes: Sequence[str],
    tags: Sequence[str],
    shown: int = 5,
    patience_seconds: float = 10.0,
) -> Preview:
    """Look at a text and a filter; counting goes on for so long at most."""
    audience = count(session, operator_codes, tags, patience_seconds)
    names = placeholders.names(text)
    clients = sample(session, operator_codes, tags, SAMPLE if names else shown)
    readings = [read(text, client) for client in clients]
    filled = [sms.measure(reading.text) for reading in readings if reading.text is not None]
    measure = filled[0] if filled else sms.measure(text)
    average = sum(each.parts for each in filled) / len(readings) if readings else float(measure.parts)
    return Preview(
        audience=audience,
        readings=readings[:shown],
        measure=measure,
        total_parts=math.ceil(average * audience.clients),
        total_is_exact=audience.is_exact and (not names or len(readings) == audience.clients),
        sampled=len(readings),
        lacking=sum(reading.missing is not None for reading in readings),
    )


def of_text(text: str) -> Preview:
    """Look at a text alone, for want of a filter: it is read by nobody."""
    return Preview(
        Audience(0, is_exact=True), [], sms.measure(text), total_parts=0, total_is_exact=True, sampled=0, lacking=0
    )


def read(text: str, client: Client) -> Reading:
    """The text as this client would get it."""
    try:
        return Reading(client, placeholders.fill(text, client.attributes), None)
    except placeholders.MissingAttributeError as error:
        return Reading(client, None, error.name)
    except placeholders.TextTooLongError:
        return Reading(client, None, None)


def count(
    session: Session, operator_codes: Sequence[str], tags: Sequence[str], patience_seconds: float = 10.0
) -> Audience:
    """How many clients match now."""
    statement = sa.select(sa.func.count()).select_from(Client).where(*_conditions(operator_codes, tags))
    usual = session.scalar(sa.select(sa.func.current_setting("statement_timeout"))) or "0"
    try:
        with session.begin_nested():
            _limit_statements(session, f"{max(1, int(patience_seconds * 1000))}ms")
            clients = session.scalar(statement) or 0
            _limit_statements(session, usual)
            return Audience(int(clients), is_exact=True)
    except OperationalError as error:
        if getattr(error.orig, "pgcode", None) != _QUERY_CANCELED:
            raise
        return Audience(_estimate(session, operator_codes, tags), is_exact=False)


def _limit_statements(session: Session, longest: str) -> None:
    session.execute(sa.select(sa.func.set_config("statement_timeout", longest, True)))


def _estimate(session: Session, operator_codes: Sequence[str], tags: Sequence[str]) -> int:
    """What the planner believes, which it keeps statistics for."""
    statement = sa.select(Client.id).where(*_conditions(operator_codes, tags))
    compiled = statement.compile(session.connection(), compile_kwargs={"render_postcompile": True})
    plan = session.connection().exec_driver_sql(f"EXPLAIN (FORMAT JSON) {compiled}", compiled.params).scalar_one()
    found = orjson.loads(plan) if isinstance(plan, str) else plan
    return int(found[0]["Plan"]["Plan Rows"])


def sample(session: Session, operator_codes: Sequence[str], tags: Sequence[str], limit: int) -> Sequence[Client]:
    """The first clients that match."""
    return session.scalars(
        sa.select(Client).where(*_conditions(operator_codes, tags)).order_by(Client.id).limit(limit)
    ).all()


def _conditions(operator_codes: Sequence[str], tags: Sequence[str]) -> list[sa.ColumnElement[bool]]:
    # The same as in `queries.audience`, where it is part of a larger statement.
    conditions: list[sa.ColumnElement[bool]] = [Client.opted_out_at.is_(None)]
    if operator_codes:
        conditions.append(Client.operator_code.in_(operator_codes))
    if tags:
        conditions.append(Client.tags.overlap(list(tags)))
    return conditions


def common_marks(session: Session) -> tuple[list[str], list[str]]:
    """Operator codes and tags to choose from, the most common first: from statistics when the directory is large."""
    rows = session.scalar(sa.text("SELECT reltuples FROM pg_class WHERE oid = 'client'::regclass")) or 0
    if rows > SAMPLE * 50:
        codes = session.scalar(
            sa.text(
                "SELECT most_common_vals::text::text[] FROM pg_stats WHERE schemaname = current_schema()"
                " AND tablename = 'client' AND attname = 'operator_code'"
            )
        )
        # Kept in the order of the alphabet, with the frequencies beside them.
        tags = session.scalars(
            sa.text(
                "SELECT tag FROM pg_stats, unnest(most_common_elems::text::text[], most_common_elem_freqs)"
                " AS common (tag, frequency) WHERE schemaname = current_schema() AND tablename = 'client'"
                " AND attname = 'tags' AND tag IS NOT NULL ORDER BY frequency DESC LIMIT 100"
            )
        ).all()
        return list(codes or [])[:100], list(tags)
    codes = session.scalars(
        sa.text("SELECT operator_code FROM client GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 100")
    ).all()
    tags = session.scalars(
        sa.text("SELECT tag FROM client, unnest(tags) AS tag GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 100")
    ).all()
    return list(codes), list(tags)
