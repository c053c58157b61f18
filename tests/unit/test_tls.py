"""Which certificates the services believe."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from common.tls import client_context


def openssl(folder: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, made in the shortest way, and a certificate `cert.pem` that it vouches for."""
    folder = tmp_path_factory.mktemp("authority")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    openssl(folder, f"req -x509 {key} -days 2 -subj /CN=ours -keyout ca-key.pem -out ca.pem")
    openssl(folder, f"req {key} -subj /CN=localhost -keyout key.pem -out request.pem")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    signed = "-CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile names"
    openssl(folder, f"x509 -req -in request.pem {signed} -out cert.pem")
    return folder


def shake_hands(client: ssl.SSLContext, folder: Path, name: str = "localhost") -> None:
    """Have a client of this context connect to a server with this certificate; raise what the client raises."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(back, there, server_hostname=name)
    theirs = server.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    ours.do_handshake()


def test_authority_of_ones_own_is_believed(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    shake_hands(client_context(), authority)


def test_certificate_itself_can_be_named(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "cert.pem"))
    shake_hands(client_context(), authority)


def test_authorities_can_lie_in_a_directory(authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_bytes((authority / "ca.pem").read_bytes())
    openssl(tmp_path, "rehash .")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    shake_hands(client_context(), authority)


def test_no_other_certificate_is_believed(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_context(), authority)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(client_context(), authority, "example.com")


def test_machine_without_authorities_has_those_of_mozilla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert client_context().cert_store_stats()["x509_ca"] > 50
