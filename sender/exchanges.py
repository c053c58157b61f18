"""The calls on their way: each has a connection for itself, kept ones first, and its time limits."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time
from collections import OrderedDict, deque
from collections.abc import Sequence

import orjson

from sender.answers import Answer, Fault
from sender.connection import Connection, Progress
from sender.delivery import Call, Delivery, Skip
from sender.origin import Address, Origin

CONNECT_TIMEOUT_SECONDS = 5.0
ADDRESS_SECONDS = 2.0  # of these, what an address has when there is another to try
# A connection that nobody needs is closed after this time: some servers do so themselves after five seconds, and may
# do it just when a request is on its way.
REST_SECONDS = 4.0


class Exchange:
    """One call, from the decision to make it to its answer."""

    __slots__ = ("addresses", "answer", "began", "call", "connection", "delivery", "is_asked")

    def __init__(self, call: Call, delivery: Delivery, began: float) -> None:
        self.call = call
        self.delivery = delivery
        self.began = began  # monotonic
        self.connection: Connection | None = None
        self.addresses: Sequence[Address] = ()  # to be tried when a connection cannot be made
        self.is_asked = False  # the request is on the wire
        self.answer: Answer | Skip | None = None  # None until it is over; Skip when its request did not leave


class Exchanges:
    """All calls in flight of a process, on the thread that calls `wait`."""

    def __init__(self, url: str, token: str | None, timeout_seconds: float) -> None:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._origin = Origin(url, headers, self.wake)
        self._timeout_seconds = timeout_seconds
        self._connect_seconds = min(CONNECT_TIMEOUT_SECONDS, timeout_seconds)
        self._address_seconds = min(ADDRESS_SECONDS, self._connect_seconds / 2)
        self._in_flight: OrderedDict[Exchange, None] = OrderedDict()  # the oldest first
        # Those of them whose connection is not there yet, with the monotonic time by which it must be.
        self._connecting: dict[Exchange, float] = {}
        self._deadlines: list[tuple[float, int, Exchange]] = []  # the same as a heap; some are out of date
        self._numbers = itertools.count()  # which make any two of them comparable
        self._unresolved: dict[Exchange, None] = {}  # those of them that wait for an address
        self._ended: list[Exchange] = []
        self._connections: dict[int, Connection] = {}  # by descriptor
        self._exchanges: dict[Connection, Exchange] = {}
        self._resting: deque[tuple[float, Connection]] = deque()  # since when, the latest last; may be closed by now
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wakeup, select.EPOLLIN)

    def __len__(self) -> int:
        """How many are in flight."""
        return len(self._in_flight)

    def wake(self) -> None:
        """End a `wait`; from any thread."""
        if not self._epoll.closed:
            os.eventfd_write(self._wakeup, 1)

    def begin(self, call: Call, delivery: Delivery, now: float) -> None:
        """Make this call, which may go at this monotonic time."""
        exchange = Exchange(call, delivery, now)
        self._in_flight[exchange] = None
        connection = self._rested()
        if connection is None:
            self._find_address(exchange, now)
        else:
            self._ask(exchange, connection)

    def take_back(self, now: float) -> None:
        """Give up those whose request has not left and must not any more."""
        for exchange in list(self._connecting):
            if exchange.delivery.is_over(now):
                self._abandon(exchange)
                self._end(exchange, Skip.RETURNED)

    def wait(self, seconds: float) -> list[Exchange]:
        """Do what can be done, after waiting for so long at most until there is something; what has ended."""
        rested = len(self._resting)
        for descriptor in self._ready(max(0.0, min(seconds, self._spare_seconds(time.monotonic())))):
            if descriptor == self._wakeup:
                os.eventfd_read(self._wakeup)
            else:
                self._proceed(self._connections[descriptor])
        now = time.monotonic()
        if len(self._resting) > rested:
            self._close_talkative()
        self._close_rested(now)
        self._resolve(now)
        self._expire(now)
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Abandon what is on the wire and close every connection."""
        for connection in self._connections.values():
            connection.close()
        self._epoll.close()
        os.close(self._wakeup)

    def _ready(self, seconds: float) -> list[int]:
        """The descriptors with something to do, all of them: epoll by itself tells of 1,023."""
        return [descriptor for descriptor, _ in self._epoll.poll(seconds, len(self._connections) + 1)]

    def _end(self, exchange: Exchange, answer: Answer | Skip) -> None:
        del self._in_flight[exchange]
        if not exchange.is_asked:
            self._connecting.pop(exchange, None)
            self._unresolved.pop(exchange, None)
        exchange.answer = answer
        self._ended.append(exchange)

    def _fail(self, exchange: Exchange, fault: Fault, now: float) -> None:
        """End a call without an answer, but with what came of it."""
        milliseconds = int((now - exchange.began) * 1000)
        if exchange.connection is None:
            self._end(exchange, Answer(milliseconds, fault))
            return
        exchange.connection.fault = fault
        self._end(exchange, exchange.connection.answer(milliseconds))

    # Connecting ---------------------------------------------------------------------------------------------------

    def _find_address(self, exchange: Exchange, now: float) -> None:
        addresses = self._origin.addresses
        addresses.refresh(now)
        if addresses.known:
            exchange.addresses = tuple(addresses.known)
            self._connect(exchange, now)
        else:
            self._limit(exchange, exchange.began + self._connect_seconds)
            self._unresolved[exchange] = None

    def _resolve(self, now: float) -> None:
        """Go on with the calls that wait for an address, if there is one now."""
        addresses = self._origin.addresses
        if not self._unresolved or (addresses.is_looking and not addresses.known):
            return
        waiting, self._unresolved = self._unresolved, {}
        for exchange in waiting:
            if addresses.known:
                exchange.addresses = tuple(addresses.known)
                self._connect(exchange, now)
            else:
                self._fail(exchange, Fault.DNS, now)

    def _connect(self, exchange: Exchange, now: float) -> None:
        """Begin to connect, to the next address that this can be begun to."""
        self._connecting.pop(exchange, None)
        while exchange.addresses:
            address, *exchange.addresses = exchange.addresses
            try:
                connection = Connection(self._origin, address, self._epoll)
            except OSError:
                self._origin.addresses.doubt(address, now)
                continue
            self._connections[connection.descriptor] = connection
            self._exchanges[connection] = exchange
            exchange.connection = connection
            last = exchange.began + self._connect_seconds
            self._limit(exchange, min(last, now + self._address_seconds) if exchange.addresses else last)
            return
        self._fail(exchange, Fault.REFUSED, now)

    def _limit(self, exchange: Exchange, deadline: float) -> None:
        """Have it connected by this monotonic time."""
        self._connecting[exchange] = deadline
        heapq.heappush(self._deadlines, (deadline, next(self._numbers), exchange))

    def _first_to_connect(self) -> tuple[float, Exchange] | None:
        """The one that must be connected first, and when."""
        while self._deadlines:
            deadline, _, exchange = self._deadlines[0]
            if self._connecting.get(exchange) == deadline:
                return deadline, exchange
            heapq.heappop(self._deadlines)
        return None

    def _abandon(self, exchange: Exchange) -> None:
        if exchange.connection is not None:
            self._close(exchange.connection)

    def _close(self, connection: Connection) -> None:
        del self._connections[connection.descriptor]
        self._exchanges.pop(connection, None)
        connection.close()

    # One call after another ---------------------------------------------------------------------------------------

    def _close_talkative(self) -> None:
        """Close kept connections on which something came after the answer, or the end.

        It would be taken for the answer to the next request, which may be asked at once.
        """
        for descriptor in self._ready(0.0):
            connection = self._connections.get(descriptor)
            if connection is not None and connection not in self._exchanges:
                self._proceed(connection)

    def _close_rested(self, now: float) -> None:
        """Close what has rested for too long."""
        while self._resting and self._resting[0][0] <= now - REST_SECONDS:
            _, connection = self._resting.popleft()
            if not connection.is_closed:
                self._close(connection)

    def _rested(self) -> Connection | None:
        """A kept connection, the one that was used last, so that those that are not needed end."""
        while self._resting:
            _, connection = self._resting.pop()
            if not connection.is_closed:
                return connection
        return None

    def _ask(self, exchange: Exchange, connection: Connection) -> None:
        call = exchange.call
        message_id = call.recipient.message_id
        body = orjson.dumps({"id": message_id, "phone": call.phone, "text": call.text})
        self._exchanges[connection] = exchange
        exchange.connection = connection
        exchange.is_asked = True
        connection.ask(self._origin.request(message_id, body))

    def _proceed(self, connection: Connection) -> None:
        received_bytes = connection.received_bytes
        progress = connection.proceed()
        exchange = self._exchanges.get(connection)
        if exchange is None:
            if progress is not Progress.NONE or connection.received_bytes != received_bytes:
                self._close(connection)  # The other side has closed it, or speaks without being asked.
            return
        now = time.monotonic()
        if progress is Progress.ANSWERED:
            self._end(exchange, connection.answer(int((now - exchange.began) * 1000)))
            self._rest(connection, now)
        elif progress is Progress.READY:
            self._connected(exchange, connection, now)
        elif progress is Progress.FAILED:
            self._close(connection)
            self._failed(exchange, connection, now)

    def _connected(self, exchange: Exchange, connection: Connection, now: float) -> None:
        """The last moment to hold a request back: to connect may have taken seconds."""
        del self._connecting[exchange]
        self._origin.addresses.prefer(connection.address)
        skip = exchange.delivery.objection(exchange.call, now)
        if skip is None:
            self._ask(exchange, connection)
        else:
            self._end(exchange, skip)
            self._rest(connection, now)

    def _failed(self, exchange: Exchange, connection: Connection, now: float) -> None:
        if not connection.has_answered:
            self._origin.addresses.doubt(connection.address, now)
        if not exchange.is_asked and exchange.addresses:
            self._connect(exchange, now)
            return
        self._end(exchange, connection.answer(int((now - exchange.began) * 1000)))

    def _rest(self, connection: Connection, now: float) -> None:
        if connection.is_reusable:
            del self._exchanges[connection]
            self._resting.append((now, connection))
        else:
            self._close(connection)

    # Time limits --------------------------------------------------------------------------------------------------

    def _spare_seconds(self, now: float) -> float:
        """Seconds until a call has taken too long."""
        if self._ended:
            return 0.0
        limits = []
        if self._in_flight:
            limits.append(next(iter(self._in_flight)).began + self._timeout_seconds)
        if first := self._first_to_connect():
            limits.append(first[0])
        return min(limits, default=now + self._timeout_seconds) - now

    def _expire(self, now: float) -> None:
        """End what has taken too long; what cannot be connected to goes on with the next address."""
        while self._in_flight and (exchange := next(iter(self._in_flight))).began + self._timeout_seconds <= now:
            self._abandon(exchange)
            self._fail(exchange, _timeout(exchange), now)
        while (first := self._first_to_connect()) and first[0] <= now:
            exchange = first[1]
            if exchange.connection is not None:
                self._origin.addresses.doubt(exchange.connection.address, now)
            self._abandon(exchange)
            if exchange.addresses and now < exchange.began + self._connect_seconds:
                self._connect(exchange, now)
            else:
                self._fail(exchange, _timeout(exchange), now)


def _timeout(exchange: Exchange) -> Fault:
    if exchange.connection is None:
        return Fault.DNS
    if not exchange.is_asked:
        return Fault.CONNECT_TIMEOUT
    return Fault.BODY_TIMEOUT if exchange.connection.received_bytes else Fault.TIMEOUT
