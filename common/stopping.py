"""How every process of ours hears that it should end."""

from __future__ import annotations

import queue
import signal
import threading


def stop_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set; a second signal changes nothing, the orderly end goes on."""
    stopping = threading.Event()
    # A handler runs in the middle of whatever the main thread does, of waiting for the event, too: if it set the event
    # itself, it could wait for ever for the lock that this same thread holds. A SimpleQueue is made for handlers.
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: heard.put(number))

    def pass_on() -> None:
        heard.get()
        stopping.set()

    threading.Thread(target=pass_on, name="stop", daemon=True).start()
    return stopping
