"""Why nothing is sent, when nothing is."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db.models import GatewayState
from db.queries import gateway
from tests.integration.conftest import RECEIPTS_KEY, Api


def test_a_working_gateway_has_no_reason(api: Api) -> None:
    answer = api.get("/gateway/").get_json()
    assert answer | {"state": "closed", "reason": None, "next_probe_at": None, "pace": None} == answer


def test_a_blocked_gateway_tells_why_and_when_it_is_tried_again(api: Api, api_session: Session) -> None:
    gateway.set_state(api_session, GatewayState.BLOCKED, "http_401", 10.0)
    gateway.set_pace(api_session, 12.5)
    api_session.commit()
    answer = api.get("/gateway/").get_json()
    assert (answer["state"], answer["reason"], answer["pace"]) == ("blocked", "http_401", 12.5)
    assert answer["since"] < answer["next_probe_at"]
    metrics = api.http.get("/metrics", headers={"Authorization": f"Bearer {api.key}"}).get_data(as_text=True)
    assert 'mailing_gateway_state{state="blocked"} 1.0' in metrics
    assert 'mailing_gateway_trouble{reason="http_401"} 1.0' in metrics


def test_a_key_for_receipts_does_not_see_it(api: Api) -> None:
    assert Api(api.http, RECEIPTS_KEY).get("/gateway/").status_code == 403
