from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from factories import tiny_config

from dino_core.checkpoints.surgery import transfer
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError
from dino_core.models.dino import Dino

HEADS = ("decoder.class_embed.0", "query_selection.class_embed")


def model_of(classes: ClassMap, seed: int) -> Dino:
    torch.manual_seed(seed)
    return Dino(tiny_config(len(classes)))


def test_same_classes_copy_everything() -> None:
    classes = ClassMap.from_names(["cat", "dog"])
    old, new = model_of(classes, 1), model_of(classes, 2)
    report = transfer(new, old.state_dict(), classes, classes)
    assert set(report.copied) == set(old.state_dict())
    assert not report.kept and not report.by_class
    for name, tensor in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], tensor)


@pytest.mark.parametrize("queries", [4, 25])
def test_other_numbers_of_queries_take_the_contents_in_turn(queries: int) -> None:
    classes = ClassMap.from_names(["cat", "dog"])
    old, config = model_of(classes, 1), tiny_config(2)
    new = Dino(replace(config, num_queries=queries))
    report = transfer(new, old.state_dict(), classes, classes)
    assert not report.kept
    theirs = old.tgt_embed.weight
    for i, row in enumerate(new.tgt_embed.weight):
        assert torch.equal(row, theirs[i % config.num_queries])


def test_rows_follow_the_names() -> None:
    before = ClassMap(("cat", "", "dog", "cow"), (1, 2, 3, 4))
    after = ClassMap(("dog", "horse", "cat"), (10, 20, 30))
    old, new = model_of(before, 1), model_of(after, 2)
    with torch.no_grad():
        for name in HEADS:
            old.get_parameter(f"{name}.bias").copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    fresh = {n: t.clone() for n, t in new.state_dict().items()}
    report = transfer(new, old.state_dict(), before, after)
    assert report.classes == ("dog", "cat")
    assert set(report.by_class) == {*(f"{h}.{k}" for h in HEADS for k in ("weight", "bias")),
                                    "label_enc.weight"}  # fmt: skip
    ours, theirs = new.state_dict(), old.state_dict()
    prior = -math.log(99)
    for head in HEADS:
        weight = ours[f"{head}.weight"]
        assert torch.equal(weight[0], theirs[f"{head}.weight"][2])
        assert torch.equal(weight[1], fresh[f"{head}.weight"][1])
        assert torch.equal(weight[2], theirs[f"{head}.weight"][0])
        torch.testing.assert_close(ours[f"{head}.bias"], torch.tensor([3.0, prior, 1.0]))
    assert torch.equal(ours["label_enc.weight"][0], theirs["label_enc.weight"][2])
    assert torch.equal(ours["label_enc.weight"][1], fresh["label_enc.weight"][1])
    assert torch.equal(ours["level_embed"], theirs["level_embed"])
    assert prior == pytest.approx(-4.595, abs=1e-3)


def test_equal_counts_of_other_names_are_not_copied_by_position() -> None:
    before, after = ClassMap.from_names(["cat", "dog"]), ClassMap.from_names(["dog", "car"])
    old, new = model_of(before, 1), model_of(after, 2)
    transfer(new, old.state_dict(), before, after)
    weight = new.state_dict()["decoder.class_embed.0.weight"]
    assert torch.equal(weight[0], old.state_dict()["decoder.class_embed.0.weight"][1])
    assert not torch.equal(weight[1], old.state_dict()["decoder.class_embed.0.weight"][0])


def test_other_shapes_and_names_are_reported() -> None:
    classes = ClassMap.from_names(["cat", "dog"])
    old, new = model_of(classes, 1), model_of(classes, 2)
    state = dict(old.state_dict())
    state["level_embed"] = state["level_embed"][:1]
    state["extra"] = torch.zeros(1)
    del state["tgt_embed.weight"]
    report = transfer(new, state, classes, classes)
    assert report.kept == ("level_embed", "tgt_embed.weight")


def test_foreign_weights_are_refused() -> None:
    classes = ClassMap.from_names(["cat", "dog"])
    with pytest.raises(CheckpointError, match="none of the starting weights"):
        transfer(model_of(classes, 1), {"fc.weight": torch.zeros(2, 2)}, classes, classes)


def test_an_alias_takes_the_rows_of_another_name() -> None:
    before, after = ClassMap.from_names(["couch", "cat"]), ClassMap.from_names(["cat", "sofa"])
    old, new = model_of(before, 1), model_of(after, 2)
    report = transfer(new, old.state_dict(), before, after, {"sofa": "couch"})
    for head in (*(f"{h}.weight" for h in HEADS), "label_enc.weight"):
        ours, theirs = new.state_dict()[head], old.state_dict()[head]
        assert torch.equal(ours[0], theirs[1]) and torch.equal(ours[1], theirs[0])
    assert report.classes == ("cat", "sofa") and report.aliases == {"sofa": "couch"}
    assert report.new_classes == () and report.near == {}


def test_near_names_are_offered_not_taken() -> None:
    before, after = ClassMap.from_names(["couch", "cat"]), ClassMap.from_names(["Cats", "sofa"])
    old, new = model_of(before, 1), model_of(after, 2)
    fresh = {n: t.clone() for n, t in new.state_dict().items()}
    report = transfer(new, old.state_dict(), before, after)
    assert report.near == {"Cats": "cat", "sofa": "couch"}
    assert report.classes == () and report.new_classes == ("Cats", "sofa")
    for name in report.by_class:
        assert torch.equal(new.state_dict()[name], fresh[name])


@pytest.mark.parametrize("rows", [0, 1, 2, 9])
def test_any_number_of_rows_in_the_source_is_no_error(rows: int) -> None:
    """A file may have fewer or more label rows than classes."""
    classes = ClassMap.from_names(["cat", "dog"])
    old, new = model_of(classes, 1), model_of(classes, 2)
    fresh = new.state_dict()["label_enc.weight"].clone()
    state = dict(old.state_dict())
    state["label_enc.weight"] = torch.ones(rows, fresh.shape[1])
    report = transfer(new, state, classes, classes)
    taken = new.state_dict()["label_enc.weight"]
    assert report.by_class == ("label_enc.weight",)
    assert torch.equal(taken[: min(rows, 2)], state["label_enc.weight"][:2])
    assert torch.equal(taken[min(rows, 2) :], fresh[min(rows, 2) :])
