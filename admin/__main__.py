"""`python -m admin`: serve the admin UI."""

from __future__ import annotations

import argparse

from admin.server import serve
from common import logs
from common.settings import SettingsError, exit_with, settings


def main() -> None:
    """Serve, or end with one clear line about what is wrong in the environment."""
    argparse.ArgumentParser(
        prog="python -m admin",
        description="Serve the admin UI until SIGTERM. Configured by environment variables, see .env.example.",
    ).parse_args()
    try:
        given = settings().require("database_url", "secret_key")
    except SettingsError as error:
        exit_with(error)
    logs.configure(given.log_level, given.log_format, "admin")
    serve(given)


if __name__ == "__main__":
    main()
