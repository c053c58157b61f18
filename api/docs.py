"""The OpenAPI document, and Swagger UI from files of our own."""

from __future__ import annotations

import orjson
from flask import Blueprint, Response, render_template

from api.errors import Api

INTRODUCTION = """
Send a text to the clients who match a filter, and know what became of every message.

Every request needs `Authorization: Bearer <api key>`. Times carry an offset; answers are UTC. Paths work with and
without the trailing slash.
"""

# style-src: Swagger UI sets inline styles; no script of foreign or inline origin runs.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

OPENAPI = {
    "API_TITLE": "Mailings",
    "API_VERSION": "v1",
    "OPENAPI_VERSION": "3.1.0",
    "API_SPEC_OPTIONS": {
        "info": {"description": INTRODUCTION.strip(), "license": {"name": "MIT", "identifier": "MIT"}},
        "servers": [{"url": "/", "description": "This installation."}],
        "components": {
            "securitySchemes": {
                "ApiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, as printed by the first start.",
                }
            }
        },
        "security": [{"ApiKey": []}],
    },
}


def make_blueprint(api: Api) -> Blueprint:
    """The pages; call it when every resource is registered, the document is fixed from then on."""
    blueprint = Blueprint("docs", __name__, static_folder="static", static_url_path="/docs/static")
    document = orjson.dumps(api.spec.to_dict(), option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2)

    @blueprint.get("/api/v1/openapi.json")
    def openapi() -> Response:
        return Response(document, mimetype="application/json")

    @blueprint.get("/docs/", endpoint="page")
    @blueprint.get("/api/v1/swagger/", endpoint="page_by_api_path")
    def page() -> Response:
        return Response(
            render_template("docs.html"), mimetype="text/html", headers={"Content-Security-Policy": PAGE_POLICY}
        )

    return blueprint
