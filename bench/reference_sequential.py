"""A reference: the service that this project is modelled on, rebuilt in little. One task sends one mailing.

For each client in turn it adds the message, opens a new connection to the gateway, posts, saves what came of it, and
saves once more: three statements, each with a commit of its own, through an ORM, with a line of output. Django and
Celery are played by SQLAlchemy and Dramatiq; the Django original was as fast, see docs/performance.md.

`python -m bench.reference_sequential MAILINGS CLIENTS` makes tables and queues the tasks; Dramatiq's command line then
runs this module. Configured by DATABASE_URL, AMQP_URL and GATEWAY_URL.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime

import dramatiq
import requests
import sqlalchemy as sa
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

QUEUE = "reference_sequential"
TEXT = "Hello, this is a message of usual length."

broker = RabbitmqBroker(url=os.environ["AMQP_URL"])
dramatiq.set_broker(broker)
engine = sa.create_engine(os.environ["DATABASE_URL"])


class Base(DeclarativeBase):
    """Tables of this service only."""


class Client(Base):
    """Somebody to write to."""

    __tablename__ = "reference_client"
    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str]
    operator_code: Mapped[str]
    tag: Mapped[str]


class Message(Base):
    """One message, with the indexes that Django gives foreign keys."""

    __tablename__ = "reference_message"
    id: Mapped[int] = mapped_column(primary_key=True)
    mailing_id: Mapped[int] = mapped_column(index=True)
    client_id: Mapped[int] = mapped_column(sa.ForeignKey("reference_client.id"), index=True)
    status: Mapped[str]
    saved_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))


@dramatiq.actor(queue_name=QUEUE, max_retries=0, time_limit=3_600_000)
def send_mailing(mailing_id: int) -> None:
    """Write to everybody, one after the other."""
    with Session(engine, expire_on_commit=False) as session:
        for client in session.scalars(sa.select(Client)).all():
            message = Message(mailing_id=mailing_id, client_id=client.id, status="created", saved_at=datetime.now(UTC))
            session.add(message)
            session.commit()
            response = requests.post(
                f"{os.environ['GATEWAY_URL']}/send/{message.id}",
                json={"id": message.id, "phone": int(client.phone), "text": TEXT},
                headers={"Authorization": "Bearer bench"},
                timeout=10,
            )
            message.status = "sent" if response.status_code == 200 and response.json()["code"] == 0 else "failed"
            session.commit()
            message.saved_at = datetime.now(UTC)
            session.commit()
            print(f"message {message.id} to client {client.id}: {message.status}")


def prepare(mailings: int, clients: int) -> None:
    """Make the tables and the clients, and queue a task for each mailing."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.execute(
            sa.insert(Client),
            [{"phone": f"79{n:09}", "operator_code": "916", "tag": "all"} for n in range(1, clients + 1)],
        )
    for mailing_id in range(1, mailings + 1):
        send_mailing.send(mailing_id)


if __name__ == "__main__":
    prepare(int(sys.argv[1]), int(sys.argv[2]))
