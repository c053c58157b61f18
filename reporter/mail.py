"""Mails and the SMTP server: knows nothing of databases, and repeats nothing by itself."""

from __future__ import annotations

import contextlib
import hashlib
import smtplib
import socket
import ssl
import threading
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid
from typing import Any

from common.settings import Settings, SettingsError, split_mail_address
from common.tls import client_context
from reporter.letter import Letter

# A server that keeps answering, but slowly, is given up after so many times the timeout of one step.
PATIENCE = 4.0
ERROR_LENGTH = 300
# Letters of any script in the seven bits that every server takes.
POLICY = SMTP.clone(cte_type="7bit")


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
    message = EmailMessage(policy=POLICY)
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
    """Hands mails to the server that the settings name; SettingsError if they cannot work."""

    def __init__(self, settings: Settings) -> None:
        settings.require("email_host", "email_from")
        if settings.email_use_tls and settings.email_use_ssl:
            raise SettingsError("EMAIL_USE_TLS and EMAIL_USE_SSL exclude each other")
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
            self._converse(message)
        except smtplib.SMTPRecipientsRefused as error:
            code, text = next(iter(error.recipients.values()))
            raise MailError(f"recipient_refused_{code}", _decode(text)) from error
        except smtplib.SMTPResponseException as error:
            # A code below zero is smtplib's word for an answer that has none.
            reason = f"smtp_{error.smtp_code}" if error.smtp_code > 0 else "not_smtp"
            raise MailError(reason, _decode(error.smtp_error)) from error
        except smtplib.SMTPServerDisconnected as error:
            # A step that takes too long is told this way as well.
            timed_out = isinstance(error.__context__, TimeoutError)
            raise MailError("timeout" if timed_out else "disconnected", str(error)) from error
        except smtplib.SMTPException as error:
            raise MailError(type(error).__name__, str(error)) from error
        except TimeoutError as error:
            raise MailError("timeout", "") from error
        except ssl.SSLError as error:
            raise MailError("tls", str(error.reason or error)) from error
        except (OSError, UnicodeError, ValueError) as error:
            # A name that cannot be looked up, a refused connection; an address or password that SMTP cannot carry.
            raise MailError(type(error).__name__, getattr(error, "strerror", None) or "") from error

    def _converse(self, message: EmailMessage) -> None:
        server = self._connect()
        try:
            if self._use_tls:
                server.starttls(context=client_context())
            if self._user:
                server.login(self._user, self._password or "")
            server.send_message(message)
            # The mail is the server's already, whatever becomes of the goodbye.
            with contextlib.suppress(smtplib.SMTPException, OSError):
                server.quit()
        finally:
            server.close()

    def _connect(self) -> smtplib.SMTP:
        patience = self._timeout * PATIENCE
        if self._use_ssl:
            context = client_context()
            return _BoundedTls(patience, self._host, self._port, timeout=self._timeout, context=context)
        return _Bounded(patience, self._host, self._port, timeout=self._timeout)


class _Bounded(smtplib.SMTP):
    """A conversation that ends after so long, however lively it is: each step's own timeout begins anew with a byte."""

    def __init__(self, patience_seconds: float, *arguments: Any, **options: Any) -> None:
        self._over = threading.Event()
        threading.Thread(target=self._hang_up_after, args=(patience_seconds,), daemon=True).start()
        try:
            super().__init__(*arguments, **options)  # Connects, and waits for the greeting.
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up, and let the watching thread go."""
        self._over.set()
        super().close()

    def _hang_up_after(self, seconds: float) -> None:
        if self._over.wait(seconds):
            return
        while not self._over.wait(0.1):
            connection = self.sock  # None while it is being connected, and when it is closed.
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _BoundedTls(_Bounded, smtplib.SMTP_SSL):
    """The same with TLS from the first byte."""


def _address(text: str) -> Address:
    name, address = split_mail_address(text)
    username, _, domain = address.rpartition("@")
    return Address(name, username, domain.encode("idna").decode())


def _domain(sender: str) -> str:
    return _address(sender).domain


def _decode(text: bytes | str) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text
