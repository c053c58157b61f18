"""`python -m sender` on quorum queues: `python -m bench.quorum ROLE`. Dramatiq has no setting for them."""

from __future__ import annotations

from typing import Any

from sender import broker
from sender.__main__ import main
from sender.broker import SafeRabbitmqBroker


class QuorumBroker(SafeRabbitmqBroker):
    """Declares its queues as quorum queues, which RabbitMQ replicates and writes to disk before it confirms."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        # Dramatiq has no types here.
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)  # type: ignore[no-untyped-call]
        return {**arguments, "x-queue-type": "quorum"}


if __name__ == "__main__":
    broker.SafeRabbitmqBroker = QuorumBroker  # type: ignore[misc]  # mypy wants classes to stay what they are.
    main()
