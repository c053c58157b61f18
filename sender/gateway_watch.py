"""How the dispatcher learns from recent answers whether the gateway is well, and how fast it may be called.

The rules are in `sender.breaker`, what they are asked about and what they say is in the database, for all dispatchers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

import structlog
from sqlalchemy import Connection, Engine

from db.models import GatewayState, MessageStatus
from db.queries import audience, batches, gateway, statistics
from sender import breaker
from sender.retry import CAP_SECONDS

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.1


class GatewayWatch:
    """Opens and closes the circuit breaker, and moves the pace."""

    def __init__(self, engine: Engine, rate_limit: float | None) -> None:
        self.state = GatewayState.CLOSED
        self._engine = engine
        self._rate_limit = rate_limit
        self._pace: float | None = None
        self._suspicion = breaker.Suspicion()
        self._next_look = 0.0

    @property
    def rate(self) -> float | None:
        """The most messages a second at the moment, by our limit and by what the gateway bears; None: any."""
        return min((rate for rate in (self._rate_limit, self._pace) if rate), default=None)

    def look(self) -> None:
        """Judge by the latest answers, unless that was done just before."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        with self._engine.begin() as connection:
            row = gateway.read(connection)
            self._pace = row.pace
            self.state = self._move_breaker(connection, row)
            self._move_pace(connection, row)

    def _move_breaker(self, connection: Connection, row: gateway.GatewayRow) -> GatewayState:
        if row.state is not GatewayState.CLOSED:
            return self._heed_probes(connection, row)
        lately = gateway.recent(connection, breaker.WINDOWS_SECONDS[-1], row.changed_at)
        if any(tally.blocked for tally in lately.values()):
            return self._set_state(connection, GatewayState.BLOCKED, breaker.reason_of(lately))
        if not any(tally.troubled for tally in lately.values()):
            self._suspicion.forget()
        elif self._is_failing(connection, row) or self._is_away(connection, row, lately):
            return self._set_state(connection, GatewayState.OPEN, breaker.reason_of(lately))
        return row.state

    def _is_failing(self, connection: Connection, row: gateway.GatewayRow) -> bool:
        windows = [gateway.recent(connection, seconds, row.changed_at) for seconds in breaker.WINDOWS_SECONDS]
        under_way = {batch.mailing_id for batch in batches.under_way(connection)} | set(audience.due(connection))
        return self._suspicion.is_sure(windows, under_way, time.monotonic())

    def _is_away(self, connection: Connection, row: gateway.GatewayRow, lately: Mapping[int, gateway.Tally]) -> bool:
        if not breaker.are_few(lately):
            return False
        in_a_row = gateway.failed_in_a_row(connection, breaker.AWAY_REASONS, row.changed_at)
        return breaker.is_away(in_a_row, on_the_wire=statistics.totals(connection)[MessageStatus.SENDING])

    def _heed_probes(self, connection: Connection, row: gateway.GatewayRow) -> GatewayState:
        """Close by what probes heard. Before the first, only calls from before the trouble are still answered."""
        first_probe_at = row.changed_at + timedelta(seconds=breaker.probe_seconds(row.state) or 0.0)
        lately = gateway.recent(connection, breaker.WINDOWS_SECONDS[-1], first_probe_at)
        if any(tally.answered or tally.slowed for tally in lately.values()):
            return self._set_state(connection, GatewayState.CLOSED, None)
        if row.state is GatewayState.OPEN and any(tally.blocked for tally in lately.values()):
            return self._set_state(connection, GatewayState.BLOCKED, breaker.reason_of(lately))
        return row.state

    def _set_state(self, connection: Connection, state: GatewayState, reason: str | None) -> GatewayState:
        self._suspicion.forget()
        gateway.set_state(connection, state, reason, breaker.probe_seconds(state))
        level = log.info if state is GatewayState.CLOSED else log.error
        level("gateway_state", state=state.value, reason=reason)
        return state

    def _move_pace(self, connection: Connection, row: gateway.GatewayRow) -> None:
        """Lower the pace when the gateway complained since it was last set, raise it after a second without."""
        since = (row.now - row.paced_at).total_seconds()
        if since < 1.0:
            return
        lately = gateway.recent(connection, min(since, 2.0), row.paced_at).values()
        if any(tally.slowed for tally in lately):
            calls = sum(tally.answered + tally.troubled + tally.slowed for tally in lately)
            pace = breaker.lowered_pace(row.pace or self._rate_limit, calls / min(since, 2.0))
            gateway.set_pace(connection, pace)
            log.warning("gateway_slows", pace=round(pace, 1))
        elif row.pace is not None:
            gateway.set_pace(connection, breaker.raised_pace(row.pace, self._rate_limit))

    def forget_trouble(self, connection: Connection) -> None:
        """Close where nothing is left to ask with for longer than any message backs off: nobody knows any more."""
        if not audience.due(connection, within_seconds=CAP_SECONDS) and not batches.under_way(connection):
            self.state = self._set_state(connection, GatewayState.CLOSED, None)
