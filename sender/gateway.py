"""The gateway's client: one libcurl multi loop per process, hundreds of calls in flight on one thread.

libcurl was chosen by measurement (see docs/decisions.md); everything that knows of it is in this file. The loop follows
libcurl's "multi_socket" interface (https://curl.se/libcurl/c/libcurl-multi.html) on epoll: unlike its `select` form the
cost of a call does not grow with the number in flight, and file descriptors may exceed 1024.

What happens within a millisecond is handled together: waking up, looking round and fighting for the interpreter's lock
cost more than a call does.
"""

from __future__ import annotations

import contextlib
import os
import select
import ssl
import threading
import time
from collections import Counter, defaultdict, deque
from io import BytesIO
from typing import Protocol
from urllib.request import getproxies_environment

import certifi
import orjson
import pycurl
import structlog

from sender.answers import Answer, Fault, Verdict, judge
from sender.delivery import Call, Called, Delivery, Skip, Skipped
from sender.limit import Limit

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_SECONDS = 5.0
BODY_LIMIT_BYTES = 64 * 1024  # A real answer has some dozen bytes; ten megabytes are not read.
UPLOAD_BUFFER_BYTES = 16 * 1024  # The least there is: libcurl keeps one of 64 kB for each call in flight otherwise.
ROUND_SECONDS = 0.001  # The loop goes round no more often.
# And begins so many calls in a round at most: a gateway that answers at once is then spoken to over few connections,
# and a slow one still gets sixty thousand calls a second.
STARTS_PER_ROUND = 64
TURN = 16  # calls of one mailing before the next one's
IDLE_SECONDS = 0.5  # Leases, ends and pauses are looked at this often even when nothing happens.
# One mailing may use this share of the calls in flight, so that one whose calls all hang leaves room for the others.
MAILING_SHARE = 0.8
# The exponentially weighted share of failing calls, of every mailing, beyond which this process stops by itself.
TRIP_RATIO = 0.75
TRIP_WEIGHT = 0.05
TRIP_MEMORY_SECONDS = 10.0

_FAULTS = {
    pycurl.E_COULDNT_RESOLVE_HOST: Fault.DNS,
    pycurl.E_COULDNT_RESOLVE_PROXY: Fault.DNS,
    pycurl.E_COULDNT_CONNECT: Fault.REFUSED,
    pycurl.E_GOT_NOTHING: Fault.CLOSED,
    pycurl.E_ABORTED_BY_CALLBACK: Fault.CLOSED,  # libcurl was kept from repeating the request (`_Slot._on_connected`)
    pycurl.E_RECV_ERROR: Fault.RESET,
    pycurl.E_SEND_ERROR: Fault.RESET,
    pycurl.E_PARTIAL_FILE: Fault.TRUNCATED,
    pycurl.E_WRITE_ERROR: Fault.TOO_LARGE,
    pycurl.E_FILESIZE_EXCEEDED: Fault.TOO_LARGE,
    pycurl.E_UNSUPPORTED_PROTOCOL: Fault.NOT_HTTP,
    pycurl.E_FTP_WEIRD_SERVER_REPLY: Fault.NOT_HTTP,  # CURLE_WEIRD_SERVER_REPLY: not an HTTP answer at all
    pycurl.E_HTTP2: Fault.NOT_HTTP,
    pycurl.E_BAD_CONTENT_ENCODING: Fault.NOT_HTTP,
    pycurl.E_SSL_CONNECT_ERROR: Fault.TLS,
    pycurl.E_PEER_FAILED_VERIFICATION: Fault.TLS,
    pycurl.E_SSL_CERTPROBLEM: Fault.TLS,
    pycurl.E_SSL_CIPHER: Fault.TLS,
    pycurl.E_SSL_CACERT_BADFILE: Fault.TLS,
    pycurl.E_SSL_ISSUER_ERROR: Fault.TLS,
    pycurl.E_SSL_ENGINE_INITFAILED: Fault.TLS,
    pycurl.E_SSL_INVALIDCERTSTATUS: Fault.TLS,
}


_EPOLL_EVENTS = {
    pycurl.POLL_NONE: 0,
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}


_FAILED = frozenset({Verdict.TROUBLE, Verdict.UNKNOWN})
# What tells how long the gateway takes.
_HEARD = frozenset({Verdict.ACCEPTED, Verdict.REFUSED, Verdict.DEFERRED})
# Signs that it cannot take more connections.
_OVERLOAD_REASONS = frozenset({Fault.REFUSED.value, Fault.CONNECT_TIMEOUT.value})


class Pace(Protocol):
    """Who says when the next call may go."""

    demand: int  # how many calls wait for it; kept up to date by the caller

    def take(self, most: int, now: float) -> int:
        """Take the permission to start up to `most` calls at this monotonic time; how many were given."""
        ...

    def give_back(self, count: int, now: float) -> None:
        """Return what was not used of it."""
        ...

    def wait_seconds(self, now: float) -> float:
        """Seconds until there may be more."""
        ...


class _Slot:
    """A curl handle with its buffer, used for one call after another."""

    __slots__ = ("body", "call", "delivery", "handle", "is_asked", "skip")

    def __init__(self, handle: pycurl.Curl) -> None:
        self.handle = handle
        self.body = BytesIO()
        self.call: Call | None = None
        self.delivery: Delivery | None = None
        self.is_asked = False  # the request is on the wire
        self.skip: Skip | None = None  # why it never will be
        handle.setopt(pycurl.WRITEFUNCTION, self.body.write)
        handle.setopt(pycurl.PREREQFUNCTION, self._on_connected)

    def begin(self, call: Call, delivery: Delivery) -> None:
        """Be of use to this call."""
        self.call, self.delivery = call, delivery
        self.is_asked, self.skip = False, None
        self.body.seek(0)
        self.body.truncate()

    def _on_connected(self, *_addresses: object) -> int:
        """The last moment to hold a request back: to connect may have taken seconds.

        And the moment to keep libcurl from repeating one that it sent already: it does by itself when a kept connection
        ends without an answer, but each request must be one that may go now, that the pace allows, and that is counted.
        """
        assert self.call is not None
        assert self.delivery is not None
        if self.is_asked:
            return pycurl.PREREQFUNC_ABORT
        self.skip = self.delivery.objection(self.call, time.monotonic())
        self.is_asked = self.skip is None
        return pycurl.PREREQFUNC_OK if self.is_asked else pycurl.PREREQFUNC_ABORT


class GatewayClient:
    """Sends the calls of many deliveries, `concurrency` at a time.

    A call counts as in flight until its outcome is recorded (`recorded`): so a killed process leaves at most that many
    messages that the gateway may have seen and the database does not know of.
    """

    def __init__(self, url: str, token: str | None, timeout_seconds: float, concurrency: int, pace: Pace) -> None:
        self._url = url.rstrip("/") + "/send/"
        self._headers = ["Content-Type: application/json", "Accept: application/json"]
        if token:
            self._headers.append(f"Authorization: Bearer {token}")
        self._timeout_seconds = timeout_seconds
        self._concurrency = concurrency
        self._pace = pace
        self._limit = Limit(concurrency, timeout_seconds)
        self._busy = 0  # in flight, or not yet recorded
        self._busy_of: defaultdict[int, int] = defaultdict(int)  # the same by mailing
        self._incoming: deque[Delivery] = deque()
        self._active: set[Delivery] = set()  # while they have calls that were not begun
        self._freed: deque[Counter[int]] = deque()
        self._ring: deque[int] = deque()  # mailing ids, in turn
        self._deliveries: dict[int, deque[Delivery]] = {}
        self._failing: dict[int, tuple[float, float]] = {}  # mailing id: weighted share of failures, when last heard
        self._spare: list[_Slot] = []
        self._slots: dict[pycurl.Curl, _Slot] = {}
        self._draining = False
        self._closed = False
        self._next_round = 0.0
        self._next_look = 0.0  # at what is being connected
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watched: dict[int, int] = {}  # descriptor: the events that epoll watches it for
        self._resting: set[int] = set()  # those of them whose connections are kept for a later call
        self._epoll = select.epoll()
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_MAXCONNECTS, concurrency)
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    # Called from other threads ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the loop's thread."""
        self._thread.start()

    def submit(self, delivery: Delivery) -> None:
        """Begin a delivery; its results go to its sink."""
        self._incoming.append(delivery)
        self._wake()

    def recorded(self, calls: Counter[int]) -> None:
        """Free the places of calls whose outcomes are in the database; their number by mailing."""
        self._freed.append(calls)
        self._wake()

    def wake(self) -> None:
        """Look at the deliveries and the pace again."""
        self._wake()

    def drain(self) -> None:
        """Start no further call: what is in flight ends, the rest is returned."""
        self._draining = True
        self._wake()

    def close(self) -> None:
        """End the loop at once and close every connection."""
        self._wake()
        self._closed = True
        self._thread.join(timeout=5)

    def _wake(self) -> None:
        if not self._closed:
            os.eventfd_write(self._wakeup, 1)

    # The loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                self._round()
            self._disconnect()
        except Exception:
            # Without its loop the process is useless: end it, its supervisor starts a new one and leases run out.
            log.exception("gateway_loop_failed")
            os._exit(70)

    def _disconnect(self) -> None:
        """Abandon what is on the wire and close every connection."""
        for slot in self._slots.values():
            if slot.call is not None:
                self._multi.remove_handle(slot.handle)
        self._multi.close()
        self._epoll.close()
        os.close(self._wakeup)

    def _round(self) -> None:
        now = time.monotonic()
        if now < self._next_round:
            time.sleep(self._next_round - now)
            now = time.monotonic()
        self._next_round = now + ROUND_SECONDS
        self._take_in()
        self._return_what_is_over(now)
        pause = self._start_calls(now)
        # Asked once a round instead of heard of for every call, which a timer callback would be.
        milliseconds = self._multi.timeout()
        if milliseconds >= 0:
            pause = min(pause, milliseconds / 1000)
        for descriptor, events in self._epoll.poll(max(0.0, pause)):
            if descriptor == self._wakeup:
                os.eventfd_read(self._wakeup)
            elif descriptor in self._resting:
                self._unwatch(descriptor)  # closed from the other side; libcurl will find out
            else:
                self._multi.socket_action(descriptor, _curl_events(events))
        if self._multi.timeout() == 0:
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._finish_calls()

    def _return_what_is_over(self, now: float) -> None:
        """Give back paused, ended and lost batches at once, even while all places are taken."""
        for delivery in list(self._active):
            if delivery.is_over(now):
                delivery.return_rest()
            if not delivery.waiting:
                self._active.discard(delivery)
        if now >= self._next_look:
            self._next_look = now + IDLE_SECONDS
            for slot in self._slots.values():
                if slot.delivery is not None and not slot.is_asked and slot.delivery.is_over(now):
                    self._hold_back(slot, Skip.RETURNED)

    def _take_in(self) -> None:
        while self._freed:
            for mailing_id, calls in self._freed.popleft().items():
                self._free(mailing_id, calls)
        while self._incoming:
            delivery = self._incoming.popleft()
            if delivery.mailing_id not in self._deliveries:
                self._deliveries[delivery.mailing_id] = deque()
                self._ring.append(delivery.mailing_id)
            self._deliveries[delivery.mailing_id].append(delivery)
            self._active.add(delivery)
        if self._draining:
            self._return_everything()

    def _free(self, mailing_id: int, calls: int) -> None:
        self._busy -= calls
        self._busy_of[mailing_id] -= calls
        if not self._busy_of[mailing_id]:
            del self._busy_of[mailing_id]

    def _return_everything(self) -> None:
        for deliveries in self._deliveries.values():
            for delivery in deliveries:
                delivery.return_rest()
        self._deliveries.clear()
        self._ring.clear()

    def _start_calls(self, now: float) -> float:
        """Start what may start now; seconds until it is worth looking again."""
        share = max(1, int(self._limit.value * MAILING_SHARE))
        self._pace.demand = sum(delivery.waiting for queue in self._deliveries.values() for delivery in queue)
        room = STARTS_PER_ROUND
        skipped = 0
        while skipped < len(self._ring) and (free := int(self._limit.value) - self._busy) > 0:
            if not room:
                return 0.0
            mailing_id = self._ring[0]
            turn = min(TURN, room, free, share - self._busy_of[mailing_id])
            if turn <= 0:
                self._ring.rotate(-1)
                skipped += 1
                continue
            granted = self._pace.take(turn, now)
            if not granted:
                return min(self._pace.wait_seconds(now), IDLE_SECONDS)
            started = self._start_turn(mailing_id, granted, now)
            self._pace.give_back(granted - started, now)
            room -= started
            skipped = 0
        return IDLE_SECONDS

    def _start_turn(self, mailing_id: int, most: int, now: float) -> int:
        """Start the mailing's next calls and let the next mailing have its turn; their number."""
        deliveries = self._deliveries[mailing_id]
        started = 0
        while deliveries and started < most:
            delivery = deliveries[0]
            calls = delivery.next_calls(most - started, now)
            self._start(delivery, calls)
            started += len(calls)
            if not delivery.waiting:
                deliveries.popleft()
        self._ring.popleft()
        if deliveries:
            self._ring.append(mailing_id)
        else:
            del self._deliveries[mailing_id]
        return started

    def _start(self, delivery: Delivery, calls: list[Call]) -> None:
        for call in calls:
            slot = self._spare.pop() if self._spare else self._new_slot()
            slot.begin(call, delivery)
            handle = slot.handle
            message_id = call.recipient.message_id
            handle.setopt(pycurl.URL, f"{self._url}{message_id}")
            handle.setopt(pycurl.POSTFIELDS, orjson.dumps({"id": message_id, "phone": call.phone, "text": call.text}))
            self._multi.add_handle(handle)
        self._busy += len(calls)
        self._busy_of[delivery.mailing_id] += len(calls)

    def _new_slot(self) -> _Slot:
        handle = pycurl.Curl()
        handle.setopt(pycurl.POST, 1)
        handle.setopt(pycurl.HTTPHEADER, self._headers)
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.FOLLOWLOCATION, 0)
        handle.setopt(pycurl.TIMEOUT_MS, int(self._timeout_seconds * 1000))
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, int(min(CONNECT_TIMEOUT_SECONDS, self._timeout_seconds) * 1000))
        handle.setopt(pycurl.MAXFILESIZE, BODY_LIMIT_BYTES)
        handle.setopt(pycurl.UPLOAD_BUFFERSIZE, UPLOAD_BUFFER_BYTES)
        handle.setopt(pycurl.TCP_KEEPALIVE, 1)
        if not getproxies_environment():
            handle.setopt(pycurl.PROXY, "")  # Or else libcurl looks for one in the environment for every call.
        handle.setopt(pycurl.USERAGENT, "mailings")
        handle.setopt(pycurl.CAINFO, ssl.get_default_verify_paths().cafile or certifi.where())
        slot = _Slot(handle)
        self._slots[handle] = slot
        return slot

    def _finish_calls(self) -> None:
        finished = self._ended()
        if not finished:
            return
        now = time.monotonic()
        in_flight = len(self._slots) - len(self._spare)
        called: defaultdict[Delivery, list[Called]] = defaultdict(list)
        for slot, error in finished:
            if slot.skip is not None:
                self._hold_back(slot, slot.skip)
                continue
            answer = _read_answer(slot, error)
            call, delivery = self._clear(slot)
            called[delivery].append(Called(call.recipient, answer, judge(answer)))
        self._adapt([result for results in called.values() for result in results], in_flight, now)
        for delivery, results in called.items():
            delivery.put(results)
            self._watch(delivery.mailing_id, results, now)

    def _ended(self) -> list[tuple[_Slot, int | None]]:
        """What libcurl is done with, with its error if there was one."""
        ended: list[tuple[_Slot, int | None]] = []
        queued = 1
        while queued:
            queued, succeeded, failed = self._multi.info_read()
            ended += [(self._slots[handle], None) for handle in succeeded]
            ended += [(self._slots[handle], error) for handle, error, _ in failed]
        return ended

    def _hold_back(self, slot: _Slot, skip: Skip) -> None:
        """Have done with a call whose request did not leave."""
        call, delivery = self._clear(slot)
        self._free(delivery.mailing_id, 1)
        delivery.put([Skipped(call.recipient, skip)])

    def _clear(self, slot: _Slot) -> tuple[Call, Delivery]:
        call, delivery = slot.call, slot.delivery
        assert call is not None
        assert delivery is not None
        self._multi.remove_handle(slot.handle)
        slot.call = slot.delivery = None
        self._spare.append(slot)
        return call, delivery

    def _adapt(self, called: list[Called], in_flight: int, now: float) -> None:
        """Let the number of calls in flight follow these answers; `in_flight` were until they came."""
        if any(result.judgement.reason in _OVERLOAD_REASONS for result in called):
            self._limit.refused(now)
        times = [
            result.answer.milliseconds / 1000
            for result in called
            if result.judgement.verdict in _HEARD or result.answer.fault is Fault.TIMEOUT
        ]
        if times:
            self._limit.answered(times, in_flight, now)

    def _watch(self, mailing_id: int, called: list[Called], now: float) -> None:
        """Stop by itself when nothing works any more: the breaker needs a second, a thousand calls a blink."""
        verdicts = [result.judgement.verdict for result in called]
        if Verdict.BLOCKED in verdicts:
            self._trip()
            return
        failed = sum(verdict in _FAILED for verdict in verdicts)
        if mailing_id not in self._failing:
            self._failing = {m: heard for m, heard in self._failing.items() if heard[1] > now - TRIP_MEMORY_SECONDS}
        ratio, _ = self._failing.get(mailing_id, (0.0, now))
        ratio += (1 - (1 - TRIP_WEIGHT) ** len(verdicts)) * (failed / len(verdicts) - ratio)
        self._failing[mailing_id] = (ratio, now)
        if failed and all(
            share > TRIP_RATIO for share, heard in self._failing.values() if heard > now - TRIP_MEMORY_SECONDS
        ):
            self._trip()

    def _trip(self) -> None:
        self._limit.trip()
        self._return_everything()

    # libcurl's callbacks ------------------------------------------------------------------------------------------

    def _on_socket(self, what: int, descriptor: int, _multi: pycurl.CurlMulti, _data: object) -> None:
        if what == pycurl.POLL_REMOVE:
            self._let_rest(descriptor)
            return
        events = _EPOLL_EVENTS[what]
        if descriptor in self._resting or self._watched.get(descriptor, events) != events:
            self._resting.discard(descriptor)
            try:
                self._epoll.modify(descriptor, events)
            except FileNotFoundError:  # closed while it rested, and its number given to another
                self._epoll.register(descriptor, events)
        elif descriptor not in self._watched:
            self._epoll.register(descriptor, events)
        self._watched[descriptor] = events

    def _let_rest(self, descriptor: int) -> None:
        """Go on watching a connection that is kept: to watch it anew for every call takes a system call more."""
        if self._watched.get(descriptor) == select.EPOLLIN:
            self._resting.add(descriptor)
        else:
            self._unwatch(descriptor)

    def _unwatch(self, descriptor: int) -> None:
        self._resting.discard(descriptor)
        if self._watched.pop(descriptor, None) is not None:
            with contextlib.suppress(OSError):  # libcurl may have closed it already
                self._epoll.unregister(descriptor)


def _curl_events(events: int) -> int:
    action = 0
    if events & (select.EPOLLIN | select.EPOLLHUP):
        action |= pycurl.CSELECT_IN
    if events & select.EPOLLOUT:
        action |= pycurl.CSELECT_OUT
    if events & select.EPOLLERR:
        action |= pycurl.CSELECT_ERR
    return action


def _read_answer(slot: _Slot, error: int | None) -> Answer:
    handle = slot.handle
    milliseconds = int(handle.getinfo(pycurl.TOTAL_TIME) * 1000)
    status = handle.getinfo(pycurl.RESPONSE_CODE) or None
    if error is not None:
        return Answer(milliseconds, _fault(handle, error), status)
    retry_after = None
    if status in (429, 503):
        retry_after = float(handle.getinfo(pycurl.RETRY_AFTER)) or None  # libcurl reads both forms of the header
    return Answer(milliseconds, None, status, slot.body.getvalue(), retry_after)


def _fault(handle: pycurl.Curl, error: int) -> Fault:
    if error != pycurl.E_OPERATION_TIMEDOUT:
        return _FAULTS.get(error, Fault.OTHER)
    # Counted in bytes, not by libcurl's times: those are filled in for phases that were never reached, too.
    if not handle.getinfo(pycurl.REQUEST_SIZE):
        return Fault.CONNECT_TIMEOUT
    return Fault.BODY_TIMEOUT if handle.getinfo(pycurl.HEADER_SIZE) else Fault.TIMEOUT
