"""The Dramatiq broker, with the library's faults that concern us closed.

Dramatiq runs without its Retries middleware: a retry that it cannot publish would be lost, its message acknowledged,
and a delayed one sits unacknowledged in memory. What is to be tried again, and when, is in PostgreSQL.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer

BATCHES_QUEUE = "batches"
IMPORTS_QUEUE = "imports"

# pika waits without end on a broker in memory alarm, or one that accepts and says nothing, unless told otherwise.
_PATIENCE = {
    "heartbeat": "30",
    "blocked_connection_timeout": "5",
    "socket_timeout": "5",
    "stack_timeout": "8",
    "connection_attempts": "1",
}


class SafeConsumer(_RabbitmqConsumer):
    """Acknowledges a message only on the channel that delivered it.

    Delivery tags start at 1 on every channel. A job that outlives a lost connection would acknowledge, on the new one,
    whichever message bears its old tag: that message would be lost. Unacknowledged ones are delivered again anyway.
    """

    def __next__(self) -> Any:
        message = super().__next__()  # type: ignore[no-untyped-call]
        if message is not None:
            message.delivered_by = self
        return message

    def ack(self, message: Any) -> None:
        """Acknowledge, unless the message came over an older channel."""
        if message.delivered_by is self:
            super().ack(message)  # type: ignore[no-untyped-call]

    def nack(self, message: Any) -> None:
        """Reject, unless the message came over an older channel."""
        if message.delivered_by is self:
            super().nack(message)  # type: ignore[no-untyped-call]


class SafeRabbitmqBroker(RabbitmqBroker):
    """RabbitMQ with publisher confirms, bounded waiting and `SafeConsumer`."""

    def __init__(self, url: str) -> None:
        super().__init__(url=with_patience(url), confirm_delivery=True, middleware=[])

    @property
    def consumer_class(self) -> type[SafeConsumer]:
        """What `consume` makes."""
        return SafeConsumer


def with_patience(url: str) -> str:
    """The AMQP address with time limits for everything that could hang; those it already names are kept."""
    parts = urlsplit(url)
    query = urlencode(_PATIENCE | dict(parse_qsl(parts.query)))
    # pika takes an empty path for the vhost "" rather than for the default one.
    return urlunsplit((parts.scheme, parts.netloc, parts.path or "/%2F", query, ""))


def connect(url: str) -> SafeRabbitmqBroker:
    """Make the process's broker the one that actors are declared on. Opens no connection yet."""
    broker = SafeRabbitmqBroker(url)
    dramatiq.set_broker(broker)
    for queue in (BATCHES_QUEUE, IMPORTS_QUEUE):
        broker.declare_queue(queue)
    return broker


def publish(broker: dramatiq.Broker, queue: str, actor: str, *args: int) -> None:
    """Publish a message for an actor by its name; the publisher needs none of the actor's code.

    Raises whatever pika, the socket or the name look-up raise: after any of them the message may have arrived or not.
    """
    broker.enqueue(dramatiq.Message(queue_name=queue, actor_name=actor, args=args, kwargs={}, options={}))
