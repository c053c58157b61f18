"""Start and question a simulator from tests and tools, with nothing but the standard library."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from array import array
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 30


class SimulatorError(Exception):
    """The simulator did not start, or refused what was asked; the text says why."""


class Simulator:
    """A running simulator. `url` is the address to give to the sender as GATEWAY_URL.

    Start one with `Simulator.start()`, in a `with` statement to have it stopped; or name one that runs already.
    """

    def __init__(self, url: str, control_url: str | None = None, process: subprocess.Popen[str] | None = None) -> None:
        self.url = url.rstrip("/")
        self.control_url = (control_url or url).rstrip("/")
        self.process = process

    @classmethod
    def start(cls, *faults: dict[str, Any], token: str | None = None, port: int = 0, **options: Any) -> Self:
        """Start a process that ends with this one. `latency_ms=20` becomes `--latency-ms 20`, and so on."""
        command = [sys.executable, "-m", "simulator", "--until-stdin-closes"]
        command += ["--port", str(port), "--control-port", "0"]
        command += ["--token", token or "", "--faults", json.dumps(faults)]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            process.communicate()  # Closes its pipes and waits for its end.
            raise SimulatorError(f"the simulator ended with code {process.returncode} before it listened")
        where = json.loads(line)
        host = where["url"].partition("://")[2].rpartition(":")[0]
        return cls(where["url"], f"http://{host}:{where['control_port']}", process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # Faults

    def control(self, *faults: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """Replace all faults by these; `token=` changes the token, `seed=` the lots. Return the new state."""
        return self._json("PUT", "/control", {"faults": list(faults), **settings})

    def add(self, fault: dict[str, Any]) -> dict[str, Any]:
        """Add one fault to those in force."""
        return self._json("POST", "/control", fault)

    def state(self) -> dict[str, Any]:
        """Return the faults, whether each is on, and how many requests it hit."""
        return self._json("GET", "/control")

    def calm(self) -> dict[str, Any]:
        """Go back to the faults the simulator was started with."""
        return self._json("DELETE", "/control")

    # What was received

    def received(self) -> dict[str, Any]:
        """Return the counts over everything received."""
        return self._json("GET", "/received")

    def ids(self, page_size: int = 10_000) -> list[dict[str, Any]]:
        """Return every id in the order of its first arrival, accepted or not."""
        items: list[dict[str, Any]] = []
        query = ""
        while True:
            page = self._json("GET", f"/received/ids?limit={page_size}{query}")
            items += page["items"]
            if page["next"] is None:
                return items
            query = f"&after={page['next']}"

    def accepted_ids(self) -> set[int]:
        """Return the ids that were accepted at least once."""
        return {item["id"] for item in self.ids() if item["accepted"]}

    def one(self, message_id: int) -> dict[str, Any]:
        """Return one id with its attempts; raise SimulatorError if it never came."""
        return self._json("GET", f"/received/{message_id}")

    def timeline(self) -> list[tuple[float, int]]:
        """Return (time, arrivals) for every tenth of a second in which anything arrived."""
        return [(at, count) for at, count in self._json("GET", "/timeline")["buckets"]]

    def arrivals(self) -> "array[float]":
        """Return the exact time of every attempt, in seconds since 1970."""
        return array("d", self._call("GET", "/arrivals"))

    def forget(self) -> None:
        """Forget everything received."""
        self._json("DELETE", "/received")

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], timeout_seconds: float = 30) -> dict[str, Any]:
        """Return the summary as soon as it fulfils the condition; raise TimeoutError with the last one otherwise."""
        deadline = time.monotonic() + timeout_seconds
        while not condition(summary := self.received()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_seconds} s the simulator had only seen {summary}")
            time.sleep(0.02)
        return summary

    # The process

    def stop(self) -> None:
        """End the process in order."""
        self._end(subprocess.Popen.terminate)

    def kill(self) -> None:
        """End the process as a crash does; what it received is lost."""
        self._end(subprocess.Popen.kill)

    def _end(self, how: Callable[[subprocess.Popen[str]], None]) -> None:
        if self.process is None:
            return
        with self.process:
            how(self.process)
            self.process.wait(TIMEOUT_SECONDS)

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._call(method, path, body))
        return answer

    def _call(self, method: str, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.control_url + path, data, headers, method=method)  # noqa: S310 - ours
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 - ours
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            with error:
                raise SimulatorError(f"{method} {path}: {error.code} {error.read().decode()}") from None
