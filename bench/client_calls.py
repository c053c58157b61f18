"""One HTTP client calls one gateway: `python -m bench.client_calls CLIENT URL CALLS IN_FLIGHT`.

In a process of its own, so that its processor time is the client's. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import ssl
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO

import orjson

TEXT = "Hello, this is a message of usual length."
PHONE = 79161234567
HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "Authorization": "Bearer bench"}
TIMEOUT_SECONDS = 30


class CallError(Exception):
    """The gateway answered something other than it should."""


def body_of(message_id: int) -> bytes:
    """What is posted for a message."""
    return orjson.dumps({"id": message_id, "phone": PHONE, "text": TEXT})


def check(status: int, body: bytes) -> None:
    """Read the answer as a sender has to."""
    if status != 200 or orjson.loads(body)["code"] != 0:
        raise CallError(f"{status} {body[:100]!r}")


def call_with_ours(url: str, calls: int, in_flight: int) -> None:
    """The sender's client as it is, with everything it does for a call: terms, judging, places in flight."""
    from sqlalchemy import create_engine

    from db.queries.batches import Recipient, Standing, TakenBatch
    from sender.answers import Verdict
    from sender.clock import DatabaseClock
    from sender.delivery import Call, Called, Delivery, Result
    from sender.gateway import GatewayClient
    from sender.outcomes import Terms
    from sender.pacer import Pacer
    from sender.recorder import GROUP_SECONDS
    from sender.worker import BATCH_THREADS

    class Sink:
        """Counts as the recorder does, and frees the places as often as it does."""

        def __init__(self) -> None:
            self.good = 0
            self._seen = 0
            self._freed = 0

        def put(self, delivery: Delivery, results: Sequence[Result]) -> None:
            delivery.note_recorded(len(results))
            self._seen += len(results)
            self.good += sum(
                isinstance(result, Called) and result.judgement.verdict is Verdict.ACCEPTED for result in results
            )

        def free_places(self) -> None:
            """Until all calls have ended."""
            deadline = time.monotonic() + 300
            while self._freed < calls and time.monotonic() < deadline:
                time.sleep(GROUP_SECONDS)
                unfreed = self._seen - self._freed
                client.recorded(Counter({1: unfreed}))
                self._freed += unfreed

    # A pacer that was told no rate sets no limit, and needs no database.
    client = GatewayClient(url, "bench", TIMEOUT_SECONDS, in_flight, Pacer(create_engine("postgresql+psycopg2://")))
    sink = Sink()
    ends_at = datetime.now(UTC) + timedelta(hours=1)
    client.start()
    freeing = threading.Thread(target=sink.free_places)
    freeing.start()
    at_hand: deque[Delivery] = deque()
    for first in range(1, calls + 1, 500):
        if len(at_hand) == BATCH_THREADS:
            at_hand.popleft().begun.wait()
        recipients = [
            Recipient(message_id, message_id, 0, f"+{PHONE}", "Europe/Moscow", {}, opted_out=False)
            for message_id in range(first, min(first + 500, calls + 1))
        ]
        batch = TakenBatch(first, 1, TEXT, Standing(True, ends_at, None), False, recipients)
        todo = [Call(recipient, PHONE, TEXT) for recipient in recipients]
        at_hand.append(Delivery(batch, Terms(ends_at, None, False, 20), todo, DatabaseClock(), 3600.0, sink))
        client.submit(at_hand[-1])
    freeing.join()
    client.close()
    if sink.good != calls:
        raise CallError(f"{sink.good} of {calls} were accepted")


def call_with_pycurl(url: str, calls: int, in_flight: int) -> None:
    """libcurl's simple loop, perform and select, and nothing else."""
    import certifi
    import pycurl

    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_MAXCONNECTS, in_flight)
    buffers: dict[pycurl.Curl, BytesIO] = {}
    for _ in range(in_flight):
        handle = pycurl.Curl()
        buffers[handle] = BytesIO()
        handle.setopt(pycurl.POST, 1)
        handle.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in HEADERS.items()] + ["Expect:"])
        handle.setopt(pycurl.WRITEFUNCTION, buffers[handle].write)
        handle.setopt(pycurl.CAINFO, ssl.get_default_verify_paths().cafile or certifi.where())
    spare, started, finished = list(buffers), 0, 0
    while finished < calls:
        while spare and started < calls:
            handle, started = spare.pop(), started + 1
            buffers[handle].seek(0)
            buffers[handle].truncate()
            handle.setopt(pycurl.URL, f"{url}/send/{started}")
            handle.setopt(pycurl.POSTFIELDS, body_of(started))
            multi.add_handle(handle)
        multi.perform()
        _, succeeded, failed = multi.info_read(in_flight)
        for handle in succeeded:
            check(handle.getinfo(pycurl.RESPONSE_CODE), buffers[handle].getvalue())
            multi.remove_handle(handle)
            spare.append(handle)
        finished += len(succeeded)
        if failed:
            raise CallError(str(failed[0]))
        if not spare:
            multi.select(1.0)


def call_with_urllib3(url: str, calls: int, in_flight: int) -> None:
    """A thread for each call in flight, one pool of connections."""
    import urllib3

    tls = {"ca_certs": _certificates()} if url.startswith("https") else {}
    pool = urllib3.connection_from_url(
        url, maxsize=in_flight, block=True, timeout=TIMEOUT_SECONDS, retries=False, **tls
    )
    path = urllib3.util.parse_url(url).path
    ids = iter(range(1, calls + 1))

    def work() -> None:
        for message_id in ids:
            response = pool.urlopen("POST", f"{path}/send/{message_id}", body=body_of(message_id), headers=HEADERS)
            check(response.status, response.data)

    threads = [threading.Thread(target=work) for _ in range(in_flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def call_with_aiohttp(url: str, calls: int, in_flight: int) -> None:
    """Coroutines on uvloop, with the settings that were fastest."""
    import aiohttp
    import uvloop

    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=_context() if url.startswith("https") else True)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=HEADERS,
            timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS),
        ) as session:

            async def post(message_id: int) -> None:
                async with session.post(f"{url}/send/{message_id}", data=body_of(message_id)) as response:
                    check(response.status, await response.read())

            await _call_from_coroutines(post, calls, in_flight)

    uvloop.run(main())


def call_with_httpx(url: str, calls: int, in_flight: int) -> None:
    """Coroutines on uvloop, with HTTP/2 where the gateway speaks it."""
    import httpx
    import uvloop

    async def main() -> None:
        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        verify = _context() if url.startswith("https") else True
        async with httpx.AsyncClient(
            http2=True, limits=limits, headers=HEADERS, timeout=TIMEOUT_SECONDS, verify=verify
        ) as client:

            async def post(message_id: int) -> None:
                response = await client.post(f"{url}/send/{message_id}", content=body_of(message_id))
                check(response.status_code, response.content)

            await _call_from_coroutines(post, calls, in_flight)

    uvloop.run(main())


async def _call_from_coroutines(post: Callable[[int], Awaitable[None]], calls: int, in_flight: int) -> None:
    ids = iter(range(1, calls + 1))

    async def work() -> None:
        for message_id in ids:
            await post(message_id)

    await asyncio.gather(*(work() for _ in range(in_flight)))


def _certificates() -> str | None:
    return os.environ.get("SSL_CERT_FILE")


def _context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=_certificates())


CLIENTS: dict[str, Callable[[str, int, int], None]] = {
    "ours": call_with_ours,
    "pycurl": call_with_pycurl,
    "aiohttp": call_with_aiohttp,
    "urllib3": call_with_urllib3,
    "httpx": call_with_httpx,
}


# Imported before the clock starts.
MODULES: dict[str, tuple[str, ...]] = {
    "ours": ("certifi", "db.queries.batches", "sender.gateway", "sender.pacer"),
    "pycurl": ("certifi", "pycurl"),
    "aiohttp": ("aiohttp", "uvloop"),
    "urllib3": ("urllib3",),
    "httpx": ("httpx", "h2.connection", "uvloop"),
}


def main() -> None:
    """Make the calls and tell what they took, connecting included."""
    name, url, calls, in_flight = sys.argv[1:]
    for module in MODULES[name]:
        importlib.import_module(module)
    began, spent = time.perf_counter(), time.process_time()
    CLIENTS[name](url, int(calls), int(in_flight))
    print(json.dumps({"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}))


if __name__ == "__main__":
    main()
