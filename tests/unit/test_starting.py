"""What the two ways of starting have in common, and what an image must hold."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import stat
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.settings import Settings
from tools import credentials
from tools.local import configuration
from tools.servers import POSTGRESQL_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
# Understood by Compose and the native runner, of no interest to the services.
STARTING_ONLY = {"GATEWAY_PORT", "MAIL_PORT"}
IMAGES = re.findall(r" AS ([a-z]+)-code$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
# Where the programs of an image begin, if that is not just `__main__.py` of the package with its name.
ENTRIES = {
    "migrate": ("db/__main__.py", "db/migrations/env.py", "tools/credentials.py"),
    "sender": ("sender/__main__.py", "sender/health.py"),
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Every service of both Compose files, the development file laid over the other."""
    found: dict[str, Any] = {}
    for name in ("docker-compose.yml", "docker-compose.override.yml"):
        for service, description in yaml.safe_load((ROOT / name).read_text())["services"].items():
            found[service] = found.get(service, {}) | description
    return found


def test_example_names_exactly_the_variables_that_are_read() -> None:
    documented = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert documented == {field.name.upper() for field in dataclasses.fields(Settings)} | STARTING_ONLY


def test_both_ways_of_starting_give_postgresql_the_same_settings(services: dict[str, Any]) -> None:
    arguments = services["postgres"]["command"][1:]

    assert dict(argument.removeprefix("-c").split("=") for argument in arguments) == POSTGRESQL_SETTINGS


@pytest.mark.parametrize("module", ["api", "admin", "sender", "reporter", "db", "simulator", "bench"])
def test_every_program_explains_itself_without_any_settings(module: str) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, env={}, capture_output=True, text=True, check=False
    )

    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout.startswith(f"usage: python -m {module}")


def test_compose_publishes_ports_on_the_loopback_only(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]

    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("wanted", ["restart", "logging", "cap_drop", "security_opt"])
def test_every_container_is_restarted_confined_and_does_not_fill_the_disk(
    services: dict[str, Any], wanted: str
) -> None:
    assert [name for name, service in services.items() if not service.get(wanted)] == []


def test_locks_carry_hashes_and_no_address() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        text = lock.read_text()
        pinned = re.findall(r"^[a-z0-9-]+==.*\\\n    --hash=sha256:", text, re.MULTILINE)
        assert len(pinned) == len(re.findall(r"^[^ #\n]", text, re.MULTILINE)), lock
        assert "://" not in text
        assert "--index" not in text
        assert "--find-links" not in text


@pytest.mark.parametrize("image", IMAGES)
def test_image_has_every_package_that_its_code_imports(image: str) -> None:
    lock = (ROOT / "requirements" / f"{image}.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    # For instance psycopg2 comes from psycopg2-binary.
    distributions = packages_distributions()

    entries = ENTRIES.get(image, (f"{image}/__main__.py",))
    foreign = {name.partition(".")[0] for name in imported_from([ROOT / entry for entry in entries])}
    for module in foreign & set(distributions):
        sources = {re.sub(r"[-_.]+", "-", name).lower() for name in distributions[module]}
        assert sources & locked, f"{module} is imported, but requirements/{image}.txt lacks {sources}"


def imported_from(entries: list[Path]) -> set[str]:
    """Every name that these files import, themselves or through other files of ours."""
    names: set[str] = set()
    waiting, seen = list(entries), set(entries)
    while waiting:
        imported = imports_of(ast.parse(waiting.pop().read_text()))
        names |= imported
        ours = {file for name in imported for file in files_of(name)} - seen
        seen |= ours
        waiting += ours
    return names


def imports_of(tree: ast.AST) -> set[str]:
    """The modules that a file imports, and the names it takes from them, which may be modules, too."""
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files_of(module: str) -> list[Path]:
    """Our files behind a module's name; none if it is not ours."""
    path = ROOT / module.replace(".", "/")
    return [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()]


# --- .env and the secrets ---------------------------------------------------------------------------------------------


def test_environment_wins_over_env_file_and_empty_values_do_not_count(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("LOG_LEVEL=DEBUG\nAPI_PORT=9000\nGATEWAY_TOKEN=from-file\nREPORT_TIME=\n")

    given = configuration({"LOG_LEVEL": "ERROR", "GATEWAY_TOKEN": "", "REPORT_TIME": ""}, env_file)

    assert given == {"LOG_LEVEL": "ERROR", "API_PORT": "9000", "GATEWAY_TOKEN": "from-file"}


def test_variable_naming_a_file_counts_as_the_variable(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("API_KEY_FILE=/in/env/file\nSECRET_KEY=in-env-file\n")

    given = configuration({"API_KEY": "set", "SECRET_KEY_FILE": "/set"}, env_file)

    assert given == {"API_KEY": "set", "SECRET_KEY_FILE": "/set"}


def test_missing_env_file_is_no_error(tmp_path: Path) -> None:
    assert configuration({"API_KEY": "set"}, tmp_path / ".env") == {"API_KEY": "set"}


def test_made_up_secret_stays_the_same_and_is_for_its_owner_only(tmp_path: Path) -> None:
    first = credentials.ensure(tmp_path, "API_KEY", {})

    assert len(first) >= 32
    assert credentials.ensure(tmp_path, "API_KEY", {}) == first
    assert stat.S_IMODE((tmp_path / "api_key").stat().st_mode) == 0o600
    assert credentials.ensure(tmp_path, "API_KEY", {"API_KEY": "given"}) == "given"


def test_containers_get_given_secrets_and_addresses_with_the_servers_passwords(tmp_path: Path) -> None:
    first = run_credentials(tmp_path, {"API_KEY": "given"})
    second = run_credentials(tmp_path, {})

    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert first.stdout == f"Admin login: admin@example.com {files['admin_password']}  (shown once)\n"
    assert second.stdout == ""
    assert files["api_key"] == "given"
    assert (
        files["database_url"] == f"postgresql+psycopg2://mailings:{files['postgres_password']}@postgres:5432/mailings"
    )
    assert files["amqp_url"] == f"amqp://mailings:{files['rabbitmq_password']}@rabbitmq:5672/%2F"
    assert len(files) == 8


def test_containers_show_once_what_a_newcomer_needs_and_did_not_give(tmp_path: Path) -> None:
    shown = run_credentials(tmp_path, {"ADMIN_EMAIL": "anna@example.com"}).stdout

    key, password = ((tmp_path / name).read_text() for name in ("api_key", "admin_password"))
    assert shown == f"API key: {key}  (shown once)\nAdmin login: anna@example.com {password}  (shown once)\n"


def test_given_addresses_of_servers_reach_the_containers(tmp_path: Path) -> None:
    run_credentials(tmp_path, {"DATABASE_URL": "postgresql://elsewhere/mailings"})

    assert (tmp_path / "database_url").read_text() == "postgresql://elsewhere/mailings"


@pytest.mark.parametrize(
    ("arguments", "given", "missing"),
    [
        (["--production"], {}, "GATEWAY_URL and GATEWAY_TOKEN"),
        (["--production"], {"GATEWAY_URL": "http://gateway"}, "GATEWAY_TOKEN"),
        ([], {"GATEWAY_URL": "http://gateway"}, "GATEWAY_TOKEN"),
    ],
)
def test_real_gateway_needs_its_address_and_token(
    tmp_path: Path, arguments: list[str], given: dict[str, str], missing: str
) -> None:
    finished = run_credentials(tmp_path, given, *arguments)

    assert finished.returncode == 2
    assert finished.stderr == f"configuration error: {missing} must be set; see .env.example\n"
    assert list(tmp_path.iterdir()) == []


def run_credentials(directory: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The one-shot service."""
    return subprocess.run(
        [sys.executable, "-m", "tools.credentials", str(directory), *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        check=False,
    )
