"""A real SMTP server on the loopback that can be told to misbehave."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tools.processes import free_port


class MailServer:
    """Keeps what it accepts; `refuse` and `answer` are asked what to say instead of 250."""

    def __init__(self, **options: Any) -> None:
        self.accepted: list[tuple[str, EmailMessage]] = []  # with the one recipient of each
        self.arrived = threading.Event()
        self.refuse: Callable[[str], str | None] = lambda _recipient: None
        self.answer: Callable[[], str | None] = lambda: None
        self._controller = Controller(self, hostname="127.0.0.1", port=free_port(), **options)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._controller.port

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()

    async def handle_RCPT(  # noqa: N802  # The library's name.
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Accept a recipient, unless told otherwise."""
        if refusal := self.refuse(address):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Accept a mail, unless told otherwise."""
        self.arrived.set()
        if answer := self.answer():
            return answer
        assert isinstance(envelope.content, bytes)
        (recipient,) = envelope.rcpt_tos
        self.accepted.append((recipient, message_from_bytes(envelope.content, policy=policy.default)))
        return "250 OK"

    def subjects(self, recipient: str | None = None) -> list[str]:
        """What came for somebody, in the order of arrival."""
        return [mail["Subject"] for name, mail in self.accepted if recipient in (None, name)]


@contextmanager
def listener(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP port where every connection is treated by a function of the test's own; closed after it returns."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                try:
                    behave(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(timeout=10)


def server_context(certificate: Path) -> ssl.SSLContext:
    """TLS as a server speaks it, with `cert.pem` and `key.pem` of this folder."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context
