"""`python -m bench [SECTION ...]`."""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, cast

from rich.console import Console
from rich.markup import escape

from bench import machine
from bench.figures import Figure, Run, cells, update_document, update_readme, write_results
from bench.machinery import ROOT, Bench

# In the order of the document. Each module has SECTION, TITLE and run(bench).
MODULES = (
    "throughput",
    "references",
    "clients",
    "scaling",
    "partitions",
    "api",
    "api_while_sending",
    "imports",
    "growth",
    "million",
    "profile",
)
DOCUMENT = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"


class Section(Protocol):
    """What a module of measurements offers."""

    SECTION: str
    TITLE: str

    def run(self, bench: Bench) -> Iterator[Figure]:
        """Measure, and give each figure as soon as it is known."""
        ...


def main() -> int:
    """Run the sections asked for; the exit status tells whether they ran, never how fast."""
    sections = {found.SECTION: found for found in map(_load, MODULES)}
    options = _arguments(sections).parse_args()
    if options.list:
        for section in sections.values():
            print(f"{section.SECTION:20} {section.TITLE}")
        return 0
    if unknown := [name for name in options.sections if name not in sections]:
        print(f"no such section: {', '.join(unknown)}; see --list", file=sys.stderr)
        return 2
    chosen = [section for name, section in sections.items() if name in options.sections or not options.sections]
    titles = {section.SECTION: section.TITLE for section in sections.values()}
    run = Run(datetime.now(UTC), machine.look(), options.quick, titles)
    return measure(run, chosen, options.results, keep=not (options.quick or options.no_document))


def _arguments(sections: Iterable[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure speed beside references, on servers and gateways of its own. Nothing passes or fails.",
        epilog=f"sections: {' '.join(sections)}. Figures go to bench/results/; those of a full run also replace their "
        "sections in docs/performance.md and the table in README.md.",
    )
    parser.add_argument("sections", nargs="*", metavar="section", help="what to measure (default: everything)")
    parser.add_argument("--quick", action="store_true", help="small numbers: a look in minutes, no figures to quote")
    parser.add_argument("--list", action="store_true", help="list the sections")
    parser.add_argument("--no-document", action="store_true", help="leave docs/performance.md and README.md alone")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIRECTORY", help="instead of bench/results")
    return parser


def measure(run: Run, chosen: Sequence[Section], results: Path, *, keep: bool) -> int:
    """Run these sections, write what they find, and return the exit status; `keep` writes it to the documents, too."""
    console = Console(highlight=False)
    console.print(escape(run.origin))
    figures: list[Figure] = []
    failed: list[str] = []
    with Bench(quick=run.quick, say=lambda text: console.print(f"  [dim]{escape(text)}[/]")) as bench:
        for section in chosen:
            console.rule(escape(section.TITLE))
            measured: list[Figure] = []
            theft = machine.Theft()
            try:
                for figure in itertools.chain(section.run(bench), _stolen(section, theft)):
                    measured.append(figure)
                    _show(console, figure)
            except Exception:  # noqa: BLE001  # One section's trouble must not cost the figures of the others.
                console.print_exception()
                failed.append(section.SECTION)
            finally:  # Also when the run is interrupted.
                figures += measured
                if measured:
                    console.print(f"  written to {write_results(results, run, figures)}")
            if keep and section.SECTION not in failed:
                update_document(DOCUMENT, run, measured)
                update_readme(README, run, measured)
    if failed:
        console.print(f"[red]Not measured to the end: {', '.join(failed)}[/]")
    return 1 if failed else 0


def _stolen(section: Section, theft: machine.Theft) -> Iterator[Figure]:
    yield Figure(section.SECTION, "processor time that the machine's host withheld", 100 * theft.share, "%")


def _show(console: Console, figure: Figure) -> None:
    name, value, reference, ratio, note = (escape(text) for text in cells(figure))
    beside = f"  [cyan]{ratio}[/] of {reference}" if ratio else ""
    remark = f"  [dim]{note}[/]" if note else ""
    console.print(f"  {name}: [bold]{value}[/]{beside}{remark}")


def _load(name: str) -> Section:
    return cast("Section", importlib.import_module(f"bench.{name}"))


if __name__ == "__main__":
    sys.exit(main())
