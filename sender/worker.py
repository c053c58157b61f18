"""One sending process, or one importing process: Dramatiq's worker with what surrounds it, and an orderly end."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import threading
import time
import uuid

import dramatiq
import structlog
from dramatiq import Worker

from common.settings import Settings
from common.stopping import stop_signal
from db.engine import make_engine
from sender import imports
from sender.actors import BatchSender
from sender.broker import BATCHES_QUEUE, IMPORTS_QUEUE, connect
from sender.clock import DatabaseClock
from sender.gateway import GatewayClient
from sender.keeper import Keeper
from sender.pacer import Pacer
from sender.recorder import Recorder

log = structlog.get_logger(__name__)

# Batches in hand at once, by thread: each waits for the gateway most of the time.
BATCH_THREADS = 6
DATABASE_CONNECTIONS = 4
# A process that is frozen inside a transaction must not hold up the others for longer. Nobody here ever waits for
# anything but PostgreSQL inside one.
IDLE_TRANSACTION_SECONDS = 3.0
# Compose and the native runner wait a little longer than this before they kill.
DRAIN_SECONDS = 25.0
WORKER_TIMEOUT_MILLISECONDS = 100
PR_SET_PDEATHSIG = 1
M_ARENA_MAX = -8  # of mallopt(3)
GC_ALLOCATIONS = 50_000  # more of them than freed: time to look for cycles


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the supervisor dies, even by kill -9: no orphan keeps on sending."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(0)


def process_name(kind: str) -> str:
    """A name of this process that no other has, and that tells a person where it runs."""
    return f"{kind}@{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


def run_batches(settings: Settings) -> None:
    """Send batches until told to stop; then finish what is on the wire and return the rest."""
    stopping = stop_signal()
    _allow_many_connections()
    _share_one_heap()
    assert settings.database_url
    assert settings.amqp_url
    assert settings.gateway_url
    name = process_name("sender")
    engine = make_engine(
        settings.database_url,
        "mailings sender",
        DATABASE_CONNECTIONS + 2,
        statement_timeout_seconds=15,
        idle_transaction_seconds=IDLE_TRANSACTION_SECONDS,
        pre_ping=False,
    )
    clock = DatabaseClock()
    pacer = Pacer(engine)
    client = GatewayClient(
        settings.gateway_url, settings.gateway_token, settings.gateway_timeout, settings.gateway_concurrency, pacer
    )
    pacer.wake = client.wake
    keeper = Keeper(engine, name, BATCH_THREADS, clock, pacer, settings.gateway_rate_limit or None, client.wake)
    broker = connect(settings.amqp_url)
    recorder = Recorder(engine, clock)
    sender = BatchSender(engine, name, client, recorder, keeper, clock, settings.gateway_max_attempts)
    sender.declare()
    keeper.start()
    while not keeper.ready.wait(timeout=0.2):  # The clock and the pace are known before the first call.
        if stopping.is_set():
            keeper.stop()
            _leave()
    pacer.start()
    recorder.start()
    client.start()
    _spare_the_collector()
    worker = _start_worker(broker, BATCHES_QUEUE, BATCH_THREADS)
    log.info("sender_started", process=name)
    stopping.wait()
    log.info("sender_stopping", process=name)
    keeper.retire()
    client.drain()
    deadline = time.monotonic() + DRAIN_SECONDS
    # A database that is away when the time is up: leave it to the leases.
    for waiting in (sender, recorder):
        threading.Timer(DRAIN_SECONDS * 0.8, waiting.give_up).start()
    worker.stop(timeout=int((deadline - time.monotonic()) * 1000))
    keeper.wait_for_all(deadline - time.monotonic())
    pacer.stop()
    recorder.stop()
    keeper.stop()
    client.close()
    log.info("sender_stopped", process=name)
    _leave()


def run_imports(settings: Settings) -> None:
    """Import files until told to stop; then finish the group of rows at hand."""
    stopping = stop_signal()
    assert settings.database_url
    assert settings.amqp_url
    name = process_name("importer")
    engine = make_engine(settings.database_url, "mailings importer", 2, statement_timeout_seconds=60)
    broker = connect(settings.amqp_url)
    imports.declare_actor(broker, engine, name, stopping)
    worker = _start_worker(broker, IMPORTS_QUEUE, threads=1)
    log.info("importer_started", process=name)
    stopping.wait()
    worker.stop(timeout=int(DRAIN_SECONDS * 1000))
    log.info("importer_stopped", process=name)
    _leave()


def _start_worker(broker: dramatiq.Broker, queue: str, threads: int) -> Worker:
    worker = Worker(broker, queues={queue}, worker_threads=threads, worker_timeout=WORKER_TIMEOUT_MILLISECONDS)
    # Take from the queue what can be worked on at once: what is hoarded here, an idle replica could be sending.
    worker.queue_prefetch = threads
    worker.start()
    return worker


def _spare_the_collector() -> None:
    """Have the garbage collector look seldom, and not at what lives as long as the process.

    Thousands of calls in flight would set it off hundreds of times a second, to find nothing: a tenth of the sender's
    time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 10, 10)


def _allow_many_connections() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _share_one_heap() -> None:
    """Have all threads allocate from one heap.

    By itself glibc gives each its own, and what one thread frees is of no use to another: a tenth of the memory that
    1,600 TLS connections take.
    """
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _leave() -> None:
    """End now: threads that still wait for a broker or a database that is away must not hold the process."""
    os._exit(0)
