"""What the weights of a run were made of, and under which terms: kept in its checkpoints, and in exports of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shards.terms import NOT_STATED, DatasetTerms, name_of_place


@dataclass(frozen=True)
class Terms:
    """What a run saw.

    Attributes:
        datasets: that it was trained on; empty where a version began it that did not note them.
        began_with: those that its first weights were trained on; empty where these were random.
        towers: licence of the CLIP towers that it was trained against.
    """

    datasets: tuple[DatasetTerms, ...] = ()
    began_with: tuple[DatasetTerms, ...] = ()
    towers: str = NOT_STATED

    @property
    def all_datasets(self) -> tuple[DatasetTerms, ...]:
        """Every dataset that the weights have seen, once."""
        return tuple(dict.fromkeys((*self.datasets, *self.began_with)))

    def to_json(self) -> dict[str, Any]:
        """The tree that `parse` reads."""
        return asdict(self)

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> Terms:
        """Read what `to_json` made.

        Raises:
            TypeError, ValueError: it is something else.
        """
        found = {**tree}
        for name in ("datasets", "began_with"):
            found[name] = tuple(DatasetTerms.parse(fields) for fields in found.get(name, ()))
        terms = cls(**found)
        if not isinstance(terms.towers, str):
            raise ValueError(f"the licence of the towers is {terms.towers!r}, wanted text")
        return terms

    def naming(self, config: Mapping[str, Any]) -> Terms:
        """These, or where nobody noted any, what a dumped configuration names, by the names alone."""
        if self.datasets:
            return self
        shards = config.get("data", {}).get("shards", ())
        places = [str(place["url"] if isinstance(place, Mapping) else place) for place in shards]
        pretrained = config.get("model", {}).get("pretrained")
        return Terms(
            tuple(DatasetTerms(name_of_place(place)) for place in places),
            (DatasetTerms(name_of_place(str(pretrained))),) if pretrained else (),
            self.towers,
        )


UNKNOWN = Terms()  # of what versions wrote that noted none
