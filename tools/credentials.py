"""Make up the secrets that nobody set, once, and keep each in a file of its own.

Run as `python -m tools.credentials DIRECTORY` it is the one-shot service of the same name in docker-compose.yml.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

NAMES = ("SECRET_KEY", "API_KEY", "ADMIN_PASSWORD", "GATEWAY_TOKEN")
# What people need to get in, and how it is shown to them.
SHOWN = {"API_KEY": "API key:", "ADMIN_PASSWORD": "Admin login: {}"}
SERVER_PASSWORDS = ("POSTGRES_PASSWORD", "RABBITMQ_PASSWORD")
# The containers run under several users, and the volume is mounted into none but them.
SHARED_MODE = 0o444
PRIVATE_MODE = 0o600


def path_of(directory: Path, name: str) -> Path:
    """The file that holds a secret; services get it as NAME_FILE."""
    return directory / name.lower()


def ensure(directory: Path, name: str, given: Mapping[str, str], *, mode: int = PRIVATE_MODE) -> str:
    """Return what was given for this name, else what is kept, else a new secret; keep it for the next time."""
    path = path_of(directory, name)
    kept = path.read_text() if path.exists() else ""
    value = given.get(name) or kept or secrets.token_hex(24)
    if value != kept:
        keep(path, value, mode)
    return value


def keep(path: Path, value: str, mode: int) -> None:
    """Write a file in one step: a reader finds the old or the new value, and never a wider mode."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(value)
    unfinished.rename(path)


def main() -> int:
    """Fill the directory, print what was made up and people need; return 2 when a required variable was not given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--production", action="store_true", help="there is no simulator: insist on GATEWAY_URL")
    options = parser.parse_args()
    given = {name: value for name, value in os.environ.items() if value}
    # A real gateway would refuse a token that was made up here.
    required = ["GATEWAY_URL", "GATEWAY_TOKEN"] if options.production or "GATEWAY_URL" in given else []
    missing = [name for name in required if name not in given]
    if missing:
        print(f"configuration error: {' and '.join(missing)} must be set; see .env.example", file=sys.stderr)
        return 2
    made_up = [name for name in SHOWN if name not in given and not path_of(options.directory, name).exists()]
    fill(options.directory, given)
    for name in made_up:
        whose = SHOWN[name].format(given.get("ADMIN_EMAIL", "admin@example.com"))
        print(f"{whose} {path_of(options.directory, name).read_text()}  (shown once)")
    return 0


def fill(directory: Path, given: Mapping[str, str]) -> None:
    """Write every secret and, from the passwords, the addresses of the two servers."""
    for name in NAMES:
        ensure(directory, name, given, mode=SHARED_MODE)
    # The servers keep the password of their first start, so a later change in the environment must not count.
    database, broker = (ensure(directory, name, {}, mode=SHARED_MODE) for name in SERVER_PASSWORDS)
    addresses = {
        "DATABASE_URL": f"postgresql+psycopg2://mailings:{database}@postgres:5432/mailings",
        "AMQP_URL": f"amqp://mailings:{broker}@rabbitmq:5672/%2F",
    }
    for name, address in addresses.items():
        keep(path_of(directory, name), given.get(name) or address, SHARED_MODE)


if __name__ == "__main__":
    sys.exit(main())
