"""What the pages tell of an import."""

from __future__ import annotations

from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from db.models import ImportJob, ImportState, RejectedRow

RUSSIAN = {"Accept-Language": "ru"}


def test_rejected_rows_are_downloaded_with_reasons_in_the_language_of_the_page(
    browser: FlaskClient, session: Session
) -> None:
    counts = {"total": 1, "processed": 1, "rejected": 1}
    job = ImportJob(state=ImportState.RUNNING, delimiter=",", columns=["phone", "name"], **counts)
    session.add(job)
    session.flush()
    session.add(RejectedRow(import_id=job.id, line=2, reason="phone: is empty", row='["", "Anna"]'))
    session.commit()

    texts = [
        browser.get(f"/imports/{job.id}/rejected.csv", headers=headers).get_data(as_text=True).split("\r\n")[1]
        for headers in ({}, RUSSIAN)
    ]

    assert texts == ["2,phone: is empty,,Anna", "2,phone: номер не указан,,Anna"]
