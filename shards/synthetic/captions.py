"""A sentence about a view: every class that is seen well enough, and nothing else."""

from collections.abc import Sequence

import numpy as np

from shards.synthetic.furniture import LABEL_NAMES, STRUCTURE_NAMES
from shards.synthetic.raycast import Render

MIN_SHARE = 0.005  # of the pixels: 96 of 160x120. Classes, and single objects when they are counted, need this much
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_PLURALS = {"bookshelf": "bookshelves"}
_TEMPLATES = (
    "a photo of {furniture}, with {structure} around",
    "a room with {furniture}; {structure} can be seen",
    "{furniture} in a room, {structure} behind",
    "there is {furniture} here, and {structure}",
    "an indoor view: {furniture}, {structure}",
    "this picture shows {furniture} and {structure}",
    "{structure}, and in front {furniture}",
)
_EMPTY_TEMPLATES = (
    "a photo of {structure}",
    "an empty corner of a room: {structure}",
    "nothing but {structure}",
)
_FURNITURE_ALONE_TEMPLATES = ("a photo of {furniture}", "a close view of {furniture}", "{furniture}, seen from near")
_LAST_STRUCTURE = len(STRUCTURE_NAMES)  # id: "unlabelled" is 0


def visible_labels(render: Render) -> tuple[int, ...]:
    """Class ids that cover at least MIN_SHARE of the pixels, the largest first (then by id)."""
    counts = np.bincount(render.semantic.ravel(), minlength=len(LABEL_NAMES))
    enough = np.flatnonzero(counts >= MIN_SHARE * render.semantic.size)
    return tuple(sorted(enough.tolist(), key=lambda label_id: (-counts[label_id], label_id)))


def caption(render: Render, rng: np.random.Generator) -> str:
    """Name the classes of `visible_labels`, furniture with its number, in a sentence drawn by `rng`."""
    visible = visible_labels(render)
    structure = _enumerate([f"the {LABEL_NAMES[i]}" for i in visible if i <= _LAST_STRUCTURE])
    furniture = _enumerate([_counted(render, i) for i in visible if i > _LAST_STRUCTURE])
    if not structure:
        templates: Sequence[str] = _FURNITURE_ALONE_TEMPLATES
    else:
        templates = _TEMPLATES if furniture else _EMPTY_TEMPLATES
    template = templates[int(rng.integers(len(templates)))]
    return template.format(furniture=furniture, structure=structure)


def _counted(render: Render, label_id: int) -> str:
    """The class with the number of its objects that are seen well enough on their own (one at least)."""
    pixels_of_instance = np.bincount(render.instance[render.semantic == label_id])
    number = max(1, int((pixels_of_instance >= MIN_SHARE * render.semantic.size).sum()))
    name = LABEL_NAMES[label_id]
    if number == 1:
        return f"a {name}"
    return f"{_NUMBERS.get(number, 'several')} {_PLURALS.get(name, name + 's')}"


def _enumerate(names: Sequence[str]) -> str:
    if len(names) <= 1:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
