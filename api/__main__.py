"""`python -m api`: serve the REST API."""

from __future__ import annotations

import argparse

from api.server import serve
from common import logs
from common.settings import SettingsError, exit_with, settings


def main() -> None:
    """Serve, or end with one clear line about what is wrong in the environment."""
    argparse.ArgumentParser(
        prog="python -m api",
        description="Serve the REST API until SIGTERM. Configured by environment variables, see .env.example.",
    ).parse_args()
    try:
        given = settings().require("database_url")
    except SettingsError as error:
        exit_with(error)
    logs.configure(given.log_level, given.log_format, "api")
    serve(given)


if __name__ == "__main__":
    main()
