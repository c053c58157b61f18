"""The known faults of the task library, each with a test that fails without our remedy.

The double SIGTERM, the third of them, is in `test_processes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest

from sender.broker import SafeConsumer, SafeRabbitmqBroker, connect, publish
from sender.limit import FIRST
from tests.conftest import SystemMaker
from tests.system import Servers

QUEUE = "library-faults"


@pytest.fixture
def broker(servers: Servers) -> Iterator[SafeRabbitmqBroker]:
    """A broker as the senders make it, with an empty queue."""
    before = dramatiq.broker.global_broker
    made = connect(servers.rabbitmq.url)
    made.declare_queue(QUEUE, ensure=True)
    made.flush(QUEUE)
    yield made
    made.close()
    dramatiq.broker.global_broker = before


def test_an_acknowledgement_never_hits_another_message_on_a_new_channel(broker: SafeRabbitmqBroker) -> None:
    publish(broker, QUEUE, "actor", 1)
    old = consumer(broker)
    at_work = receive(old)
    old.connection.close()
    # The first message, delivered again, is in the hands of another process.
    other = consumer(broker)
    assert receive(other).args == (1,)
    publish(broker, QUEUE, "actor", 2)
    new = consumer(broker)
    second = receive(new)
    assert second.args == (2,)
    assert second._tag == at_work._tag  # Tags start anew on every channel: that is the trap.

    # The job that outlived its connection ends; Dramatiq acknowledges on the consumer of the day.
    new.ack(at_work)
    new.connection.sleep(0.5)  # For the acknowledgement to leave, if there is one.
    new.connection.close()  # A crash, before the second message was worked on.

    last = consumer(broker)
    assert receive(last).args == (2,)
    for still_open in (last, other):
        still_open.connection.close()


def test_no_middleware_publishes_retries(broker: SafeRabbitmqBroker) -> None:
    # One that cannot publish would lose the message: Dramatiq acknowledges it all the same.
    assert broker.middleware == []
    assert broker.confirm_delivery


@pytest.mark.faults
def test_a_retry_is_not_lost_while_nothing_can_be_published(make_system: SystemMaker) -> None:
    slow_failure = {"kind": "status", "status": 500, "times": 1, "share": 0.4, "share_of": "ids"}
    audience = int(FIRST)  # So many are called at once; their retries are then the only further calls.
    with make_system(faults=[{"kind": "latency", "milliseconds": 4000}, slow_failure]) as system:
        mailing = system.start_mailing(audience)
        system.simulator.wait_for(lambda seen: seen["requests"] >= audience)
        system.servers.rabbitmq.control("set_vm_memory_high_watermark", "0.0001")
        try:
            # The answers come while RabbitMQ takes nothing, but for the first that the dispatcher publishes.
            system.wait(lambda: system.scalar("SELECT count(*) FROM attempt WHERE outcome = 'retry'") > 10, 60)
            system.wait(lambda: system.logged("broker_away") > 0, 60)
            retries = system.scalar("SELECT count(*) FROM attempt WHERE outcome = 'retry'")
            assert audience <= system.simulator.received()["requests"] < audience + retries
        finally:
            system.servers.rabbitmq.control("set_vm_memory_high_watermark", "0.4")
        system.check(mailing, "retries while RabbitMQ takes nothing")


def consumer(broker: SafeRabbitmqBroker) -> SafeConsumer:
    """A consumer as Dramatiq's worker makes it."""
    made = broker.consume(QUEUE, prefetch=1, timeout=5000)
    assert isinstance(made, SafeConsumer)
    return made


def receive(consumer: SafeConsumer) -> Any:
    """The next message."""
    message = next(consumer)
    assert message is not None
    return message
