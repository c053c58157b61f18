"""Catch mails instead of delivering them: a file each, as sent and as its HTML, for development without Docker.

python -m tools.mailbox --port 1025 --directory .local/mail
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from email import message_from_bytes, policy
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

KEPT = 200  # the newest; development must not fill the disk


class Mailbox:
    """A handler for aiosmtpd that writes what it is given."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True)

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802  # Its name.
        """Keep one mail; the answer to the client."""
        try:
            path = self._keep(envelope)
        except OSError as error:
            return f"452 cannot be kept: {error.strerror}"  # A temporary failure: the disk may be full.
        with contextlib.suppress(OSError):  # It is kept, whether or not that can be told.
            print(f"caught {path}", flush=True)
        return "250 caught"

    def _keep(self, envelope: Envelope) -> Path:
        content = envelope.content if isinstance(envelope.content, bytes) else (envelope.content or "").encode()
        path = next(path for path in self._names() if not path.exists())
        path.write_bytes(content)
        body = message_from_bytes(content, policy=policy.default).get_body(("html",))
        if body is not None:
            path.with_suffix(".html").write_text(body.get_content())
        self._forget_old()
        return path

    def _names(self) -> Iterator[Path]:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
        return (self._directory / f"{stamp}-{number}.eml" for number in itertools.count(1))

    def _forget_old(self) -> None:
        for path in sorted(self._directory.glob("*.eml"))[:-KEPT]:
            path.unlink()
            path.with_suffix(".html").unlink(missing_ok=True)


def main() -> int:
    """Catch until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m tools.mailbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    # Blocked before the server's thread starts and inherits that: the signal then waits for sigwait.
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    controller = Controller(Mailbox(options.directory), hostname=options.host, port=options.port)
    controller.start()
    signal.sigwait(stops)
    controller.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
