"""Under which terms data was given, as far as anybody said: what weights that were made of it should carry along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shards.doors.text import shown
from shards.manifest import Manifest

NOT_STATED = "not stated"
NO_TERMS = "made by this program: no terms"


@dataclass(frozen=True)
class DatasetTerms:
    """A dataset that something was made of.

    Attributes:
        name: the last part of its place.
        source_format: what it was packed from, as `t4p shards formats` names it; "" where nobody noted it.
        num_samples: frames or scenes in it; 0 where nobody noted it.
        licence: terms of the data, in a line.
    """

    name: str
    source_format: str = ""
    num_samples: int = 0
    licence: str = NOT_STATED

    @classmethod
    def of(cls, url: str, manifest: Manifest) -> DatasetTerms:
        """What a manifest says."""
        source_format = str(manifest.provenance.get("source_format", ""))
        return cls(name_of_place(url), source_format, manifest.num_samples, manifest.licence or NOT_STATED)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> DatasetTerms:
        """The same out of JSON.

        Raises:
            TypeError: other fields.
            ValueError: one of another kind.
        """
        found = cls(**fields)
        if not all(isinstance(text, str) for text in (found.name, found.source_format, found.licence)):
            raise ValueError(f"a dataset is {shown(fields, 80)}, wanted texts for its name, source_format and licence")
        if type(found.num_samples) is not int or found.num_samples < 0:
            raise ValueError(f"num_samples is {shown(repr(found.num_samples), 40)}, wanted a whole number")
        return found

    def __str__(self) -> str:
        known = [self.source_format] if self.source_format else []
        known += [f"{self.num_samples:,} samples"] if self.num_samples else []
        about = f" ({', '.join(known)})" if known else ""
        return f"{self.name}{about}: {self.licence}"


def name_of_place(url: str) -> str:
    """What a dataset is called where its place is nobody's business."""
    return url.rstrip("/").rpartition("/")[2]
