"""The environment, read once and checked; every variable is documented in `.env.example`."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import zoneinfo
from collections.abc import Callable
from datetime import time
from functools import cache
from typing import Any, NoReturn
from urllib.parse import urlsplit

from environs import EnvError, EnvValidationError, FileAwareEnv
from marshmallow.validate import OneOf, Range

LONGEST_API_KEY = 256
CONCURRENCY = 2000  # of a sending process, unless GATEWAY_CONCURRENCY tells otherwise

_COMMA_OUTSIDE_QUOTES = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')
_ADDRESS = r"""[^@\s<>(),;:"\[\]\\]+@[^@\s<>(),;:"\[\]\\.]+(?:\.[^@\s<>(),;:"\[\]\\.]+)*"""
_MAIL_ADDRESS = re.compile(rf'(?:(?P<name>"[^"<>]*"\s*|[^"<>]*)<(?P<named>{_ADDRESS})>|(?P<bare>{_ADDRESS}))')


class SettingsError(Exception):
    """A variable is missing or wrong; the text is one line for the operator and names the variable."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings; the ones that are None were not given, see `require`."""

    database_url: str | None
    amqp_url: str | None
    secret_key: str | None
    api_key: str | None

    gateway_url: str | None
    gateway_token: str | None
    gateway_rate_limit: int  # messages per second over all senders, 0 = no limit
    gateway_timeout: float  # seconds for one whole call
    gateway_concurrency: int  # calls in flight per sender process
    gateway_max_attempts: int  # counted attempts after which a message has failed

    default_timezone: str
    listen_address: str
    api_port: int
    admin_port: int
    trusted_proxies: int  # reverse proxies in front, whose X-Forwarded-* headers are believed
    sender_processes: int
    log_level: str
    log_format: str

    admin_email: str
    admin_password: str | None

    email_host: str | None
    email_port: int
    email_host_user: str | None
    email_host_password: str | None
    email_use_tls: bool  # STARTTLS
    email_use_ssl: bool  # TLS from the first byte
    email_timeout: float  # seconds for one step of the conversation with the server
    email_from: str | None
    report_recipients: tuple[str, ...]  # each "anna@example.com" or "Anna <anna@example.com>"
    report_time: time
    report_timezone: str
    report_weekly: bool
    report_language: str
    admin_url: str | None  # where people reach the admin pages, for links in mails

    def require(self, *names: str) -> Settings:
        """Return self; raise SettingsError naming the first of these settings that was not given."""
        for name in names:
            if getattr(self, name) is None:
                raise SettingsError(f"{name.upper()} is not set; see .env.example")
        return self


def _timezone(name: str) -> str:
    # More can be loaded, such as posix/Europe/Moscow and the machine's localtime: nobody else takes these for zones.
    if name not in zoneinfo.available_timezones():
        raise EnvError(f"{name!r} is not an IANA time zone such as Europe/Moscow")
    return name


def _http_url(value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EnvError("must be an http:// or https:// address")
    try:
        _ = parts.port
        parts.hostname.encode("idna")
    except ValueError:
        raise EnvError("must be an address with a possible host and port") from None
    if parts.username is not None or parts.query or parts.fragment:
        raise EnvError("must be an address without a user, a query or a fragment")
    return value.rstrip("/")


def _token(value: str | None) -> str | None:
    if value and not (value.isascii() and value.isprintable()):
        raise EnvError("must be one line of printable ASCII characters: it goes into a header")
    return value


def _api_key(value: str | None) -> str | None:
    if value and len(value) > LONGEST_API_KEY:
        raise EnvError(f"may have at most {LONGEST_API_KEY} characters")
    return _token(value)


def _email(value: str) -> str:
    name, at, domain = value.rpartition("@")
    if not (at and name and domain) or any(character.isspace() for character in value):
        raise EnvError("must be an e-mail address")
    return value


def _clock_time(value: str) -> time:
    try:
        clock = time.fromisoformat(value)
    except ValueError as error:
        raise EnvError(f"{value!r} is not a time of day such as 07:30") from error
    if clock.tzinfo is not None:
        raise EnvError("the time zone of a time of day has a variable of its own")
    return clock


def mail_addresses(value: str) -> tuple[str, ...]:
    """Split a list such as `Anna <anna@example.com>, ben@example.com`; raise EnvError for anything else."""
    items = [item.strip() for item in _COMMA_OUTSIDE_QUOTES.split(value) if item.strip()]
    # The first of several that differ only in name or case: nobody gets a mail twice.
    found = {split_mail_address(item)[1].casefold(): item for item in reversed(items)}
    return tuple(reversed(found.values()))


def split_mail_address(text: str) -> tuple[str, str]:
    """The name (maybe empty) and the address of `"Anna, CEO" <anna@example.com>`; raise EnvError for anything else."""
    match = _MAIL_ADDRESS.fullmatch(text)
    if match is None or not text.isprintable():
        raise EnvError("must be e-mail addresses separated by commas")
    return (match["name"] or "").strip().strip('"'), match["named"] or match["bare"]


def _sender(value: str | None) -> str | None:
    if value is None:
        return None
    found = mail_addresses(value)
    if len(found) != 1:
        raise EnvError("must be one e-mail address")
    return found[0]


def load() -> Settings:
    """Read the environment; raise SettingsError for the first variable that is wrong."""
    env = FileAwareEnv(strip_whitespace=True)
    return Settings(
        database_url=_read("DATABASE_URL", env.str, None),
        amqp_url=_read("AMQP_URL", env.str, None),
        secret_key=_read("SECRET_KEY", env.str, None),
        api_key=_read("API_KEY", env.str, None, check=_api_key),
        gateway_url=_read("GATEWAY_URL", env.str, None, check=_http_url),
        gateway_token=_read("GATEWAY_TOKEN", env.str, None, check=_token),
        gateway_rate_limit=_read("GATEWAY_RATE_LIMIT", env.int, 0, validate=Range(min=0, max=1_000_000)),
        gateway_timeout=_read("GATEWAY_TIMEOUT", env.float, 10.0, validate=Range(min=0.1, max=300)),
        gateway_concurrency=_read("GATEWAY_CONCURRENCY", env.int, CONCURRENCY, validate=Range(min=1, max=20_000)),
        gateway_max_attempts=_read("GATEWAY_MAX_ATTEMPTS", env.int, 20, validate=Range(min=1, max=1000)),
        default_timezone=_read("DEFAULT_TIMEZONE", env.str, "Europe/Moscow", check=_timezone),
        listen_address=_read("LISTEN_ADDRESS", env.str, "127.0.0.1"),
        api_port=_read("API_PORT", env.int, 8000, validate=Range(min=1, max=65535)),
        admin_port=_read("ADMIN_PORT", env.int, 8001, validate=Range(min=1, max=65535)),
        trusted_proxies=_read("TRUSTED_PROXIES", env.int, 0, validate=Range(min=0, max=10)),
        sender_processes=_read("SENDER_PROCESSES", env.int, 2, validate=Range(min=1, max=64)),
        log_level=_read("LOG_LEVEL", env.str, "INFO", validate=OneOf(["DEBUG", "INFO", "WARNING", "ERROR"])),
        log_format=_read("LOG_FORMAT", env.str, "json", validate=OneOf(["json", "console"])),
        admin_email=_read("ADMIN_EMAIL", env.str, "admin@example.com", check=_email),
        admin_password=_read("ADMIN_PASSWORD", env.str, None),
        email_host=_read("EMAIL_HOST", env.str, None),
        email_port=_read("EMAIL_PORT", env.int, 25, validate=Range(min=1, max=65535)),
        email_host_user=_read("EMAIL_HOST_USER", env.str, None),
        email_host_password=_read("EMAIL_HOST_PASSWORD", env.str, None),
        email_use_tls=_read("EMAIL_USE_TLS", env.bool, False),
        email_use_ssl=_read("EMAIL_USE_SSL", env.bool, False),
        email_timeout=_read("EMAIL_TIMEOUT", env.float, 10.0, validate=Range(min=0.1, max=120)),
        email_from=_read("EMAIL_FROM", env.str, None, check=_sender),
        report_recipients=_read("REPORT_RECIPIENTS", env.str, "", check=mail_addresses),
        report_time=_read("REPORT_TIME", env.str, "07:30", check=_clock_time),
        report_timezone=_read("REPORT_TIMEZONE", env.str, "Europe/Moscow", check=_timezone),
        report_weekly=_read("REPORT_WEEKLY", env.bool, False),
        report_language=_read("REPORT_LANGUAGE", env.str, "en", validate=OneOf(["en", "ru"])),
        admin_url=_read("ADMIN_URL", env.str, None, check=_http_url),
    )


def _read(
    name: str, parse: Callable[..., Any], default: Any, check: Callable[[Any], Any] | None = None, **options: Any
) -> Any:
    # An empty variable means "not given": Compose passes an unset one that way.
    given = os.environ.get(name) or os.environ.get(f"{name}_FILE")
    try:
        value = parse(name, **options) if given else default
        return check(value) if check else value
    except EnvValidationError as error:
        # Only the rules that were broken, never the value itself: it may be a secret.
        raise SettingsError(f"{name}: {' '.join(map(str, error.error_messages))}") from None
    except (EnvError, ValueError) as error:
        raise SettingsError(f"{name}: {error}") from None


@cache
def settings() -> Settings:
    """The settings of this process, read on first use."""
    return load()


def exit_with(error: SettingsError) -> NoReturn:
    """End the process with the one clear line that the operator needs."""
    sys.stderr.write(f"configuration error: {error}\n")
    raise SystemExit(2)
