"""A reference: one Dramatiq message per recipient, sent with `requests` over a connection kept by each thread.

Without an ORM: each job reads its message, posts it, writes what came of it, and commits.

`python -m bench.reference_per_message MESSAGES` makes the table and queues the jobs; Dramatiq's command line then runs
this module. Configured by DATABASE_URL, AMQP_URL and GATEWAY_URL.
"""

from __future__ import annotations

import os
import sys
import threading

import dramatiq
import psycopg2
import requests
from dramatiq.brokers.rabbitmq import RabbitmqBroker

QUEUE = "reference_per_message"

broker = RabbitmqBroker(url=os.environ["AMQP_URL"])
dramatiq.set_broker(broker)


class Tools(threading.local):
    """What each thread keeps open, made when it first asks."""

    def __init__(self) -> None:
        self.database = psycopg2.connect(os.environ["DATABASE_URL"].replace("+psycopg2", ""))
        self.http = requests.Session()
        self.http.headers["Authorization"] = "Bearer bench"


tools = Tools()


@dramatiq.actor(queue_name=QUEUE, max_retries=0)
def send_message(message_id: int) -> None:
    """Send one message."""
    with tools.database, tools.database.cursor() as cursor:
        cursor.execute("SELECT phone, text FROM reference_message WHERE id = %s", (message_id,))
        ((phone, text),) = cursor.fetchall()
        response = tools.http.post(
            f"{os.environ['GATEWAY_URL']}/send/{message_id}",
            json={"id": message_id, "phone": phone, "text": text},
            timeout=10,
        )
        status = "sent" if response.status_code == 200 and response.json()["code"] == 0 else "failed"
        cursor.execute("UPDATE reference_message SET status = %s, saved_at = now() WHERE id = %s", (status, message_id))


def prepare(messages: int) -> None:
    """Make the table and its messages, and queue a job for each."""
    with psycopg2.connect(os.environ["DATABASE_URL"].replace("+psycopg2", "")) as database, database.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE reference_message (id bigint PRIMARY KEY, phone bigint NOT NULL, text text NOT NULL,"
            " status text NOT NULL DEFAULT 'created', saved_at timestamptz)"
        )
        cursor.execute(
            "INSERT INTO reference_message (id, phone, text)"
            " SELECT n, 79000000000 + n, 'Hello, this is a message of usual length.' FROM generate_series(1, %s) AS n",
            (messages,),
        )
    for message_id in range(1, messages + 1):
        send_message.send(message_id)


if __name__ == "__main__":
    prepare(int(sys.argv[1]))
