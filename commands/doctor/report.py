"""A diagnosis as a table of at most 100 columns, with the commands below it where they can be copied."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from commands.doctor.checks import Check, Diagnosis, diagnose

STYLES = {"works": "green", "missing": "yellow", "broken": "bold red", "skipped": "dim"}

WIDTH = 100


def diagnose_aloud(url: str | None) -> Diagnosis:
    """Make every check, saying on a terminal (of standard error) which one is being made.

    Raises:
        CallError: `url` names no place.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        return diagnose(url)
    with console.status("") as status:

        def before(check: Check, done: int, of: int) -> None:
            status.update(f"trying {check.name} ({done + 1} of {of})")

        return diagnose(url, before)


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print the table, a next move per gap, and the verdict."""
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, width=min(console.width, WIDTH))
    table.add_column("check", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", ratio=1, overflow="fold")
    for row in diagnosis.rows:
        state = row.finding.state
        table.add_row(row.check.name, Text(state, style=STYLES[state]), Text(row.finding.found))
    console.print(table)
    gaps = [row for row in diagnosis.rows if row.finding.fix]
    if gaps:
        console.print("To close a gap:", highlight=False)
    for row in gaps:
        console.print(Text(f"  {row.check.name}", style=STYLES[row.finding.state]))
        # Never wrapped: a command is to be copied in one piece.
        console.print(Text(f"    {row.finding.fix}"), soft_wrap=True)
    console.print(Text(verdict(diagnosis), style="bold"))


def verdict(diagnosis: Diagnosis) -> str:
    """One sentence."""
    failed = [row.check.name for row in diagnosis.failures]
    if failed:
        return f"{len(failed)} needed thing(s) do not work: {', '.join(failed)}"
    absent = [row.check.name for row in diagnosis.rows if row.finding.state in ("missing", "broken")]
    without = f" (without, and not needed: {', '.join(absent)})" if absent else ""
    return f"everything that is needed works{without}"
