"""What every resource's blueprint shares: strict JSON, and the errors that any request may meet, documented."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NoReturn, Protocol, TypeVar, cast

import flask_smorest
import orjson
from flask import Request
from marshmallow import Schema
from webargs import core
from webargs.flaskparser import FlaskParser, abort

from api.errors import ErrorSchema
from api.fields import OptionalInput

Decorated = TypeVar("Decorated", bound=Callable[..., Any] | type)


class Decorator(Protocol):
    """Gives back what it decorates, as far as types go."""

    def __call__(self, decorated: Decorated, /) -> Decorated:
        """Decorate."""


_ALWAYS_POSSIBLE = (401, 403, 422, 503)
_POSSIBLE_WITH_BODY = (413, 415)


class _StrictParser(FlaskParser):
    """Bodies are JSON and say so. orjson refuses what the standard library lets pass: NaN, 1e400, lone surrogates."""

    def load_json(self, req: Request, schema: Schema) -> Any:
        loaded = super().load_json(req, schema)
        if loaded is core.missing and not isinstance(schema, OptionalInput):
            abort(422, message="a JSON body is needed", errors={"json": {"_schema": ["a body is needed"]}})
        return loaded

    def load_headers(self, req: Request, schema: Schema) -> Any:
        """Return the headers that the schema knows: reading all of them would cost more than all the rest."""
        names = [field.data_key or name for name, field in schema.load_fields.items()]
        return {name: req.headers[name] for name in names if name in req.headers}

    def _raw_load_json(self, req: Request) -> Any:
        body = req.get_data(cache=True)
        if not body:
            return core.missing
        if not req.is_json:
            abort(415, message="the body has to be JSON, with Content-Type: application/json")
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            # Where this is left to webargs, a body that is not UTF-8 is none: orjson tells no text of it.
            self._handle_invalid_json_error(error, req)

    def _handle_invalid_json_error(self, error: ValueError, req: Request, *_args: Any, **_kwargs: Any) -> NoReturn:  # noqa: ARG002
        abort(422, message="the body is not valid JSON", errors={"json": {"_schema": ["not valid JSON"]}})


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]
    """A blueprint whose decorators keep the types of what they decorate."""

    ARGUMENTS_PARSER = _StrictParser()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare_doc_cbks.append(_document_errors)

    def route(self, rule: str, **options: Any) -> Decorator:
        """Serve a view at this path."""
        return cast("Decorator", super().route(rule, **options))

    def arguments(self, schema: type[Schema] | Schema, **options: Any) -> Decorator:
        """Hand what the caller sent, once loaded, to the view."""
        # Given the class, webargs would make the schema and all its fields anew for every request.
        made = schema() if isinstance(schema, type) else schema
        return cast("Decorator", super().arguments(made, **options))

    def response(self, status: int, schema: type[Schema] | Schema | None = None, **options: Any) -> Decorator:
        """Answer with this status; the schema documents the body."""
        return cast("Decorator", super().response(status, schema, **options))

    def refuses(self, status: int, description: str) -> Decorator:
        """Document one error of this operation."""
        return cast("Decorator", super().alt_response(status, schema=ErrorSchema, description=description))

    def doc(self, **options: Any) -> Decorator:
        """Add to the documentation as it is."""
        return cast("Decorator", super().doc(**options))


def _document_errors(doc: dict[str, Any], _doc_info: Mapping[str, Any], **_context: Any) -> dict[str, Any]:
    responses = doc.setdefault("responses", {})
    for status in (*_ALWAYS_POSSIBLE, *(_POSSIBLE_WITH_BODY if "requestBody" in doc else ())):
        # The name of the response that flask-smorest keeps; some differ between versions of Python.
        responses.setdefault(status, HTTPStatus(status).name)
    return doc


def id_parameter(name: str, what: str) -> list[dict[str, Any]]:
    """The documentation of an id in a path."""
    return [{"in": "path", "name": name, "description": f"The id of the {what}.", "example": 1}]
