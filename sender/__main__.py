"""`python -m sender ROLE`."""

from __future__ import annotations

import argparse

from common import logs
from common.settings import Settings, SettingsError, exit_with, settings
from sender import dispatcher, supervisor, worker

ROLES = {
    "dispatcher": "decide what is due: start mailings, release batches, sweep",
    "worker": "run the sending processes (SENDER_PROCESSES) and an importing one, restarting those that die",
    "batches": "run one sending process",
    "imports": "run one importing process",
}


def main() -> None:
    """Run one role until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m sender",
        description="Deliver the messages. Configured by environment variables, see .env.example.",
        epilog="roles:\n" + "\n".join(f"  {role:<11} {text}" for role, text in ROLES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("role", choices=ROLES, metavar="role", help=" | ".join(ROLES))
    role = parser.parse_args().role
    try:
        given = settings().require("database_url", "amqp_url")
        if role in ("worker", "batches"):
            given.require("gateway_url")
    except SettingsError as error:
        exit_with(error)
    logs.configure(given.log_level, given.log_format, role)
    _run(role, given)


def _run(role: str, given: Settings) -> None:
    match role:
        case "dispatcher":
            dispatcher.run(given)
        case "worker":
            supervisor.run(given.sender_processes)
        case "batches":
            worker.end_with_parent()
            worker.run_batches(given)
        case "imports":
            worker.end_with_parent()
            worker.run_imports(given)


if __name__ == "__main__":
    main()
