"""The OpenAPI document and its page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import validate
from sqlalchemy.orm import Session

from tests.factories import make_client, make_mailing, make_message
from tests.integration.conftest import Api


@pytest.fixture(scope="session")
def document(app: Flask) -> dict[str, Any]:
    """The OpenAPI document."""
    body: dict[str, Any] = app.test_client().get("/api/v1/openapi.json").get_json()
    return body


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield f"{method} {path}", {**operation, "parameters": _parameters(document, item, operation)}


def _parameters(document: dict[str, Any], item: dict[str, Any], operation: dict[str, Any]) -> list[dict[str, Any]]:
    return [_resolved(document, given) for given in (*item.get("parameters", []), *operation.get("parameters", []))]


def _resolved(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        _, _, path = part["$ref"].partition("#/")
        part = document
        for name in path.split("/"):
            part = part[name]
    return part


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_every_path_of_the_contract_is_documented(document: dict[str, Any]) -> None:
    expected = {
        "/api/v1/client/": {"get", "post"},
        "/api/v1/client/{client_id}/": {"get", "put", "patch", "delete"},
        "/api/v1/client/import/": {"get", "post"},
        "/api/v1/mailing/": {"get", "post"},
        "/api/v1/mailing/{mailing_id}/": {"get", "put", "patch", "delete"},
        "/api/v1/mailing/{mailing_id}/start/": {"post"},
        "/api/v1/mailing/{mailing_id}/pause/": {"post"},
        "/api/v1/mailing/{mailing_id}/resume/": {"post"},
        "/api/v1/mailing/{mailing_id}/cancel/": {"post"},
        "/api/v1/mailing/{mailing_id}/retry-failed/": {"post"},
        "/api/v1/mailing/preview/": {"post"},
        "/api/v1/mailing/mailingsStatisticsOverall/": {"get"},
        "/api/v1/message/": {"get"},
        "/api/v1/message/{message_id}/": {"get"},
        "/api/v1/message/{mailing_id}/retrieveMessagesForMailing/": {"get"},
        "/api/v1/receipt/": {"post"},
    }

    documented = {path: set(item) - {"parameters"} for path, item in document["paths"].items()}

    assert expected.items() <= documented.items()


def test_every_field_has_a_description_and_an_example(document: dict[str, Any]) -> None:
    lacking = [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, content in schema["properties"].items()
        if not content.get("description") or not _has_example(document, content)
    ]

    assert lacking == []


def _has_example(document: dict[str, Any], content: dict[str, Any]) -> bool:
    """An example of its own, or of every field of what it refers to."""
    if "example" in content or "examples" in content:
        return True
    if "items" in content:
        return _has_example(document, content["items"])
    inner = [*content.get("allOf", []), *content.get("anyOf", []), *([content] if "$ref" in content else [])]
    schemas = [_resolved(document, part) for part in inner if part.get("type") != "null"]
    return bool(schemas) and all(
        _has_example(document, field) for schema in schemas for field in schema.get("properties", {}).values()
    )


def test_every_operation_has_a_text_and_its_errors(document: dict[str, Any]) -> None:
    for name, operation in _operations(document):
        responses = set(operation["responses"])
        assert operation["summary"], name
        assert responses >= {"401", "403", "422", "503"}, name
        if "requestBody" in operation:
            assert responses >= {"413", "415"}, name
        if "{" in name:
            assert "404" in responses, name
        for parameter in operation["parameters"]:
            assert parameter["description"], name
        for status, response in operation["responses"].items():
            content = _resolved(document, response).get("content", {})
            if int(status) >= 400:
                assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}, name


def test_the_key_is_documented_for_the_authorize_button(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    assert document["security"] == [{"ApiKey": []}]


@pytest.mark.parametrize("path", ["/docs/", "/docs", "/api/v1/swagger/", "/api/v1/swagger"])
def test_swagger_ui_needs_nothing_from_other_hosts(app: Flask, path: str) -> None:
    http = app.test_client()

    page = http.get(path)

    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "http" not in policy
    loaded = re.findall(r'(?:src|href|data-spec)="([^"]+)"', page.text)
    assert len(loaded) == 5
    assert "<script>" not in page.text
    for address in loaded:
        assert address.startswith("/")
        with http.get(address) as answer:
            assert answer.status_code == 200


def test_answers_have_exactly_the_documented_fields(api: Api, api_session: Session, document: dict[str, Any]) -> None:
    make_message(api_session, make_mailing(api_session), make_client(api_session))
    schemas = document["components"]["schemas"]
    for path, schema in (
        ("/client/1/", "Client"),
        ("/mailing/1/", "Mailing"),
        ("/message/1/", "MessageWithHistory"),
        ("/mailing/mailingsStatisticsOverall/", "Overall"),
        ("/message/1/retrieveMessagesForMailing/", "MailingDetail"),
    ):
        assert set(api.get(path).get_json()) == set(schemas[schema]["properties"]), path
    assert set(api.post("/mailing/1/pause/").get_json()) == set(schemas["ControlledMailing"]["properties"])
