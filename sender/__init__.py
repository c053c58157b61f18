"""Delivery: the dispatcher decides what is due, the workers call the gateway."""

import os

# Read by Dramatiq when it is imported: how soon a consumer comes back after the broker was away.
os.environ.setdefault("dramatiq_restart_delay", "1000")
