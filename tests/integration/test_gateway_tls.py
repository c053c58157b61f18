"""The gateway over TLS: sessions and certificates, and through proxies."""

from __future__ import annotations

import multiprocessing
import os
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress

import pytest

from common.settings import SettingsError
from sender.answers import Verdict
from tests.gateway_server import ACCEPTED, OK, Peer, Server, addresses, secure, verdicts
from tests.integration.test_gateway_client import client_for, delivery, only, results
from tools.processes import free_port
from tools.usage import memory_mb


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_new_connection_resumes_the_session_of_the_one_before(tls: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    tls.minimum_version = tls.maximum_version = version
    resumed: list[bool | None] = []

    def serve(peer: Peer) -> None:
        assert isinstance(peer.connection, ssl.SSLSocket)
        resumed.append(peer.connection.session_reused)
        peer.read()
        peer.say(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    with Server(serve, tls=tls) as server:
        assert verdicts(secure(server), 3) == [ACCEPTED] * 3
    assert resumed == [False, True, True]


def test_session_that_cannot_be_resumed_is_not_kept(tls: ssl.SSLContext) -> None:
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.num_tickets = 0
    with Server(Peer.answer_all, tls=tls) as server, client_for(secure(server)) as client:
        assert only(results(client, delivery(700))).judgement.verdict is Verdict.ACCEPTED
        assert client._exchanges._origin.session is None


def offers_a_session(hello: bytes) -> bool:
    """Whether a ClientHello ends with the extension `pre_shared_key` (RFC 8446, 4.1.2 and 4.2.11)."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at] + 2
    while at < len(hello):
        if hello[at : at + 2] == b"\x00\x29":
            return True
        at += 4 + int.from_bytes(hello[at + 2 : at + 4], "big")
    return False


def test_session_that_the_gateway_does_not_like_is_given_up(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[bool] = []

    class Fussy(Server):
        """Breaks off every handshake in which a session is offered."""

        def _handle(self, connection: socket.socket) -> None:
            offered.append(offers_a_session(connection.recv(4096, socket.MSG_PEEK)))
            if offered[-1]:
                connection.close()
            else:
                super()._handle(connection)

    def serve(peer: Peer) -> None:
        peer.read()
        peer.say(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    with Fussy(serve, tls=tls) as server, addresses(monkeypatch, server.port):
        assert verdicts("https://localhost", 4) == [ACCEPTED, (Verdict.TROUBLE, "tls"), ACCEPTED, ACCEPTED]
    assert offered == [False, True, False, False]


def test_new_tls_connections_leave_nothing_behind(tls: ssl.SSLContext) -> None:
    """Each copy of a session that Python 3.11 makes keeps some 6 kB for good."""

    def serve(peer: Peer) -> None:
        peer.read()
        peer.say(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    server = Server(serve, tls=tls)
    # Its memory is no matter.
    elsewhere = multiprocessing.get_context("fork").Process(target=server._accept, daemon=True)
    elsewhere.start()
    with client_for(secure(server)) as client:
        assert len(results(client, delivery(1, 300))) == 300
        before = memory_mb(os.getpid(), "VmRSS")
        assert len(results(client, delivery(1001, 1000))) == 1000
        grown = memory_mb(os.getpid(), "VmRSS") - before
    elsewhere.kill()
    elsewhere.join()
    server._listener.close()
    assert grown < 2


def test_certificate_of_another_host_is_refused(tls: ssl.SSLContext) -> None:
    with Server(Peer.answer_all, tls=tls) as server:
        assert verdicts(server.url.replace("127.0.0.1", "127.0.0.2")) == [(Verdict.TROUBLE, "connection_refused")]
        with Server(Peer.answer_all, tls=tls, host="127.0.0.2") as other:
            assert verdicts(other.url) == [(Verdict.TROUBLE, "tls")]


def test_large_text_goes_whole_over_tls(tls: ssl.SSLContext) -> None:
    lengths: list[int] = []

    def serve(peer: Peer) -> None:
        head = peer.read_head()
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        time.sleep(0.2)  # Until its buffers are full, and the client has to wait for room.
        lengths.append(len(peer.stream.read(length)) - length)
        peer.say(OK)

    with Server(serve, tls=tls) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        with client_for(url, timeout=20) as client:
            result = only(results(client, delivery(600, text="x" * 8_000_000)))
    assert result.judgement.verdict is Verdict.ACCEPTED
    assert lengths == [0]


def proxying(heads: list[bytes], port: int, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Callable[[Peer], None]:
    """A proxy that opens tunnels to this port, whatever it is asked for."""

    def serve(peer: Peer) -> None:
        heads.append(peer.read_head())
        peer.say(answer)
        with socket.create_connection(("127.0.0.1", port)) as target:
            threading.Thread(target=pump, args=(target, peer.connection), daemon=True).start()
            pump(peer.connection, target)

    return serve


def pump(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes until there are no more."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_gateway_over_tls_is_reached_through_the_tunnel_of_a_proxy(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []
    with Server(Peer.answer_all, tls=tls) as server, Server(proxying(heads, server.port)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://anna:s%40fe@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "")
        assert verdicts("https://localhost:9999", 2) == [ACCEPTED] * 2
    (head,) = heads
    assert head.startswith(b"CONNECT localhost:9999 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic " + b64encode(b"anna:s@fe") in head
    assert b"Bearer" not in head


def test_proxy_that_refuses_a_tunnel_is_a_gateway_that_was_not_reached(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(Peer.answer_all, tls=tls) as server:
        refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
        with Server(proxying([], server.port, refusal)) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
            assert verdicts("https://localhost:9999") == [(Verdict.TROUBLE, "connection_refused")]


def test_gateway_without_tls_is_asked_for_at_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    def serve(peer: Peer) -> None:
        heads.append(peer.read())
        peer.say(OK)

    with Server(serve) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        assert verdicts("http://gateway.example/v1") == [ACCEPTED]
    assert heads[0].startswith(b"POST http://gateway.example/v1/send/100 HTTP/1.1\r\nHost: gateway.example\r\n")


def test_host_that_no_proxy_names_is_called_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(Peer.answer_all) as server:
        assert verdicts(server.url) == [ACCEPTED]


@pytest.mark.parametrize("proxy", ["http://proxy:abc", "http://proxy:99999", "http://:3128"])
def test_proxy_that_cannot_be_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(SettingsError, match="HTTP_PROXY"), client_for("http://gateway.example"):
        pass


def test_proxy_that_is_itself_spoken_to_over_tls_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "https://127.0.0.1:1")
    with pytest.raises(SettingsError, match="HTTPS_PROXY"), client_for("https://localhost:1"):
        pass
