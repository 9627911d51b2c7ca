from __future__ import annotations

import numpy as np
import pytest

from dino_core.detections import ClassMap, Detections
from dino_core.errors import ConfigError, DataError


def test_source_ids_with_gaps() -> None:
    classes = ClassMap(("cat", "dog", "bus"), (3, 7, 90))
    assert classes.index_of_id == {3: 0, 7: 1, 90: 2}
    assert classes.indices_of(["bus", "cat"]) == [2, 0]
    assert ClassMap.from_dict(classes.to_dict()) == classes
    assert ClassMap.from_names(["a", "b"], first_id=1).source_ids == (1, 2)


def test_unknown_class_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no class 'dgo'.*did you mean 'dog'"):
        ClassMap(("cat", "dog"), (0, 1)).indices_of(["dgo"])


def test_unused_slots_share_the_empty_name() -> None:
    assert len(ClassMap(("", "cat", ""), (0, 1, 2))) == 3


@pytest.mark.parametrize(
    ("names", "ids", "message"),
    [
        (("a", "a"), (0, 1), "names are not unique: a"),
        (("a", "b"), (1, 1), "ids are not unique"),
        (("a",), (0, 1), "1 class names but 2"),
    ],
)
def test_contradictions(names: tuple[str, ...], ids: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClassMap(names, ids)


def test_to_dict_is_the_jsonl_contract() -> None:
    found = Detections(
        np.array([[1.234, 2, 3, 4]], np.float32),
        np.array([0.91234], np.float32),
        np.array([18]),
        ["dog"],
        width=640,
        height=480,
    )
    assert len(found) == 1
    assert found.to_dict() == {
        "width": 640,
        "height": 480,
        "detections": [{"label": "dog", "class_id": 18, "score": 0.9123, "box": [1.23, 2, 3, 4]}],
    }
