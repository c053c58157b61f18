"""The demonstration, as far as it can be tried without a running system."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tools.demo import Api, DemoError


def test_looking_survives_a_database_that_is_started_again() -> None:
    statuses = [503, 503, 200, 503]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.pop(0))
            self.end_headers()
            self.wfile.write(b"[1]")

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = Api(f"http://127.0.0.1:{server.server_port}", "key")
        assert api.call("GET", "/mailing/") == [1]
        with pytest.raises(DemoError, match="was answered 503"):
            api.call("POST", "/mailing/", json={})
        server.shutdown()
