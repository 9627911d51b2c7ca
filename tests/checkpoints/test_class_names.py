from __future__ import annotations

import pytest

from dino_core.checkpoints.class_names import near_names, parse_aliases
from dino_core.checkpoints.foreign.keymaps.coco import COCO_NAMES
from dino_core.errors import ConfigError

VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def test_the_names_of_voc_that_coco_has_otherwise() -> None:
    assert near_names(VOC, list(COCO_NAMES.values())) == {
        "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle",
        "pottedplant": "potted plant", "sofa": "couch", "tvmonitor": "tv",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("Person", "person"), ("CATS", "cat"), ("bus", "buses"), ("puppies", "puppy"),
        ("knives", "knife"), ("leaf", "leaves"), ("traffic_light", "Traffic-Lights"),
        ("people", "person"), ("cell phone", "mobile phone"), ("red  car", "red car"),
    ],
)  # fmt: skip
def test_case_plural_and_spelling(new: str, old: str) -> None:
    assert near_names([new], ["other", old]) == {new: old}
    assert near_names([old], ["other", new]) == {old: new}


@pytest.mark.parametrize(
    ("new", "old"),
    [("cat", "car"), ("s", ""), ("", "x"), ("cat", "cat"), ("glass", "gla")],
)
def test_what_is_not_near(new: str, old: str) -> None:
    assert near_names([new], [old]) == {}


def test_a_name_that_is_known_already_is_not_offered() -> None:
    assert near_names(["couch", "sofa"], ["couch"]) == {}


def test_aliases() -> None:
    parsed = parse_aliases(["sofa = couch", "van=car"], ["sofa", "van"], ["couch", "car"])
    assert parsed == {"sofa": "couch", "van": "car"}
    for pair, words in [
        ("sofa", "expected NAME=NAME"),
        ("=couch", "expected NAME=NAME"),
        ("soffa=couch", "the data has no class 'soffa'.*did you mean 'sofa'"),
        ("sofa=coach", "the model has no class 'coach'.*did you mean 'couch'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            parse_aliases([pair], ["sofa"], ["couch", ""])
