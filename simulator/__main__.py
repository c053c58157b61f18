"""Run the simulator: `python -m simulator --help`."""

import argparse
import asyncio
import json
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import uvloop

from simulator.gateway import Gateway
from simulator.ledger import clock
from simulator.listeners import Listener
from simulator.receipts import Receipts
from simulator.rules import RuleError

EPILOG = """Every option that takes a value can be set in the environment: SIMULATOR_PORT for --port and so on, but
GATEWAY_TOKEN for --token. NAME_FILE names a file that holds the value. Once it listens, the simulator prints one line
of JSON with its addresses. docs/simulator.md lists the faults and the endpoints."""


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    parser = arguments()
    options = parser.parse_args()
    try:
        gateway = Gateway(
            token=options.token,
            faults=initial_faults(options),
            seed=options.seed,
            outages_can_be_ended=options.control_port is not None,
        )
        uvloop.run(serve(gateway, options))
    except (RuleError, OSError) as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 2
    return 0


async def serve(gateway: Gateway, options: argparse.Namespace) -> None:
    """Listen, say where, and serve until a signal comes."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), stop.set)  # Nobody writes there: readable means closed.

    main_listener = Listener(gateway, options.host, options.port, tls_context(options))
    await main_listener.open()
    control_port = None
    if options.control_port is not None:
        control = Listener(gateway, options.host, options.control_port)
        await control.open()
        control_port = control.port
    tasks = [asyncio.create_task(main_listener.watch())]
    if options.receipts_url:
        receipts = Receipts(
            options.receipts_url,
            options.receipts_key or "",
            options.receipts_delay_ms / 1000,
            options.receipts_failed_share,
            gateway.random,
        )
        gateway.on_accepted = lambda message_id: receipts.schedule(message_id, clock())
        gateway.receipts_summary = receipts.summary
        tasks.append(asyncio.create_task(receipts.run()))

    scheme = "https" if options.tls_cert else "http"
    where = {"url": f"{scheme}://{options.host}:{main_listener.port}", "port": main_listener.port}
    print(json.dumps({"event": "listening", **where, "control_port": control_port}), flush=True)
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    await main_listener.close()
    for task in done:
        task.result()  # A background task ends only by an error, which must be seen.


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line, with defaults from the environment."""
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__, epilog=EPILOG)

    def option(flag: str, text: str, **more: Any) -> None:
        name = "GATEWAY_TOKEN" if flag == "--token" else "SIMULATOR_" + flag.strip("-").replace("-", "_").upper()
        parser.add_argument(flag, help=text, default=from_environment(name, more.pop("default", None)), **more)

    option("--host", "address to listen on (default: 127.0.0.1)", default="127.0.0.1")
    option("--port", "port to listen on, 0 for any free one (default: 8100)", type=int, default="8100")
    option("--control-port", "a second port that stays reachable in outages, always plain HTTP", type=int)
    option("--token", "the bearer token callers must bring (default: any)")
    option("--tls-cert", "PEM file of the certificate; makes the main port HTTPS")
    option("--tls-key", "PEM file of its key, unless the certificate's file holds it")
    option("--faults", "JSON list of faults to start with, see docs/simulator.md")
    option("--latency-ms", "milliseconds before every answer", type=float)
    option("--seed", "seed of the lots drawn, for runs that repeat", type=int)
    option("--receipts-url", "where to POST delivery receipts, such as http://127.0.0.1:8000/api/v1/receipt/")
    option("--receipts-key", "API key for the receipts")
    option("--receipts-delay-ms", "milliseconds from acceptance to receipt (default: 1000)", type=float, default="1000")
    option("--receipts-failed-share", "share of the receipts that say failed (default: 0)", type=float, default="0")
    parser.add_argument("--until-stdin-closes", action="store_true", help="stop when the process that started it ends")
    return parser


def from_environment(name: str, default: str | None) -> str | None:
    """Return a setting from the environment, or from the file that NAME_FILE names."""
    if path := os.environ.get(f"{name}_FILE"):
        return Path(path).read_text().strip()
    return os.environ.get(name) or default


def initial_faults(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the faults to start with; raise RuleError if they are no JSON."""
    try:
        faults: list[dict[str, Any]] = json.loads(options.faults or "[]")
    except ValueError as error:
        raise RuleError(f"--faults is not JSON: {error}") from error
    if options.latency_ms and isinstance(faults, list):
        faults.append({"kind": "latency", "milliseconds": options.latency_ms})
    return faults


def tls_context(options: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the server's TLS settings, None for plain HTTP."""
    if not options.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.tls_cert, options.tls_key)
    return context


if __name__ == "__main__":
    sys.exit(main())
