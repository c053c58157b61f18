"""What keeps other sites, and other people's scripts, out of the pages: tokens, headers, cookies."""

from __future__ import annotations

import hmac
import secrets
from itertools import chain

from flask import Flask, Response, abort, current_app, request, session
from flask.sessions import SecureCookieSessionInterface

# Uploads are read as they arrive: their token is in the address, since the form's fields come with the file.
STREAMED_ENDPOINTS = frozenset({"imports.upload"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " font-src 'self'; manifest-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


class CsrfError(Exception):
    """A change was asked for without the token of this session: by another site, or by a page left open too long."""


class _Sessions(SecureCookieSessionInterface):
    def get_cookie_secure(self, _app: Flask) -> bool:
        """Only over https, wherever https is used."""
        return request.is_secure


def csrf_token() -> str:
    """The token that forms of this session carry.

    Made with the session: were it made by the first of two pages that are asked for at the same time, the answer to
    the other, when it comes late, would take it out of the cookie again.
    """
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(24)
    return str(session["csrf"])


def upload_token() -> str:
    """A token for addresses: derived, so that an address seen by others gives nothing else away."""
    return derived("upload", csrf_token()).hex()


def derived(purpose: str, seed: str) -> bytes:
    """256 bits that only this installation can make of the seed, always the same; others for another purpose."""
    return hmac.digest(str(current_app.secret_key).encode(), f"{purpose}:{seed}".encode(), "sha256")


def protect(app: Flask) -> None:
    """Check the token of every request that may change something, and send the headers with every answer."""
    app.session_interface = _Sessions()

    app.before_request(_check_token)
    app.before_request(_refuse_unstorable_text)
    app.after_request(_send_headers)


def _check_token() -> None:
    if request.method in _SAFE_METHODS or request.endpoint is None:
        return
    if request.endpoint in STREAMED_ENDPOINTS:
        given, expected = request.args.get("token", ""), upload_token()
    else:
        given = request.headers.get("X-CSRF-Token") or request.form.get("csrf_token", "")
        expected = csrf_token()
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise CsrfError


def _refuse_unstorable_text() -> None:
    # PostgreSQL stores no NUL characters: no input field of ours is meant to hold any.
    if request.endpoint in STREAMED_ENDPOINTS:
        return
    # `values()` would yield the first of each name only.
    values = chain(*request.args.listvalues(), *request.form.listvalues())
    if any("\x00" in value for value in values):
        abort(400)


def _send_headers(response: Response) -> Response:
    headers = response.headers
    headers["Content-Security-Policy"] = _POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=(), payment=()"
    if request.endpoint != "static":
        headers["Cache-Control"] = "no-store"
    if request.is_secure:
        headers["Strict-Transport-Security"] = "max-age=31536000"
    return response
