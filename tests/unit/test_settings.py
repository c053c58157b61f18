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


@pytest.mark.parametrize("key", ["x" * 257, "ключ", "two\nlines"])
def test_key_that_no_caller_could_show_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("API_KEY", key)
    with pytest.raises(settings.SettingsError, match="API_KEY") as refused:
        settings.load()
    assert key not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "gateway.example",
        "http://gateway.example:abc",
        "http://gateway.example:99999",
        f"http://{'x' * 64}.example",
        "http://user:secret@gateway.example",
        "http://gateway.example/?key=secret",
    ],
)
def test_address_that_cannot_be_called_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("GATEWAY_URL", url)
    with pytest.raises(settings.SettingsError, match="GATEWAY_URL") as refused:
        settings.load()
    assert "secret" not in str(refused.value)
