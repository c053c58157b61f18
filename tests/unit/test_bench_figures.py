"""The tables of measurements, and where they are written."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.figures import (
    Figure,
    Run,
    format_number,
    format_ratio,
    table,
    update_document,
    update_readme,
    write_results,
)
from bench.machine import Machine

TITLES = {"throughput": "Throughput", "clients": "HTTP clients", "growth": "Growth"}
RUN = Run(
    started_at=datetime(2026, 11, 23, 8, 30, tzinfo=UTC),
    machine=Machine(
        processor="Quick One",
        cores=2,
        memory_gib=4.0,
        system="Debian",
        python="3.11.2",
        postgresql="15.1",
        rabbitmq="3.10.8",
        openssl="OpenSSL 3.1",
        load=0.5,
        commit="abc1234",
    ),
    quick=False,
    titles=TITLES,
)
RATE = Figure("throughput", "0 ms", 25_000.0, "messages/s", 100_000.0, "wrk", "each id once")
MEMORY = Figure("throughput", "0 ms: memory", 95.25, "MB")
CALLS = Figure("clients", "plain: aiohttp", 12_000.0, "calls/s", 6000.0, "ours")


@pytest.mark.parametrize(
    ("value", "text"),
    [(144_928.4, "144,928"), (1000, "1,000"), (999.6, "1,000"), (117.9, "118"), (12.345, "12.3"), (5, "5"), (0, "0")],
)
def test_numbers_have_as_many_digits_as_matter(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(("ratio", "text"), [(None, ""), (0.254, "25%"), (1.0, "1x"), (30.41, "30.4x")])
def test_ratio_is_a_share_below_one_and_a_multiple_above(ratio: float | None, text: str) -> None:
    assert format_ratio(ratio) == text


def test_figure_without_a_reference_has_no_ratio() -> None:
    assert MEMORY.ratio is None
    assert dataclasses.replace(MEMORY, reference=0.0).ratio is None  # Nothing to divide by: the reference failed.


def test_table_shows_figure_reference_and_ratio() -> None:
    assert table([RATE, MEMORY]).splitlines()[2:] == [
        "| 0 ms | 25,000 messages/s | 100,000 (wrk) | 25% | each id once |",
        "| 0 ms: memory | 95.2 MB |  |  |  |",
    ]


def test_bars_in_a_remark_do_not_break_the_table() -> None:
    (line,) = table([dataclasses.replace(MEMORY, note="a | b")]).splitlines()[2:]
    assert line.endswith(r"| a \| b |")


def test_results_are_written_again_with_more_figures(tmp_path: Path) -> None:
    write_results(tmp_path / "results", RUN, [RATE])
    document = write_results(tmp_path / "results", RUN, [RATE, CALLS])

    assert {path.name for path in document.parent.iterdir()} == {
        "20261123T083000Z-abc1234.json",
        "20261123T083000Z-abc1234.md",
    }
    record = json.loads(document.with_suffix(".json").read_text())
    assert [figure["ratio"] for figure in record["figures"]] == [0.25, 2.0]
    assert record["machine"]["processor"] == "Quick One"
    assert "## Throughput" in document.read_text()
    assert "## HTTP clients" in document.read_text()


def document_with(tmp_path: Path, generated: str) -> Path:
    document = tmp_path / "performance.md"
    document.write_text(f"# Before\n\n<!-- figures: begin -->\n{generated}\n<!-- figures: end -->\n\nAfter.\n")
    return document


def test_figures_come_between_the_markers_in_the_order_of_the_sections(tmp_path: Path) -> None:
    document = document_with(tmp_path, "")

    assert update_document(document, RUN, [CALLS])
    assert update_document(document, RUN, [RATE])

    text = document.read_text()
    assert text.startswith("# Before\n\n<!-- figures: begin -->\n")
    assert text.endswith("\n<!-- figures: end -->\n\nAfter.\n")
    assert text.index("### Throughput") < text.index("### HTTP clients")
    assert text.count("Measured 2026-11-23 08:30 UTC at abc1234.") == 2  # Each section tells where it comes from.


def test_partial_run_replaces_only_its_sections(tmp_path: Path) -> None:
    document = document_with(tmp_path, "")
    update_document(document, RUN, [RATE, CALLS])
    later = dataclasses.replace(RUN, started_at=datetime(2026, 11, 24, 9, 0, tzinfo=UTC))

    update_document(document, later, [dataclasses.replace(RATE, value=30_000.0)])

    text = document.read_text()
    assert "30,000 messages/s" in text
    assert "25,000 messages/s" not in text
    assert "12,000 calls/s" in text
    assert text.count("### Throughput") == 1
    assert "2026-11-23 08:30" in text
    assert "2026-11-24 09:00" in text


def test_section_that_no_longer_exists_stays_at_the_end(tmp_path: Path) -> None:
    document = document_with(tmp_path, "<!-- section: old -->\n### Old\n\nkept")

    update_document(document, RUN, [RATE])

    text = document.read_text()
    assert text.index("### Throughput") < text.index("### Old\n\nkept")


def test_writing_the_same_figures_twice_changes_nothing(tmp_path: Path) -> None:
    document = document_with(tmp_path, "")
    update_document(document, RUN, [RATE, MEMORY, CALLS])
    once = document.read_text()

    update_document(document, RUN, [RATE, MEMORY, CALLS])

    assert document.read_text() == once


@pytest.mark.parametrize("text", ["nothing", "<!-- figures: begin --> only", "<!-- figures: end --> only"])
def test_document_without_both_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    document = tmp_path / "performance.md"
    document.write_text(text)

    assert not update_document(document, RUN, [RATE])
    assert document.read_text() == text


def test_readme_gets_the_throughput_only(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("Fast.\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nMore.\n")

    assert update_readme(readme, RUN, [RATE, MEMORY, CALLS])

    text = readme.read_text()
    assert "| 0 ms | 25,000 | 100,000 (wrk) | 25% |" in text
    assert "old" not in text
    assert "MB" not in text
    assert "aiohttp" not in text
    assert text.endswith("<!-- speed: end -->\nMore.\n")


@pytest.mark.parametrize(
    ("text", "figures"),
    [("no markers", [RATE]), ("<!-- speed: begin -->old<!-- speed: end -->", [MEMORY, CALLS])],
)
def test_readme_without_markers_or_rates_is_left_alone(tmp_path: Path, text: str, figures: list[Figure]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)

    assert not update_readme(readme, RUN, figures)
    assert readme.read_text() == text
