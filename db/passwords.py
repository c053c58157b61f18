"""Passwords: kept as scrypt hashes that carry their own cost, so that it can be raised later."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

SHORTEST = 10
LONGEST = 200

_LOG_N, _R, _P = 15, 8, 3  # 32 MB and some 0.2 s, as OWASP advises for scrypt
_SALT_BYTES = 16


def generate() -> str:
    """A password that nobody guesses."""
    return secrets.token_urlsafe(15)


def digest(password: str) -> str:
    """What is kept of a password."""
    salt = secrets.token_bytes(_SALT_BYTES)
    key = _derive(password, salt, _LOG_N, _R, _P)
    return "$".join(["scrypt", str(_LOG_N), str(_R), str(_P), _text(salt), _text(key)])


def verify(password: str, kept: str) -> bool:
    """Whether this is the password."""
    _, log_n, r, p, salt, key = kept.split("$")
    derived = _derive(password, _bytes(salt), int(log_n), int(r), int(p))
    return hmac.compare_digest(derived, _bytes(key))


def waste_time(password: str) -> None:
    """Take as long as `verify`: an answer must not tell by its time whether there is such an account."""
    _derive(password, b"\0" * _SALT_BYTES, _LOG_N, _R, _P)


def _derive(password: str, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    needed = 128 * r * (2**log_n + p) + 1024 * 1024
    return hashlib.scrypt(password.encode(), salt=salt, n=2**log_n, r=r, p=p, maxmem=needed, dklen=32)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)
