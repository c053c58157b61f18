"""Where the gateway is, and how it is spoken to: its addresses, a proxy before it, TLS, the lines of a request."""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from common.settings import SettingsError
from common.tls import client_context

# Addresses are looked up anew after this time, and somewhat sooner when one did not answer.
FRESH_SECONDS = 60.0
DOUBTED_SECONDS = 5.0
# A TLS session is resumed by all connections of this time. Servers keep theirs for five minutes at least; and to copy
# one takes time, and before Python 3.12.8 and 3.13.1 6 kB for good (github.com/python/cpython/issues/116810).
SESSION_SECONDS = 120.0

Address = tuple[int, int, int, Any]  # family, kind, protocol, address: what a socket is made of


class Addresses:
    """The addresses of a host. A name server may take its time, so it is asked on a thread of its own."""

    def __init__(self, host: str, port: int, *, wake: Callable[[], None]) -> None:
        """`wake` is called, on that thread, when there is news."""
        self.known: list[Address] = []  # the one to try first comes first
        self.is_looking = False
        self._host, self._port = host, port
        self._wake = wake
        self._fresh_until = -math.inf
        self._doubted: dict[Address, float] = {}  # until when, monotonic

    def refresh(self, now: float) -> None:
        """Have them looked up if they are not known, or not fresh at this monotonic time."""
        if not self.is_looking and (not self.known or now >= self._fresh_until):
            self.is_looking = True
            self._fresh_until = now + FRESH_SECONDS
            threading.Thread(target=self._look_up, name="resolver", daemon=True).start()

    def prefer(self, address: Address) -> None:
        """Try this one first, which has just worked."""
        self._doubted.pop(address, None)
        known = self.known
        if address in known and known[0] != address:
            self.known = [address, *(other for other in known if other != address)]

    def doubt(self, address: Address, now: float) -> None:
        """Try this one last for a while, and look all up again soon: it did not answer."""
        self._doubted = {doubted: until for doubted, until in self._doubted.items() if until > now}
        self._doubted[address] = now + FRESH_SECONDS
        self.known = self._in_order(self.known)
        self._fresh_until = min(self._fresh_until, now + DOUBTED_SECONDS)

    def _in_order(self, addresses: Iterable[Address]) -> list[Address]:
        now = time.monotonic()
        return sorted(addresses, key=lambda address: self._doubted.get(address, now) > now)

    def _look_up(self) -> None:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            if found:
                self.known = self._in_order(
                    (family, kind, protocol, address) for family, kind, protocol, _, address in found
                )
        except (OSError, UnicodeError):
            pass  # Those of before may still be right: the name server has trouble, not the gateway.
        finally:
            self.is_looking = False
            self._wake()


class Head(NamedTuple):
    """What the head of an answer says, after which the connection is kept."""

    status: int | None
    headers: dict[bytes, bytes]
    body_bytes: int


class Origin:
    """Where the gateway is and how it is spoken to: what all connections have in common.

    As usual a proxy is taken from HTTP_PROXY or HTTPS_PROXY, unless NO_PROXY names the host. Raises SettingsError for
    a proxy that is itself spoken to over TLS.
    """

    def __init__(self, url: str, headers: Mapping[str, str], wake: Callable[[], None]) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self.host = (parts.hostname or "").encode("idna").decode()
        port = parts.port or (443 if secure else 80)
        proxy = _proxy(parts.scheme, self.host)
        self.tls = _tls_context() if secure else None
        self.session: ssl.SSLSession | None = None  # of an earlier connection, for new ones to resume
        self._session_fresh_until = -math.inf
        self.tunnel: bytes | None = None  # how to ask a proxy for one
        self.heads: dict[bytes, Head] = {}  # of answers that came, without the empty line
        self.addresses = Addresses(*(proxy.address if proxy else (self.host, port)), wake=wake)
        name = f"[{self.host}]" if ":" in self.host else self.host
        authority = f"{name}:{port}" if parts.port else name
        target = quote(parts.path, safe="/%:@!$&'()*+,;=~")
        headers = {"Host": authority, "User-Agent": "mailings", **headers}
        if proxy and secure:
            asked = {"Host": f"{name}:{port}", **proxy.headers}
            self.tunnel = _lines(f"CONNECT {name}:{port} HTTP/1.1", asked) + b"\r\n"
        elif proxy:
            target = f"http://{authority}{target}"
            headers |= proxy.headers
        self._before = f"POST {target}/send/".encode()
        self._after = _lines(" HTTP/1.1", headers) + b"Content-Length: "

    def request(self, message_id: int, body: bytes) -> bytes:
        """What is written for one message."""
        return b"%b%d%b%d\r\n\r\n%b" % (self._before, message_id, self._after, len(body), body)

    def keep_session(self, connection: ssl.SSLSocket) -> None:
        """Have new connections resume this one's session, unless they have one that is fresh."""
        now = time.monotonic()
        if now >= self._session_fresh_until:
            session = connection.session
            # To offer one that the server gave no name is in vain, and half as much work again.
            self.session = session if session and (session.has_ticket or session.id) else None
            self._session_fresh_until = now + SESSION_SECONDS

    def give_up_session(self) -> None:
        """Do without one for a while: a handshake has failed, which may be for the session that was offered."""
        if self.session is not None:
            self.session = None
            self._session_fresh_until = time.monotonic() + SESSION_SECONDS


class _Proxy:
    """Where a proxy is, and what it wants to be told."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port or 80
        except ValueError:
            port = 0
        if parts.scheme != "http" or not parts.hostname or not port:
            raise SettingsError("HTTP_PROXY and HTTPS_PROXY must be http:// addresses")
        self.address = (parts.hostname, port)
        self.headers = {}
        if parts.username:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.headers["Proxy-Authorization"] = f"Basic {b64encode(user.encode()).decode()}"


def _proxy(scheme: str, host: str) -> _Proxy | None:
    url = getproxies_environment().get(scheme)
    return _Proxy(url) if url and not proxy_bypass(host) else None


def _tls_context() -> ssl.SSLContext:
    context = client_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _lines(first: str, headers: Mapping[str, str]) -> bytes:
    return "".join(f"{line}\r\n" for line in (first, *(f"{n}: {v}" for n, v in headers.items()))).encode("latin-1")
