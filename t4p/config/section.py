"""What every part of a configuration is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


# One dataset may stand there without brackets.
Places = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Listed = BeforeValidator(_listed)

# The context of a validation that leaves the rules between keys to its caller, who wants those of all sections at once.
RULES_LATER = {"rules": "later"}


class Problem(NamedTuple):
    """What is wrong with a configuration.

    Attributes:
        keys: dotted keys that it is about; those that a section's own rules name are relative to the section.
        text: what was found, what is wanted, and the next move. It names the keys where they are several.
    """

    keys: tuple[str, ...]
    text: str

    @property
    def where(self) -> str:
        """The key, or of several the section that they share; may be empty."""
        if len(self.keys) == 1:
            return self.keys[0]
        parents = [key.split(".")[:-1] for key in self.keys]
        shared = [parts[0] for parts in zip(*parents, strict=False) if len(set(parts)) == 1]
        return ".".join(shared)

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


class Section(BaseModel):
    """A frozen part of the tree that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def rules(self) -> Iterator[Problem]:
        """What does not hold between the keys of this section; their names are relative to it."""
        yield from ()

    @model_validator(mode="after")
    def _rules_hold(self, info: ValidationInfo) -> Self:
        if info.context is not RULES_LATER and (broken := list(self.rules())):
            raise ValueError("; ".join(str(problem) for problem in broken))
        return self


def sections_in(section: Section, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Section]]:
    """A section and all sections in it, each with its path."""
    yield path, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from sections_in(value, (*path, name))
