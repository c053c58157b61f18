"""Mails and the SMTP server: knows nothing of databases, and repeats nothing by itself."""

from __future__ import annotations

import hashlib
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid

from common.settings import Settings, split_mail_address
from reporter.letter import Letter

# A server that keeps answering, but slowly, is given up after so many times the timeout of one step.
PATIENCE = 4.0
ERROR_LENGTH = 300


class MailError(Exception):
    """The server did not take the mail, or we cannot know whether it did; worth another attempt later.

    `reason` is short and countable, `str()` has the server's words.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}"[:ERROR_LENGTH] if text else reason)
        self.reason = reason


def message_id(sender: str, kind: str, period: str, recipient: str) -> str:
    """The same for every attempt at one mail: a reader's program can tell a repeat by it."""
    digest = hashlib.sha256(f"{kind}/{period}/{recipient}".encode()).hexdigest()[:20]
    return f"<mailings.{kind.replace(':', '.')}.{period}.{digest}@{_domain(sender)}>"


def new_message_id(sender: str) -> str:
    """For a mail that somebody asked for, which is a new one each time."""
    return make_msgid("mailings", domain=_domain(sender))


def write(letter: Letter, sender: str, recipient: str, identifier: str) -> EmailMessage:
    """Put a letter into its envelope."""
    message = EmailMessage(policy=SMTP)
    message["From"] = _address(sender)
    message["To"] = _address(recipient)
    message["Subject"] = letter.subject
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = identifier
    message["Auto-Submitted"] = "auto-generated"  # No "out of office" in return.
    message.set_content(letter.text)
    message.add_alternative(letter.html, subtype="html")
    if letter.attachment:
        name, content = letter.attachment
        message.add_attachment(content, maintype="text", subtype="csv", filename=name, params={"charset": "utf-8"})
    return message


class Mailer:
    """Hands mails to the server that the settings name."""

    def __init__(self, settings: Settings) -> None:
        settings.require("email_host", "email_from")
        self._host = str(settings.email_host)
        self._port = settings.email_port
        self._user = settings.email_host_user
        self._password = settings.email_host_password
        self._use_tls = settings.email_use_tls
        self._use_ssl = settings.email_use_ssl
        self._timeout = settings.email_timeout
        self.sender = str(settings.email_from)

    @property
    def longest_seconds(self) -> float:
        """After which `send` has ended in any case."""
        return self._timeout * (PATIENCE + 1)

    def send(self, message: EmailMessage) -> None:
        """Return once the server has taken the mail; raise MailError otherwise."""
        try:
            # Before the conversation begins: its deadline is about the server, not about looking up names.
            with self._connect() as server, _deadline(server, self._timeout * PATIENCE):
                server.ehlo_or_helo_if_needed()
                if self._use_tls:
                    server.starttls(context=ssl.create_default_context())
                if self._user:
                    server.login(self._user, self._password or "")
                server.send_message(message)
                _close(server)
        except smtplib.SMTPRecipientsRefused as error:
            code, text = next(iter(error.recipients.values()))
            raise MailError(f"recipient_refused_{code}", _decode(text)) from error
        except smtplib.SMTPResponseException as error:
            raise MailError(f"smtp_{error.smtp_code}", _decode(error.smtp_error)) from error
        except smtplib.SMTPServerDisconnected as error:
            raise MailError("disconnected", str(error)) from error
        except smtplib.SMTPException as error:
            raise MailError(type(error).__name__, str(error)) from error
        except TimeoutError as error:
            raise MailError("timeout", "") from error
        except ssl.SSLError as error:
            raise MailError("tls", str(error.reason or error)) from error
        except (OSError, UnicodeError, ValueError) as error:
            # A name that cannot be looked up, a refused connection; an address or password that SMTP cannot carry.
            raise MailError(type(error).__name__, getattr(error, "strerror", None) or "") from error

    def _connect(self) -> smtplib.SMTP:
        if self._use_ssl:
            context = ssl.create_default_context()
            return smtplib.SMTP_SSL(self._host, self._port, timeout=self._timeout, context=context)
        return smtplib.SMTP(self._host, self._port, timeout=self._timeout)


@contextmanager
def _deadline(server: smtplib.SMTP, seconds: float) -> Iterator[None]:
    """End the conversation after so long, however lively it is: each step's own timeout begins anew with every byte."""

    def hang_up() -> None:
        if server.sock is not None:
            server.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _close(server: smtplib.SMTP) -> None:
    """Say goodbye; the mail is the server's already, whatever becomes of that."""
    try:
        server.quit()
    except (smtplib.SMTPException, OSError):
        server.close()


def _address(text: str) -> Address:
    name, address = split_mail_address(text)
    username, _, domain = address.rpartition("@")
    return Address(name, username, domain.encode("idna").decode())


def _domain(sender: str) -> str:
    return _address(sender).domain


def _decode(text: bytes | str) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text
