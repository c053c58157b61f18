"""wrk, the bare load generator (https://github.com/wg/wrk): what a gateway or an endpoint can take at most."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping

from bench.gateways import MissingProgramError

_SCRIPT = """
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\\n{"requests": %d, "microseconds": %d, "refused": %d, "socket_errors": %d, "p50": %f, "p99": %f}\\n',
    summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclasses.dataclass(frozen=True)
class Load:
    """What wrk reached. Latencies are in milliseconds."""

    requests: int
    seconds: float
    refused: int  # answers other than 2xx and 3xx
    socket_errors: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return (self.requests - self.refused) / self.seconds


def wrk(
    url: str,
    *,
    connections: int,
    seconds: float,
    method: str = "GET",
    body: str | None = None,
    headers: Mapping[str, str] | None = None,
    script: str = "",
    pause_milliseconds: int = 0,
) -> Load:
    """Load the address from one thread, with a pause before each request of a connection if asked for.

    `script` is Lua of the caller's, for bodies that vary.

    Raise MissingProgramError when wrk is not installed.
    """
    program = shutil.which("wrk")
    if program is None:
        raise MissingProgramError("wrk is not installed: tools/bootstrap load")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        pause = f"function delay() return {pause_milliseconds} end\n" if pause_milliseconds else ""
        file.write(_request(method, body, headers or {}) + script + pause + _SCRIPT)
        file.flush()
        command = [program, "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s"]
        command += ["--timeout", "30s", "-s", file.name, url]
        finished = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60)
    found = json.loads(finished.stdout.strip().splitlines()[-1])
    return Load(
        requests=found["requests"],
        seconds=found["microseconds"] / 1e6,
        refused=found["refused"],
        socket_errors=found["socket_errors"],
        p50=found["p50"],
        p99=found["p99"],
    )


def send_like_us(url: str, *, connections: int, seconds: float) -> Load:
    """POST one and the same message to a gateway for so long."""
    message = json.dumps({"id": 1, "phone": 79161234567, "text": "Hello, this is a message of usual length."})
    headers = {"Content-Type": "application/json", "Authorization": "Bearer bench"}
    return wrk(f"{url}/send/1", connections=connections, seconds=seconds, method="POST", body=message, headers=headers)


def _request(method: str, body: str | None, headers: Mapping[str, str]) -> str:
    lines = [f"wrk.method = {_lua(method)}"]
    lines += [f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"wrk.body = {_lua(body)}")
    return "\n".join(lines) + "\n"


def _lua(text: str) -> str:
    """A Lua string; JSON's escapes of printable text are Lua's, others do not occur here."""
    return json.dumps(text, ensure_ascii=False)
