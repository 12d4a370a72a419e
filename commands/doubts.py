"""What a look at a dataset found, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from shards.plausible.look import Proof


def tell_doubts(proof: Proof) -> None:
    """On stderr, what may be wrong; nothing where nothing is."""
    if rows := proof.of("cannot be right", "suspicious"):
        typer.echo(proof.text(rows), err=True)


def facts_of(proof: Proof) -> dict[str, Any]:
    """For JSON."""
    return {
        "verdict": proof.verdict,
        "num_scenes": proof.num_scenes,
        "num_samples": proof.num_samples,
        "unread": proof.unread,
        "rows": [{**asdict(row.finding), "scenes": list(row.scenes)} for row in proof.rows],
    }
