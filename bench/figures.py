"""What a run found: figures, the tables made of them, and the places where those tables are kept."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from bench.machine import Machine

DOCUMENT_MARKERS = ("<!-- figures: begin -->", "<!-- figures: end -->")
README_SECTION = "throughput"
README_MARKERS = ("<!-- speed: begin -->", "<!-- speed: end -->")
_SECTION = re.compile(r"<!-- section: (?P<name>[a-z0-9_]+) -->\n(?P<text>.*?)(?=<!-- section: |\Z)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured value, and what the same run measured of a reference in the same unit."""

    section: str
    name: str
    value: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the reference this is; None without one."""
        return self.value / self.reference if self.reference else None


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of the program: when, where and on what it measured."""

    started_at: datetime
    machine: Machine
    quick: bool
    titles: Mapping[str, str]  # of the sections, in their order

    @property
    def stem(self) -> str:
        """The name of its files, without their endings."""
        return f"{self.started_at:%Y%m%dT%H%M%SZ}-{self.machine.commit}"

    @property
    def origin(self) -> str:
        """Where its figures come from, in a line."""
        hurry = ", a quick run: small numbers, for trying the program" if self.quick else ""
        return f"Measured {self.started_at:%Y-%m-%d %H:%M} UTC at {self.machine.commit}{hurry}. {self.machine.summary}."


def sections_of(figures: Iterable[Figure]) -> dict[str, list[Figure]]:
    """The figures by section, both in the order in which they came."""
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(figure.section, []).append(figure)
    return found


def format_number(value: float) -> str:
    """A number as a person reads it: three significant digits below 1,000, thousands apart above."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"


def format_ratio(ratio: float | None) -> str:
    """A ratio as a share below one, as a multiple above."""
    if ratio is None:
        return ""
    return f"{ratio:.0%}" if ratio < 1 else f"{format_number(ratio)}x"


def cells(figure: Figure) -> tuple[str, str, str, str, str]:
    """What a table shows of a figure: name, value, reference, ratio, note."""
    reference = ""
    if figure.reference is not None:
        reference = f"{format_number(figure.reference)} ({figure.reference_name})"
    return (
        figure.name,
        f"{format_number(figure.value)} {figure.unit}".rstrip(),
        reference,
        format_ratio(figure.ratio),
        figure.note,
    )


def table(figures: Iterable[Figure]) -> str:
    """A Markdown table."""
    lines = ["| what | figure | reference in the same run | ratio | remarks |", "|---|---:|---:|---:|---|"]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in cells(figure)) + " |" for figure in figures]
    return "\n".join(lines)


def write_results(directory: Path, run: Run, figures: Sequence[Figure]) -> Path:
    """Write the run's figures as JSON and as Markdown, over those it wrote before; the path of the Markdown."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {
        "started_at": run.started_at.isoformat(),
        "quick": run.quick,
        "machine": dataclasses.asdict(run.machine),
        "figures": [dataclasses.asdict(figure) | {"ratio": figure.ratio} for figure in figures],
    }
    (directory / f"{run.stem}.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    parts = [f"# Figures\n\n{run.origin}"]
    parts += [f"## {run.titles[name]}\n\n{table(found)}" for name, found in sections_of(figures).items()]
    document = directory / f"{run.stem}.md"
    document.write_text("\n\n".join(parts) + "\n")
    return document


def update_document(document: Path, run: Run, figures: Iterable[Figure]) -> bool:
    """Replace the sections that were measured between the document's markers; False if it has no markers.

    Sections keep the order of `run.titles`; those of earlier runs stay as they are.
    """
    text = document.read_text()
    if (old := _between(text, DOCUMENT_MARKERS)) is None:
        return False
    sections = {match["name"]: match["text"].strip() for match in _SECTION.finditer(old)}
    for name, found in sections_of(figures).items():
        sections[name] = f"### {run.titles[name]}\n\n{run.origin}\n\n{table(found)}"
    order = [name for name in run.titles if name in sections] + [name for name in sections if name not in run.titles]
    new = "\n\n".join(f"<!-- section: {name} -->\n{sections[name]}" for name in order)
    document.write_text(_replaced(text, DOCUMENT_MARKERS, new))
    return True


def update_readme(readme: Path, run: Run, figures: Iterable[Figure]) -> bool:
    """Replace what stands between the README's markers by the throughput; False without one or the other."""
    text = readme.read_text()
    rates = [figure for figure in figures if figure.section == README_SECTION and figure.unit == "messages/s"]
    if _between(text, README_MARKERS) is None or not rates:
        return False
    lines = ["| | messages/s | reference in the same run | ratio |", "|---|---:|---:|---:|"]
    for figure in rates:
        name, _, reference, ratio, _ = cells(figure)
        lines.append(f"| {name} | {format_number(figure.value)} | {reference} | {ratio} |")
    readme.write_text(_replaced(text, README_MARKERS, f"{run.origin}\n\n" + "\n".join(lines)))
    return True


def _between(text: str, markers: tuple[str, str]) -> str | None:
    _, begin, rest = text.partition(markers[0])
    inside, end, _ = rest.partition(markers[1])
    return inside if begin and end else None


def _replaced(text: str, markers: tuple[str, str], inside: str) -> str:
    before, _, rest = text.partition(markers[0])
    _, _, after = rest.partition(markers[1])
    return f"{before}{markers[0]}\n{inside}\n{markers[1]}{after}"
