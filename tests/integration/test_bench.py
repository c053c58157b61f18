"""The program that measures speed, at a size that says nothing about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench import machine, throughput
from bench.__main__ import measure
from bench.figures import Figure, Run
from bench.gateways import SimulatorGateway
from bench.machinery import ROOT, Bench
from bench.system import System

MESSAGES = 700


class Tiny:
    """The throughput of a few messages through the simulator, which needs no program beside our servers."""

    SECTION = throughput.SECTION
    TITLE = throughput.TITLE

    def run(self, bench: Bench) -> Iterator[Figure]:
        with (
            SimulatorGateway() as gateway,
            bench.database(MESSAGES) as database,
            System(bench, database, gateway, sending_processes=1) as system,
        ):
            yield from throughput.figures("tiny", system.send_mailing(patience_seconds=60), None, "")


class Failing:
    """A section that ends in an error after its first figure."""

    SECTION = "failing"
    TITLE = "A failing section"

    def run(self, bench: Bench) -> Iterator[Figure]:
        yield Figure(self.SECTION, "before", bench.size(2, 1), "")
        raise RuntimeError("made to fail")


@pytest.fixture
def tiny_run() -> Run:
    titles = {Tiny.SECTION: Tiny.TITLE, Failing.SECTION: Failing.TITLE}
    return Run(datetime.now(UTC), machine.look(), quick=True, titles=titles)


def test_mailing_is_sent_by_real_processes_and_every_figure_written(tiny_run: Run, tmp_path: Path) -> None:
    assert measure(tiny_run, [Tiny()], tmp_path, keep=False) == 0

    record = json.loads((tmp_path / f"{tiny_run.stem}.json").read_text())
    figures = {figure["name"]: figure for figure in record["figures"]}
    assert figures["tiny"]["value"] > 0
    assert figures["tiny"]["note"].startswith(f"{MESSAGES} in ")
    assert "each id once" in figures["tiny"]["note"]
    assert figures["tiny: memory of a sending process"]["value"] > 10
    assert figures["tiny: WAL"]["value"] > 100
    for group in ("sender", "dispatcher", "PostgreSQL", "RabbitMQ", "gateway"):
        assert group in figures["tiny: processor time"]["note"]
    assert 0 < figures["tiny: first message after"]["value"] < 60
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["postgresql"][0].isdigit()
    assert record["machine"]["rabbitmq"][0].isdigit()


def test_figures_of_a_section_that_fails_are_kept(tiny_run: Run, tmp_path: Path) -> None:
    assert measure(tiny_run, [Failing()], tmp_path, keep=False) == 1

    record = json.loads((tmp_path / f"{tiny_run.stem}.json").read_text())
    assert [(figure["section"], figure["value"]) for figure in record["figures"]] == [("failing", 1)]


def test_sections_are_listed_without_measuring() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "bench", "--list"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert {"throughput", "references", "clients", "scaling", "profile"} <= {
        line.split()[0] for line in finished.stdout.splitlines()
    }


def test_unknown_section_is_refused() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "bench", "speed"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert finished.returncode == 2
    assert "no such section: speed" in finished.stderr
