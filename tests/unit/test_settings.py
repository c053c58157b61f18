"""Settings that are wrong stop the start with one line that names the variable."""

from __future__ import annotations

import pytest

from common import settings


@pytest.mark.parametrize("token", ["two\nlines", "ключ", "tab\t"])
def test_token_that_no_header_can_hold_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("GATEWAY_TOKEN", token)
    with pytest.raises(settings.SettingsError, match="GATEWAY_TOKEN") as refused:
        settings.load()
    assert token not in str(refused.value)
    assert "\n" not in str(refused.value)
