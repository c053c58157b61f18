"""What the native runner keeps under `.local/`: files, ports, who runs, and how to reach it."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from dotenv import dotenv_values

from tools.processes import Running, free_port, marked

ROOT = Path(__file__).resolve().parent.parent
# Every process we start carries this variable with our directory: that is how orphans are told from strangers.
MARK = "MAILINGS_INSTANCE"
FILE_SUFFIX = "_FILE"


@dataclasses.dataclass(frozen=True)
class Local:
    """The directory of one native instance."""

    path: Path
    env_file: Path

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.path / "logs"

    @property
    def secrets(self) -> Path:
        """One file per secret."""
        return self.path / "secrets"

    @property
    def lock(self) -> Path:
        """Held by the supervisor while it lives; its content is the supervisor's pid."""
        return self.path / "supervisor.lock"

    @property
    def state(self) -> Path:
        """What the supervisor says about itself."""
        return self.path / "supervisor.json"

    @property
    def access(self) -> Path:
        """Addresses and API key of the running system, for `make demo`; Compose writes the same file."""
        return self.path / "access.json"

    @property
    def environment(self) -> Path:
        """The settings of the running services, secrets included, for `make report` and others."""
        return self.path / "environment.json"

    @property
    def mail(self) -> Path:
        """What the mail catcher has caught."""
        return self.path / "mail"

    def create(self) -> None:
        """Make the directories; only their owner may look inside the ones that hold secrets."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        self.secrets.mkdir(mode=0o700, exist_ok=True)

    def members(self) -> list[Running]:
        """Every process of this instance that still runs, whoever its parent is by now."""
        return marked(MARK, str(self.path))

    def remembered_port(self, name: str) -> int:
        """The port this server had last time, a new one when it had none or lost it."""
        path = self.path / "ports.json"
        ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        port = free_port(ports.get(name))
        if port != ports.get(name):
            write_json(path, ports | {name: port})
        return port

    def remove(self) -> None:
        """Delete the data, also those kept elsewhere because a server's account cannot enter this directory."""
        if not self.path.exists():
            return
        for entry in self.path.iterdir():
            if entry.is_symlink():
                shutil.rmtree(entry.resolve(), ignore_errors=True)
        shutil.rmtree(self.path)


class Lock:
    """The supervisor's lock. The kernel releases it however its holder ends."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self) -> bool:
        """Return True if the lock is ours now; nobody supervises then."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._file.truncate(0)
        return True

    def is_held(self) -> bool:
        """Return True if somebody supervises. Asking disturbs nobody who asks at the same time."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    def sign(self) -> None:
        """Write our pid for those who want to stop us."""
        self._file.write(str(os.getpid()))
        self._file.flush()

    def holder(self) -> int | None:
        """The pid that the holder wrote, None when it has not written one yet."""
        self._file.seek(0)
        return int(self._file.read() or 0) or None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file in one step; only its owner can read it."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.rename(path)


def read_json(path: Path) -> dict[str, Any]:
    """The content of the file; empty when there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return content


def configuration(environ: Mapping[str, str], env_file: Path) -> dict[str, str]:
    """The environment of all services: `.env` below what is set already; an empty value counts as not set."""
    given = {name: value for name, value in environ.items() if value}
    for name, value in dotenv_values(env_file).items():
        if value and not is_set(name.removesuffix(FILE_SUFFIX), given):
            given[name] = value
    return given


def is_set(name: str, given: Mapping[str, str]) -> bool:
    """Return True if the variable has a value, itself or in a file."""
    return bool(given.get(name) or given.get(f"{name}{FILE_SUFFIX}"))
