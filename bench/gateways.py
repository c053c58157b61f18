"""Gateways to measure against: the simulator, and an nginx that answers at once and keeps the ids in its log."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from simulator.client import Simulator
from tools.processes import Process, StartError, free_port, is_free, tail, wait_until

# A latency that varies: most answers come soon after the usual time, one in a hundred takes ten times as long.
VARYING_SIGMA = 1.0
VARYING_MOST_MS = 5_000
ANSWER = '{"code": 0, "message": "OK"}'
_LINE = re.compile(rb"^(\S+) /v1/send/(\d+) 200 (\S)$", re.MULTILINE)
_RESUMED = b"r"


class MissingProgramError(Exception):
    """A program that a measurement needs is not installed; the text says how to get it."""


@dataclasses.dataclass(frozen=True)
class Received:
    """What a gateway accepted since it last forgot."""

    messages: int  # different ids
    repeats: int  # acceptances beyond the first of an id
    first_at: float | None  # seconds since 1970
    last_at: float | None
    resumed: int = 0  # over TLS connections that took up an earlier session, as far as the gateway tells


class Gateway(Protocol):
    """Somewhere to send to."""

    @property
    def url(self) -> str:
        """The value for GATEWAY_URL."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """What a sender needs beside the address."""
        ...

    @property
    def pids(self) -> list[int]:
        """Its main processes, whose processor time counts as the gateway's."""
        ...

    def received(self) -> Received:
        """Everything accepted so far; complete once the callers have their answers."""
        ...

    def forget(self) -> None:
        """Begin counting anew."""
        ...


class SimulatorGateway:
    """Our simulator with a latency, fixed or varying about it (lognormal), plain or with TLS of its own."""

    def __init__(self, latency_ms: int = 0, authority: Authority | None = None, *, varying: bool = False) -> None:
        self.environment: Mapping[str, str] = authority.environment if authority else {}
        latency: dict[str, Any] = {"kind": "latency", "milliseconds": latency_ms}
        if varying:
            latency |= {"distribution": "lognormal", "sigma": VARYING_SIGMA, "max_milliseconds": VARYING_MOST_MS}
        faults = [latency] if latency_ms else []
        tls: dict[str, Any] = {"tls_cert": authority.certificate, "tls_key": authority.key} if authority else {}
        self._simulator = Simulator.start(*faults, **tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._simulator.stop()

    @property
    def url(self) -> str:
        """As GATEWAY_URL."""
        return f"{self._simulator.url}/v1"

    @property
    def pids(self) -> list[int]:
        """The one process."""
        return [self._simulator.process.pid] if self._simulator.process else []

    def received(self) -> Received:
        """From the simulator's ledger."""
        seen = self._simulator.received()
        return Received(seen["accepted"], seen["repeats"], seen["first_at"], seen["last_at"])

    def forget(self) -> None:
        """Empty the ledger."""
        self._simulator.forget()


class NginxGateway:
    """One nginx worker that accepts everything at once; the ids are read from its buffered access log."""

    def __init__(
        self,
        directory: Path,
        authority: Authority | None = None,
        *,
        http2: bool = False,
        keep_alive: bool = True,
        resumption: bool = True,
    ) -> None:
        """Without `keep_alive` it closes the connection after each answer, without `resumption` it forgets sessions."""
        self._keep_alive_seconds = 600 if keep_alive else 0
        self._resumption = resumption
        self.environment: Mapping[str, str] = authority.environment if authority else {}
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        if program is None:
            raise MissingProgramError("nginx is not installed: tools/bootstrap load")
        self._port = free_port()
        self._scheme = "https" if authority else "http"
        self._directory = directory / f"nginx-{self._port}"
        self._directory.mkdir(parents=True)
        self._log = self._directory / "ids"
        configuration = self._directory / "nginx.conf"
        configuration.write_text(self._configuration(authority, http2=http2))
        self._process = Process(
            name="nginx",
            argv=[program, "-p", str(self._directory), "-e", "errors", "-c", str(configuration)],
            env={"PATH": os.environ.get("PATH", os.defpath)},
            cwd=self._directory,
            log=self._directory / "errors",
            dies_with_parent=True,
        )

    def __enter__(self) -> Self:
        self._process.launch()
        if not wait_until(lambda: self._process.pid is None or not is_free(self._port), 10) or not self._process.pid:
            self._process.kill()
            raise StartError(f"nginx did not start:{tail(self._directory / 'errors')}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    @property
    def url(self) -> str:
        """As GATEWAY_URL; the name is the one in the certificate."""
        return f"{self._scheme}://localhost:{self._port}/v1"

    @property
    def pids(self) -> list[int]:
        """The master, whose child does the work."""
        return [self._process.pid] if self._process.pid else []

    def received(self) -> Received:
        """Read the log, in which every id stands as often as it was accepted."""
        self._flush()
        ids, times, resumed = array("q"), array("d"), 0
        for log in self._directory.glob("ids.*"):
            for at, message_id, session in _LINE.findall(log.read_bytes()):
                ids.append(int(message_id))
                times.append(float(at))
                resumed += session == _RESUMED
        different = len(set(ids))
        return Received(different, len(ids) - different, min(times, default=None), max(times, default=None), resumed)

    def forget(self) -> None:
        """Remove the log."""
        self._flush()
        for log in self._directory.glob("ids.*"):
            log.unlink()

    def _flush(self) -> None:
        """Have nginx write its buffer and begin a new file, so that the old one is complete."""
        self._log.rename(self._log.with_suffix(f".{time.monotonic_ns()}"))
        self._process.send(signal.SIGUSR1)
        if not wait_until(self._log.exists, 5):
            raise StartError("nginx did not reopen its log")
        # The master opens the file before its worker has written the last lines to the old one.
        time.sleep(0.2)

    def _configuration(self, authority: Authority | None, *, http2: bool) -> str:
        tls = f"ssl_certificate {authority.certificate}; ssl_certificate_key {authority.key};" if authority else ""
        sessions = "shared:sessions:10m" if self._resumption else "off"
        listen = f"127.0.0.1:{self._port}" + (" ssl" if authority else "") + (" http2" if http2 else "")
        user = "user root;" if os.geteuid() == 0 else ""
        return f"""
            {user} worker_processes 1; daemon off; pid {self._directory}/pid; error_log {self._directory}/errors;
            events {{ worker_connections 16384; }}
            worker_rlimit_nofile 20000;
            http {{
              log_format ids '$msec $uri $status $ssl_session_reused';
              access_log {self._log} ids buffer=256k;
              keepalive_requests 1000000000; keepalive_timeout {self._keep_alive_seconds};
              ssl_session_cache {sessions}; ssl_session_tickets {"on" if self._resumption else "off"};
              {"http2_max_concurrent_streams 1000;" if http2 else ""}
              client_body_temp_path {self._directory}/bodies; proxy_temp_path {self._directory}/proxy;
              fastcgi_temp_path {self._directory}/fastcgi; uwsgi_temp_path {self._directory}/uwsgi;
              scgi_temp_path {self._directory}/scgi;
              server {{
                listen {listen} backlog=4096; default_type application/json; {tls}
                location /v1/send/ {{ return 200 '{ANSWER}'; }}
              }}
            }}
        """


class Authority:
    """A certificate for localhost that signs itself, and how a sender comes to trust it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate = directory / "certificate.pem"
        self.key = directory / "key.pem"
        if not self.certificate.exists():
            subprocess.run(
                [
                    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                    *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
                    *("-keyout", str(self.key), "-out", str(self.certificate)),
                ],
                check=True,
                capture_output=True,
            )

    @property
    def environment(self) -> dict[str, str]:
        """OpenSSL's own variable, which the sender heeds."""
        return {"SSL_CERT_FILE": str(self.certificate)}
