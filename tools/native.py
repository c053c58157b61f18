"""`make up-native`, `make down`, `make clean`, `make logs`, `make report` ...: around the supervisor."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.local import ROOT, Local, Lock, read_json
from tools.processes import end, look_up, tail, wait_until

START_SECONDS = 1200.0  # migrations of a large database included
STOP_SECONDS = 300.0  # nine servers and services, one after the other, each with its own grace period


def up(local: Local) -> int:
    """Start the supervisor unless one runs, wait until everything is healthy, and print how to reach it."""
    local.create()
    if phase(local) == "stopping":
        wait_until(lambda: not is_running(local), STOP_SECONDS)
    if is_running(local):
        print("Mailings is running already.")
    else:
        print("Starting PostgreSQL, RabbitMQ and the services ...", flush=True)
        local.state.unlink(missing_ok=True)
        launch_supervisor(local)
    wait_until(
        lambda: phase(local) in ("ready", "failed", "stopped") or not is_running(local), START_SECONDS, pause=0.2
    )
    if phase(local) == "ready" and is_running(local):
        print_access(local)
        return 0
    message = read_json(local.state).get("message") or f"the supervisor has ended:{tail(supervisor_log(local))}"
    print(f"Mailings could not be started: {message}", file=sys.stderr)
    return 1


def launch_supervisor(local: Local) -> None:
    """Start the supervisor in the background and return when it holds its lock or has ended."""
    with supervisor_log(local).open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "tools.supervisor", str(local.path), str(local.env_file)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    wait_until(lambda: is_running(local) or supervisor.poll() is not None, timeout=30)


def down(local: Local) -> int:
    """Stop everything; afterwards no process of ours runs, even if the supervisor had been killed."""
    if not local.path.exists():
        return 0
    with Lock(local.lock) as lock:
        if not lock.take():
            stop_supervisor(lock)
        orphans = local.members()
        if orphans:
            print(f"Ending {len(orphans)} processes that were left behind.")
            end(local.members, grace=15.0)
    local.state.unlink(missing_ok=True)
    local.access.unlink(missing_ok=True)
    local.environment.unlink(missing_ok=True)
    return 0


def stop_supervisor(lock: Lock) -> None:
    """Have the supervisor stop everything; kill it when it takes too long."""
    print("Stopping ...", flush=True)
    wait_until(lambda: lock.holder() is not None, timeout=10)
    pid = lock.holder()
    supervisor = look_up(pid) if pid else None
    if supervisor:
        supervisor.send(signal.SIGTERM)
    if not wait_until(lock.take, STOP_SECONDS) and supervisor:
        supervisor.send(signal.SIGKILL)
        wait_until(lock.take, timeout=10)
    # It gives up the lock a moment before it is gone.
    wait_until(lambda: supervisor is None or not supervisor.is_alive, timeout=10)


def clean(local: Local) -> int:
    """Stop everything and delete the data."""
    down(local)
    local.remove()
    return 0


def logs(local: Local) -> int:
    """Follow all logs, from their last lines on."""
    files = sorted(str(log.relative_to(ROOT)) for log in local.logs.glob("*.log"))
    if not files:
        print("There are no logs yet: make up")
        return 1
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(["tail", "-n", "10", "-F", *files], cwd=ROOT, check=False)
    return 0


def status(local: Local) -> int:
    """Print every process with its pid and how often it had to be started again; return 1 when nothing runs."""
    if not is_running(local):
        orphans = len(local.members())
        print(
            "Mailings is not running."
            if not orphans
            else f"The supervisor was killed, {orphans} processes run: make up"
        )
        return 1
    state = read_json(local.state)
    print(f"Mailings is {state['phase']}.\n")
    for child in state["children"]:
        alive = child["pid"] and look_up(child["pid"])
        print(f"  {child['name']:<11} {child['pid'] if alive else 'down':<8} restarts: {child['restarts']}")
    print_access(local)
    return 0


def report(local: Local, arguments: Sequence[str]) -> int:
    """Send or preview one report with the settings of the running instance; return how that went."""
    status = run_module(local, "reporter", "send", *arguments)
    if status == 0 and "mail" in read_json(local.access) and "--dry-run" not in arguments:
        print(f"caught in {local.mail}/")
    return status


def admin_user(local: Local, arguments: Sequence[str]) -> int:
    """Add a user of the admin pages, or give one a new password; return how that went."""
    return run_module(local, "db", "user", *arguments)


def recount(local: Local, arguments: Sequence[str]) -> int:
    """Compare the counters with the messages; return 1 if they differ."""
    return run_module(local, "db", "recount", *arguments)


def run_module(local: Local, *command: str) -> int:
    """Run one of our programs with the settings of the running instance; its exit status, or 1 when nothing runs."""
    env = read_json(local.environment)
    if not env or not is_running(local):
        print("Mailings is not running: make up", file=sys.stderr)
        return 1
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env, check=False).returncode


def is_up(local: Local) -> int:
    """Return 0 if a native instance runs, for the Makefile."""
    return 0 if is_running(local) else 1


def is_running(local: Local) -> bool:
    """Return True if a supervisor holds its lock."""
    if not local.lock.exists():
        return False
    with Lock(local.lock) as lock:
        return lock.is_held()


def phase(local: Local) -> str:
    """How far the supervisor is; empty before it has said so."""
    return str(read_json(local.state).get("phase", ""))


def supervisor_log(local: Local) -> Path:
    """What the supervisor did and why."""
    return local.logs / "supervisor.log"


def print_access(local: Local) -> None:
    """Say where everything is and with which credentials."""
    state = read_json(local.state)
    access = state["access"]
    print()
    for note in state["notes"]:
        print(f"  {note}")
    print(f"  API            {access['api']}/api/v1/   (for programs, with the key below)")
    print(f"  Documentation  {access['api']}/docs/")
    print(f"  Admin          {access['admin']}/   {access['admin_email']}   {access['admin_password']}")
    if "gateway" in access:
        print(f"  Gateway        {access['gateway']}/   (a simulator: shows what it received)")
    if "mail" in access:
        print(f"  Mail           {access['mail']}/   (mails are caught there)")
    print(f"  API key        {access['api_key']}")
    print("\n  make demo   make report   make logs   make status   make down")


COMMANDS: dict[str, Callable[[Local], int]] = {
    "up": up,
    "down": down,
    "clean": clean,
    "logs": logs,
    "status": status,
    "is-up": is_up,
}
COMMANDS_WITH_ARGUMENTS: dict[str, Callable[[Local, Sequence[str]], int]] = {
    "report": report,
    "admin-user": admin_user,
    "recount": recount,
}


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m tools.native", description=__doc__)
    parser.add_argument("command", choices=[*COMMANDS, *COMMANDS_WITH_ARGUMENTS])
    parser.add_argument("--directory", type=Path, default=ROOT / ".local", help="where logs and data are kept")
    parser.add_argument("--env-file", type=Path, default=ROOT / ".env", help="settings below those of the environment")
    options, others = parser.parse_known_args()
    local = Local(options.directory.absolute(), options.env_file.absolute())
    if others and options.command not in COMMANDS_WITH_ARGUMENTS:
        parser.error(f"unknown: {' '.join(others)}")
    try:
        if options.command in COMMANDS_WITH_ARGUMENTS:
            return COMMANDS_WITH_ARGUMENTS[options.command](local, others)
        return COMMANDS[options.command](local)
    except KeyboardInterrupt:
        goes_on = " What was begun goes on in the background; see make status." if options.command == "up" else ""
        print(f"\nInterrupted.{goes_on}", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
