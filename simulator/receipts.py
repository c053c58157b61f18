"""Delivery receipts: some time after a message was accepted, tell the service whether the phone got it."""

import asyncio
from collections import deque
from random import Random
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from simulator.ledger import clock

SENDERS = 16  # Connections to the service.
TRIES = 10
PAUSE_SECONDS = 0.5
TIMEOUT_SECONDS = 10
DELIVERED = b'{"id": %d, "status": "delivered"}'
FAILED = b'{"id": %d, "status": "failed", "reason": "absent subscriber"}'


class Receipts:
    """Receipts wait in the order of acceptance, which is the order in which they fall due."""

    def __init__(self, url: str, key: str, delay_seconds: float, failed_share: float, random: Random) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = parts.scheme == "https"
        self.head = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        )
        self.delay_seconds = delay_seconds
        self.failed_share = failed_share
        self.random = random
        self.due: deque[tuple[float, int]] = deque()
        self.scheduled = self.delivered = self.failed = self.refused = self.given_up = 0

    def schedule(self, message_id: int, now: float) -> None:
        """Remember to send the receipt for a message accepted at `now`."""
        self.scheduled += 1
        self.due.append((now + self.delay_seconds, message_id))

    def summary(self) -> dict[str, int]:
        """Return the counts of receipts: said, refused by the service, given up, and still to come."""
        return {
            "delivered": self.delivered,
            "failed": self.failed,
            "refused": self.refused,
            "given_up": self.given_up,
            "waiting": self.scheduled - self.delivered - self.failed - self.refused - self.given_up,
        }

    async def run(self) -> None:
        """Send receipts as they fall due, for ever."""
        async with asyncio.TaskGroup() as senders:
            for _ in range(SENDERS):
                senders.create_task(self._send_in_turn())

    async def _send_in_turn(self) -> None:
        connection = Connection(self)
        while True:
            if not self.due:
                await asyncio.sleep(0.02)
                continue
            at, message_id = self.due.popleft()
            await asyncio.sleep(max(0.0, at - clock()))
            await self._deliver(connection, message_id)

    async def _deliver(self, connection: "Connection", message_id: int) -> None:
        bad = self.random.random() < self.failed_share
        body = FAILED if bad else DELIVERED
        for _ in range(TRIES):
            status = await connection.post(body % message_id)
            if status // 100 == 2:
                self.failed += bad
                self.delivered += not bad
                return
            if status // 100 == 4 and status != 429:
                self.refused += 1
                return
            await asyncio.sleep(PAUSE_SECONDS)
        self.given_up += 1


class Connection:
    """A connection to the service that is kept, and opened again when it was lost."""

    def __init__(self, receipts: Receipts) -> None:
        self.receipts = receipts
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.complete = False

    async def post(self, body: bytes) -> int:
        """Return the status of the service's answer, 0 when there was none."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await self._exchange(body)
        except (OSError, TimeoutError, HttpParserError):
            self._drop()
            return 0

    def on_message_complete(self) -> None:
        """Hear from the parser that the answer was read to its end."""
        self.complete = True

    async def _exchange(self, body: bytes) -> int:
        receipts = self.receipts
        if self.streams is None:
            self.streams = await asyncio.open_connection(receipts.host, receipts.port, ssl=receipts.tls or None)
        reader, writer = self.streams
        writer.write(receipts.head.encode() + b"%d\r\n\r\n" % len(body) + body)
        parser = HttpResponseParser(self)
        self.complete = False
        while not self.complete:
            data = await reader.read(65536)
            if not data:
                raise ConnectionResetError
            parser.feed_data(data)
        if not parser.should_keep_alive():
            self._drop()
        return parser.get_status_code()

    def _drop(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None
