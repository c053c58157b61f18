"""What PostgreSQL does for a statement, read from EXPLAIN ANALYZE of the very statements that the code sends."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

_EXPLAINED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


@dataclasses.dataclass(frozen=True)
class Scan:
    """One way into a table that a plan takes."""

    relation: str
    kind: str  # "Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan", …
    index: str | None
    rows: int  # that it looked at, those of no use included


@dataclasses.dataclass(frozen=True)
class Plan:
    """One statement, and how it was executed."""

    statement: str
    scans: list[Scan]
    compared: int  # pairs of rows that joins tried in vain: many where each is held against each

    def scans_of(self, relation: str) -> list[Scan]:
        """The ways into this table, but those never taken."""
        return [scan for scan in self.scans if scan.relation == relation and scan.rows]

    def rows_of(self, relation: str) -> int:
        """How many rows of this table, or entries of its indexes, were looked at."""
        return sum(scan.rows for scan in self.scans_of(relation))


@contextlib.contextmanager
def plans_of(session: Session) -> Iterator[list[Plan]]:
    """Explain every statement of the session while it lasts, each just before it is executed.

    Every statement runs twice, the first time to be forgotten; what it takes from a sequence is lost.
    """
    found: list[Plan] = []

    def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.lstrip(" (\n").startswith(_EXPLAINED):
            return
        with cursor.connection.cursor() as own:
            own.execute("SAVEPOINT explained")
            own.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}", parameters)
            plan = own.fetchone()[0][0]["Plan"]
            own.execute("ROLLBACK TO SAVEPOINT explained")
            own.execute("RELEASE SAVEPOINT explained")
        found.append(Plan(statement, list(_scans(plan, "")), _compared(plan)))

    connection = session.connection()
    sa.event.listen(connection, "before_cursor_execute", explain)
    try:
        yield found
    finally:
        sa.event.remove(connection, "before_cursor_execute", explain)


def rescan_subqueries(session: Session) -> None:
    """Leave the planner, for this transaction, no join but the one that runs a sub-select once for each row."""
    for way in ("hashjoin", "mergejoin", "hashagg", "sort", "material"):
        session.execute(sa.text(f"SET LOCAL enable_{way} = off"))


def _scans(node: dict[str, Any], relation: str) -> Iterator[Scan]:
    relation = node.get("Relation Name", relation)
    kind = node["Node Type"]
    if "Scan" in kind and kind != "Bitmap Heap Scan" and ("Relation Name" in node or "Index Name" in node):
        wasted = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        yield Scan(relation, kind, node.get("Index Name"), round((node["Actual Rows"] + wasted) * node["Actual Loops"]))
    for child in node.get("Plans", ()):
        yield from _scans(child, relation)


def _compared(node: dict[str, Any]) -> int:
    own = int(node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"])
    return own + sum(_compared(child) for child in node.get("Plans", ()))
