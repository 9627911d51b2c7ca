"""Names of classes that may mean the same: offered to a person, never assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dino_core.config import nearest
from dino_core.errors import ConfigError

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
"""What COCO, Pascal VOC and Open Images call differently; without spaces."""


def near_names(new: Sequence[str], old: Sequence[str]) -> dict[str, str]:
    """Of the names in `new` that `old` lacks, those that differ by case, plural or a synonym.

    Returns: new name to the old one that may mean the same; an old name that `new` has too is none.
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
    """Everything that a name may be called: without case and spaces, singular, synonyms."""
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
    """`sofa=couch` and the like as new name to old name.

    Args:
        pairs: What a person typed.
        new: Names of the data's classes.
        old: Names of the model's classes.

    Raises:
        ConfigError: not of that form, or a name that is not there, with the nearest one.
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
