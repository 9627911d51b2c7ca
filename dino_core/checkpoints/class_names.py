"""Class names that may mean the same: they are suggested to the user, never assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dino_core.errors import ConfigError
from dino_core.suggestions import nearest

SYNONYMS: tuple[frozenset[str], ...] = tuple(
    frozenset(group.split(", "))
    for group in (
        "couch, sofa",
        "airplane, aeroplane, plane, aircraft",
        "tv, tvmonitor, television",
        "motorcycle, motorbike",
        "pottedplant, houseplant",
        "diningtable, table",
        "cellphone, mobilephone, phone",
        "person, people, human, pedestrian",
        "bicycle, bike",
        "car, automobile",
        "hairdrier, hairdryer",
        "donut, doughnut",
        "refrigerator, fridge",
        "trafficlight, trafficsignal",
        "remote, remotecontrol",
        "mouse, computermouse",
        "keyboard, computerkeyboard",
        "cow, cattle",
    )
)
"""Names that differ between COCO, Pascal VOC and Open Images, without spaces."""


def near_names(new: Sequence[str], old: Sequence[str]) -> dict[str, str]:
    """Names in `new` that `old` has in another case, number, or by a synonym.

    Returns: Maps a new name to the old one that may mean the same. Names in both are left out.
    """
    free = {name: _forms(name) for name in old if name and name not in new}
    near = {}
    for name in new:
        if name and name not in old:
            forms = _forms(name)
            match = next((other for other, others in free.items() if forms & others), None)
            if match is not None:
                near[name] = match
    return near


def _forms(name: str) -> frozenset[str]:
    """All spellings that count as the same name: lower case without spaces, singular, synonyms."""
    plain = re.sub(r"[\W_]+", "", name.lower())
    forms = {plain}
    for ending, instead in (("ies", "y"), ("ves", "fe"), ("ves", "f"), ("es", ""), ("s", "")):
        if plain.endswith(ending) and len(plain) > len(ending) + 1:
            forms.add(plain.removesuffix(ending) + instead)
    for group in SYNONYMS:
        if group & forms:
            forms |= group
    return frozenset(forms)


def parse_aliases(
    pairs: Sequence[str], new: Sequence[str], old: Sequence[str]
) -> Mapping[str, str]:
    """Parse class aliases like `sofa=couch`.

    Args:
        pairs: What the user typed.
        new: Names of the data's classes.
        old: Names of the model's classes.

    Returns: Maps a name of the data to a name of the model.

    Raises:
        ConfigError: An alias has no `=`, or one of its names does not exist; the nearest existing
            one is suggested.
    """
    aliases = {}
    for pair in pairs:
        name, sign, other = (part.strip() for part in pair.partition("="))
        if not sign or not name or not other:
            raise ConfigError(
                f"class alias '{pair}': expected NAME=NAME",
                "a class of the data, =, a class of the model, e.g. sofa=couch",
            )
        for what, one, known in (("data has", name, new), ("model has", other, old)):
            if one not in known:
                hint = (
                    nearest(one, filter(None, known)) or f"it has {', '.join(filter(None, known))}"
                )
                raise ConfigError(f"class alias '{pair}': the {what} no class '{one}'", hint)
        aliases[name] = other
    return aliases
