"""Uploading CSV files and watching their import: through the API, and its real server where the socket matters."""

from __future__ import annotations

import csv
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from common.csv_export import without_formula
from db.models import Client, ImportChunk, ImportJob
from db.queries import imports
from sender.imports import run_import
from tests.integration.conftest import FULL_KEY, Api, listening
from tests.system import at_this_load
from tools.processes import free_port, wait_until

GOOD = "phone,name\n+79161234567,Anna\n+79161234568,Boris\n"


def body(answer: TestResponse) -> Any:
    return answer.json


def upload(api: Api, content: str | bytes, content_type: str = "text/csv") -> TestResponse:
    return api.post("/client/import/", data=content, content_type=content_type)


def upload_form(api: Api, *fields: tuple[str, str, bytes]) -> TestResponse:
    """A form as browsers send it; written out, since clients would not send a field twice."""
    body = b"".join(
        f'--xyz\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, filename, data in fields
    )
    return upload(api, body + b"--xyz--\r\n", "multipart/form-data; boundary=xyz")


def finish(api: Api, engine: sa.Engine, accepted: TestResponse) -> Any:
    """Import the file, and return the job."""
    assert accepted.status_code == 202, body(accepted)
    run_import(engine, body(accepted)["id"], "worker")
    return api.http.get(accepted.headers["Location"], headers={"Authorization": f"Bearer {FULL_KEY}"}).json


def stored(session: Session) -> tuple[int, int]:
    jobs = session.scalars(sa.select(sa.func.count()).select_from(ImportJob)).one()
    return jobs, session.scalars(sa.select(sa.func.count()).select_from(ImportChunk)).one()


def test_upload_is_accepted_as_a_waiting_job(api: Api) -> None:
    answer = upload(api, GOOD)

    assert answer.status_code == 202
    job = body(answer)
    assert job.pop("created_at").endswith("Z")
    assert job == {
        "id": 1,
        "state": "pending",
        "total": 2,
        "processed": 0,
        "created": 0,
        "updated": 0,
        "rejected": 0,
        "failure": None,
        "finished_at": None,
        "errors": [],
    }
    assert answer.headers["Location"] == "/api/v1/client/import/1/"


def test_imported_clients_are_in_the_directory(api: Api, api_engine: sa.Engine) -> None:
    job = finish(api, api_engine, upload(api, GOOD))

    assert (job["state"], job["total"], job["processed"], job["created"]) == ("completed", 2, 2, 2)
    assert job["finished_at"] > job["created_at"]
    assert [client["attributes"] for client in body(api.get("/client/"))] == [{"name": "Anna"}, {"name": "Boris"}]


def test_form_with_a_file_is_accepted(api: Api, api_engine: sa.Engine) -> None:
    content = "\ufeffphone;name\r\n89161234567;Анна\r\n".encode()

    job = finish(api, api_engine, upload_form(api, ("comment", "", b"x" * 200_000), ("file", "clients.csv", content)))

    assert (job["total"], job["created"]) == (1, 1)


def test_form_as_common_clients_send_it(api: Api) -> None:
    data = {"note": "a", "file": (io.BytesIO(GOOD.encode() * 1), "clients.csv")}

    assert body(api.post("/client/import", data=data, content_type="multipart/form-data"))["total"] == 2


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([], "no field 'file'"),
        ([("other", "clients.csv", b"phone\n1\n")], "no field 'file'"),
        ([("file", "a.csv", GOOD.encode()), ("file", "b.csv", GOOD.encode())], "more than one field 'file'"),
        ([("file", "a.csv", b"")], "The file is empty."),
        ([("file", "a.xlsx", b"PK\x03\x04")], "Excel"),
    ],
)
def test_form_without_one_good_file_is_refused(
    api: Api, api_session: Session, fields: list[tuple[str, str, bytes]], reason: str
) -> None:
    answer = upload_form(api, *fields)

    assert answer.status_code == 422
    assert reason in body(answer)["message"]
    assert stored(api_session) == (0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "The file is empty."),
        ("phone\n", "no row below"),
        ("phone\n\n,\n", "no row below"),
        ("name\nAnna\n", "no column 'phone'"),
        ("phone,phone\n1,2\n", "twice"),
        ("phone," + ",".join(f"a{number}" for number in range(101)) + "\n1\n", "more than 100 columns"),
        (GOOD.encode("utf-16"), "UTF-16"),
        ("phone,name\n1,Анна\n".encode("cp1251"), "Windows-1251"),
        (b"PK\x03\x04", "Excel"),
        (b"phone\n\x00\n", "NUL"),
        (GOOD.encode() * 60_000 + b"\xff", "not UTF-8 (line 180001)"),
    ],
)
def test_file_that_cannot_be_imported_is_refused_and_leaves_nothing(
    api: Api, api_session: Session, content: str | bytes, reason: str
) -> None:
    answer = upload(api, content)

    assert answer.status_code == 422
    assert reason in body(answer)["message"]
    assert body(answer)["errors"] == {"file": [body(answer)["message"]]}
    assert stored(api_session) == (0, 0)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/x-www-form-urlencoded",
        "text/csv; charset=windows-1251",
        "multipart/form-data",
        "",
    ],
)
def test_other_content_types_are_refused(api: Api, content_type: str) -> None:
    assert upload(api, GOOD, content_type).status_code == 415


def test_file_beyond_the_limit_is_refused(app: Flask, api: Api, api_session: Session) -> None:
    app.config["IMPORT_FILE_BYTES"] = 2 * 1024 * 1024
    try:
        big = GOOD.encode() * 50_000
        assert upload(api, big).status_code == 413
        assert upload_form(api, ("file", "a.csv", big)).status_code == 413
        assert "larger than 2 MB" in body(upload(api, big))["message"]
        assert stored(api_session) == (0, 0)
        # Larger than what other requests may be, all the same.
        assert upload(api, big[: 2 * 1024 * 1024]).status_code == 202
    finally:
        del app.config["IMPORT_FILE_BYTES"]


def test_first_hundred_rejected_rows_are_shown_and_all_can_be_downloaded(api: Api, api_engine: sa.Engine) -> None:
    rows = "".join(f"{number};+7916000{number:04};Имя {number}\n" for number in range(1500))
    accepted = upload(api, "phone;note;name\n" + rows)

    job = finish(api, api_engine, accepted)

    assert (job["state"], job["rejected"]) == ("completed", 1500)
    assert len(job["errors"]) == 100
    assert job["errors"][1] == {"line": 3, "reason": "phone: '1' has too few or too many digits"}
    answer = api.get(f"/client/import/{job['id']}/rejected/")
    assert answer.content_type == "text/csv; charset=utf-8"
    found = list(csv.reader(io.StringIO(answer.data.decode("utf-8-sig")), delimiter=";"))
    assert found[0] == ["line", "reason", "phone", "note", "name"]
    assert found[1500] == ["1501", "phone: '1499' has too few or too many digits", "1499", "+79160001499", "Имя 1499"]
    assert len(found) == 1501


def test_downloaded_rows_can_be_imported_once_mended(api: Api, api_engine: sa.Engine) -> None:
    first = finish(api, api_engine, upload(api, 'phone\tname\n8916123456\t"a\tb"\n'))
    answer = api.get(f"/client/import/{first['id']}/rejected/").data

    second = finish(api, api_engine, upload(api, answer.replace(b"\t8916123456\t", b"\t89161234567\t")))

    assert second["created"] == 1
    assert body(api.get("/client/"))[0]["attributes"]["name"] == "a\tb"


def test_no_cell_of_the_download_is_a_formula(api: Api, api_engine: sa.Engine) -> None:
    job = finish(api, api_engine, upload(api, 'phone,=name\n=1+1,"=HYPERLINK(""http://x"")"\n'))

    text = api.get(f"/client/import/{job['id']}/rejected/").data.decode("utf-8-sig")

    found = list(csv.reader(io.StringIO(text)))
    assert found[0] == ["line", "reason", "phone", "'=name"]
    assert found[1][2:] == ["'=1+1", '\'=HYPERLINK("http://x")']


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("=1", "'=1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+A1", "'-2+A1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("＝1", "'＝1"),
        ("+7 (916) 123-45-67", "+7 (916) 123-45-67"),
        ("-5.2", "-5.2"),
        ("Anna = 1", "Anna = 1"),
        ("", ""),
    ],
)
def test_formulas_become_text_and_numbers_stay(cell: str, expected: str) -> None:
    assert without_formula(cell) == expected


def test_imports_are_listed_newest_first(api: Api) -> None:
    for _ in range(3):
        upload(api, GOOD)

    answer = api.get("/client/import/?page=1&page_size=2")

    assert [job["id"] for job in body(answer)] == [3, 2]
    assert '"total":3' in answer.headers["X-Pagination"]
    assert [job["id"] for job in body(api.get("/client/import?page=2&page_size=2"))] == [1]


@pytest.mark.parametrize(
    "path", ["/client/import/7/", "/client/import/7/rejected/", "/client/import/99999999999999999999/"]
)
def test_unknown_import_is_not_found(api: Api, path: str) -> None:
    assert api.get(path).status_code == 404


def test_upload_wakes_the_dispatcher_at_commit(api: Api, api_engine: sa.Engine) -> None:
    with listening(api_engine, "work") as wait_for:
        upload(api, "phone\n")
        # Notifications come in the order of the commits: had the refused file sent one, it would be before this.
        with api_engine.begin() as connection:
            connection.exec_driver_sql("NOTIFY work, 'after the refused file'")
        assert wait_for(1) == ["after the refused file"]
        upload(api, GOOD)
        assert wait_for(2) == ["after the refused file", imports.IMPORT]


@pytest.fixture(scope="module")
def server(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The API as it runs in production: its address and the pid of its first process."""
    port = free_port()
    environment = {**os.environ, "DATABASE_URL": shared_database_url, "API_PORT": str(port)}
    log = tmp_path_factory.mktemp("api") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "api"], env=environment, stdout=output, stderr=output)

    def answers() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{port}/healthz", timeout=1).ok
        except requests.RequestException:
            return False

    try:
        assert wait_until(answers, 30), log.read_text()
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(30)


def memory_peaks(pid: int) -> int:
    """The largest memory, in MB, that any process of this server has had so far."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    texts = [Path(f"/proc/{each}/status").read_text(encoding="ascii") for each in [str(pid), *children]]
    return max(int(text.split("VmHWM:")[1].split()[0]) for text in texts) // 1024


@pytest.mark.usefixtures("api_session")
def test_two_gigabytes_are_refused_at_once(server: tuple[str, int]) -> None:
    host, port = server[0].split(":")
    head = (
        f"POST /api/v1/client/import/ HTTP/1.1\r\nHost: {server[0]}\r\nAuthorization: Bearer {FULL_KEY}\r\n"
        f"Content-Type: text/csv\r\nContent-Length: {2**31}\r\n\r\nphone\n"
    )
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        answer = b""
        while b"}" not in answer and (piece := connection.recv(65536)):
            answer += piece

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"larger than 512 MB" in answer
    assert time.monotonic() - began < at_this_load(2)


def test_body_of_unknown_length_is_stored_in_bounded_memory(server: tuple[str, int], api_session: Session) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"phone,name\n"
        for number in range(2000):
            yield f"+7916{number:07d},{'x' * 1000}\n".encode() * 30

    before = memory_peaks(server[1])
    answer = requests.post(
        f"http://{server[0]}/api/v1/client/import/",
        data=pieces(),
        headers={"Authorization": f"Bearer {FULL_KEY}", "Content-Type": "text/csv"},
        timeout=60,
    )

    assert (answer.status_code, answer.json()["total"]) == (202, 60_000)
    assert memory_peaks(server[1]) - before < 40  # MB, of a file of 61
    assert stored(api_session)[1] > 50


def test_upload_that_breaks_off_leaves_nothing(server: tuple[str, int], api_session: Session) -> None:
    host, port = server[0].split(":")
    head = (
        f"POST /api/v1/client/import/ HTTP/1.1\r\nHost: {server[0]}\r\nAuthorization: Bearer {FULL_KEY}\r\n"
        "Content-Type: text/csv\r\nContent-Length: 5000000\r\n\r\n"
    )

    def transactions() -> int:
        # In a transaction of its own: within one, PostgreSQL goes on showing what it saw first.
        api_session.rollback()
        count: int = api_session.scalars(
            sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND xact_start IS NOT NULL AND application_name = 'mailings api'"
            )
        ).one()
        return count

    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + GOOD.encode() * 50_000)
        assert wait_until(lambda: transactions() == 1, 20)

    assert wait_until(lambda: transactions() == 0, 20)
    assert stored(api_session) == (0, 0)


@pytest.mark.parametrize(("path", "content_type"), [("import/", "text/csv"), ("", "application/json")])
@pytest.mark.parametrize("ending", [b"", b"0\r\n", b"100\r\n+79", b"zz\r\n+79\r\n"])
def test_chunks_that_break_off_or_are_damaged_are_refused(
    server: tuple[str, int], api_session: Session, path: str, content_type: str, ending: bytes
) -> None:
    host, port = server[0].split(":")
    head = (
        f"POST /api/v1/client/{path} HTTP/1.1\r\nHost: {server[0]}\r\nAuthorization: Bearer {FULL_KEY}\r\n"
        f"Content-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    content = GOOD.encode() if content_type == "text/csv" else b'{"phone": "+79161234567"}'

    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(content), content) + ending)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b"broke off on the way" in answer
    assert stored(api_session) == (0, 0)
    assert api_session.scalars(sa.select(Client)).all() == []
