"""The sockets the simulator listens on, and the outages in which nobody can connect."""

import asyncio
import contextlib
import socket
import ssl
from typing import Any, cast

from simulator.connection import Connection, reset
from simulator.faults import Refuse
from simulator.gateway import Gateway
from simulator.ledger import clock

BACKLOG = 4096
WATCH_SECONDS = 0.02


class Listener:
    """One address that can be taken away from the callers and given back, keeping its port meanwhile."""

    def __init__(self, gateway: Gateway, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.gateway = gateway
        self.tls = tls
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.family = found[0]
        self.address: Any = found[4]  # Its shape depends on the family.
        # A socket that is bound but does not listen keeps the port ours in an outage: callers get "refused" from it.
        self.placeholder = self._bind()
        self.address = self.placeholder.getsockname()
        self.port: int = self.address[1]
        self.server: asyncio.Server | None = None
        self.outage: str | None = None
        self.silence: list[socket.socket] = []
        self.connections: set[Connection] = set()

    async def open(self) -> None:
        """Take connections."""
        loop = asyncio.get_running_loop()
        if self.outage is None:
            self.server = await loop.create_server(self._connect, sock=self._bind(), backlog=BACKLOG, ssl=self.tls)
        else:
            self.server = await loop.create_server(Dropped, sock=self._bind(), backlog=BACKLOG)

    async def close(self) -> None:
        """Take no connection any more; those in the queue of the kernel are refused."""
        self._end_silence()
        if self.server is not None:
            self.server.close()
            self.server = None
            await asyncio.sleep(0)  # The event loop closes the socket in its next turn.

    async def watch(self) -> None:
        """Follow the outages ordered by the control API, for ever."""
        while True:
            await self.apply(self.gateway.rules.outage(clock()))
            await asyncio.sleep(WATCH_SECONDS)

    async def apply(self, outage: Refuse | None) -> None:
        """Begin or end an outage, unless that is the state already."""
        how = outage.how if outage else None
        if how == self.outage:
            return
        self.outage = how
        await self.close()
        if how is not None:
            self.drop_connections()
        if how == "silence":
            self._begin_silence()
        elif how != "refuse":
            await self.open()

    def drop_connections(self) -> None:
        """Reset every open connection, as a gateway that goes down does."""
        for connection in list(self.connections):
            connection.reset()

    def _connect(self) -> Connection:
        return Connection(self.gateway, self.connections)

    def _bind(self) -> socket.socket:
        bound = socket.socket(self.family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(self.address)
        return bound

    def _begin_silence(self) -> None:
        # A full accept queue makes the kernel ignore further callers, as a firewall that drops packets does.
        listening = self._bind()
        listening.listen(0)
        self.silence = [listening]
        for _ in range(4):
            filler = socket.socket(self.family, socket.SOCK_STREAM)
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(self.address)
            self.silence.append(filler)

    def _end_silence(self) -> None:
        for held in reversed(self.silence):
            held.close()
        self.silence = []


class Dropped(asyncio.Protocol):
    """A connection that is reset as soon as it is made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        reset(cast("asyncio.Transport", transport))
