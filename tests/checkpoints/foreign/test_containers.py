from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dino_core.checkpoints.foreign.containers import find_weights
from dino_core.checkpoints.foreign.convert import import_checkpoint
from dino_core.checkpoints.foreign.layouts import recognize
from dino_core.checkpoints.foreign.unpickle import load_pickled
from dino_core.errors import CheckpointError

CONTAINERS = Path(__file__).parents[3] / "../shared/parity/foreign/containers"
HERE = Path("some.pth")
SIGN = "transformer.level_embed"
WEIGHTS_OF = {
    "mmengine_training": "state_dict", "mmengine_published": "state_dict",
    "mmengine_hub_legacy_serialization": "state_dict", "mmengine_ema": "state_dict",
    "mmengine_ddp_prefix": "state_dict", "detectron2_training": "model",
    "detrex_ema": "model", "bare_state_dict": "", "official_args": "model",
    "official_ema": "model", "official_ddp_prefix": "model",
}  # fmt: skip


def content(**sets: float) -> dict[str, Any]:
    """A file whose sets of weights are told apart by their one value."""
    return {key: {SIGN: torch.full((2,), value)} for key, value in sets.items()} | {"epoch": 3}


@pytest.mark.parametrize(
    ("sets", "usual", "averaged", "trained"),
    [
        ({"model": 1}, 1, None, 1),
        ({"model": 1, "ema_model": 2}, 1, 2, 1),  # official
        ({"ema_model": 2}, 2, 2, None),
        ({"model": 1, "ema_state": 2}, 1, 2, 1),  # detrex
        ({"state_dict": 1}, 1, None, 1),  # mmengine, which swaps
        ({"state_dict": 2, "ema_state_dict": 1}, 2, 2, 1),
    ],
)
def test_which_weights(
    sets: dict[str, float], usual: float, averaged: float | None, trained: float | None
) -> None:
    for ema, wanted in ((None, usual), (True, averaged), (False, trained)):
        if wanted is None:
            with pytest.raises(CheckpointError, match="does not say that any of its weights"):
                find_weights(content(**sets), HERE, ema)
            continue
        found = find_weights(content(**sets), HERE, ema)
        assert found.tensors[SIGN].tolist() == [wanted] * 2
        assert sets[found.key] == wanted
        assert found.averaged_too == (averaged is not None and wanted != averaged)


def test_weights_alone_in_half_precision_with_the_prefix_of_parallel_training() -> None:
    tensors = {f"module.{SIGN}": torch.ones(2, dtype=torch.float16), "n": torch.tensor(3)}
    found = find_weights(tensors, HERE)
    assert found.key == ""
    assert found.tensors.keys() == {SIGN, "n"}
    assert found.tensors[SIGN].dtype == torch.float32
    assert found.tensors["n"].dtype == torch.int64
    both = {SIGN: torch.zeros(2), f"module.{SIGN}": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"'transformer.level_embed' and 'module\..* differ"):
        find_weights({"model": both}, HERE)


def test_arrays_of_detectron2() -> None:
    arrays = {"a": np.ones(2, ">f8"), "n": np.array(3, np.uint8), "s": np.array(["x"])}
    found = find_weights({"model": arrays, "__author__": "torchvision"}, HERE)
    assert found.tensors.keys() == {"a", "n"}
    assert found.tensors["a"].dtype == torch.float32
    assert (found.tensors["a"].tolist(), found.tensors["n"].item()) == ([1, 1], 3)


def test_counter_of_averaging_is_no_weight() -> None:
    averaged = {"steps": torch.tensor(7), f"module.{SIGN}": torch.ones(2)}
    found = find_weights({"state_dict": {SIGN: torch.zeros(2)}, "ema_state_dict": averaged}, HERE)
    assert found.tensors[SIGN].tolist() == [0, 0]
    found = find_weights({**content(state_dict=0.0), "ema_state_dict": averaged}, HERE, False)
    assert found.tensors.keys() == {SIGN}


def test_what_mmengine_tells() -> None:
    told = content(state_dict=1.0)
    told["meta"] = {"cfg": "model = dict()", "dataset_meta": {"CLASSES": ["cat", "dog"]}}
    found = find_weights(told, HERE)
    assert (found.config_text, found.class_names) == ("model = dict()", ("cat", "dog"))
    for strange in (
        None,
        [],
        {"cfg": 3, "dataset_meta": []},
        {"dataset_meta": {"classes": "coco"}},
    ):
        told["meta"] = strange
        found = find_weights(told, HERE)
        assert (found.config_text, found.class_names) == ("", ())


@pytest.mark.parametrize(
    "nothing", [None, [1, 2], {}, {"epoch": 3}, {"model": {}}, {"model": {"a": "b"}}]
)
def test_no_weights(nothing: Any) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        find_weights(nothing, HERE)


@pytest.mark.skipif(not CONTAINERS.is_dir(), reason="needs ../shared")
class TestFilesOfTheRealClasses:
    def test_all_are_here(self) -> None:
        files = {path.stem for path in CONTAINERS.iterdir()}
        assert files == WEIGHTS_OF.keys() | {"detectron2_backbone"}

    @pytest.mark.parametrize("name", WEIGHTS_OF)
    def test_weights_come_out_without_prefix(self, name: str) -> None:
        path = CONTAINERS / f"{name}.pth"
        found = find_weights(load_pickled(path), path)
        assert found.key == WEIGHTS_OF[name]
        assert len(found.tensors) == 3
        assert not any(n.startswith("module.") for n in found.tensors)
        assert found.averaged_too == (name in ("official_ema", "detrex_ema"))
        if name.startswith("mmengine"):
            assert found.class_names == ("person", "bicycle")
            assert found.config_text == "model = dict(type='DINO')\n"
            assert found.tensors["level_embed"].shape == (4, 8)

    @pytest.mark.parametrize("name", ["official_ema", "detrex_ema", "mmengine_ema"])
    def test_both_sets_of_weights(self, name: str) -> None:
        path = CONTAINERS / f"{name}.pth"
        both = [find_weights(load_pickled(path), path, ema) for ema in (True, False)]
        assert both[0].key != both[1].key
        keys = [set(found.tensors) for found in both]
        missing = {"bbox_embed.6.layers.2.bias"} if name == "detrex_ema" else set()
        assert keys[1] - keys[0] == missing  # detrex averages without the second names

    def test_they_are_no_whole_models(self) -> None:
        for path in sorted(CONTAINERS.iterdir()):
            with pytest.raises(CheckpointError, match=path.name):
                import_checkpoint(path)

    def test_a_backbone_alone_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match="not a checkpoint of DINO"):
            recognize({"backbone.stem.conv1.norm.running_var": torch.zeros(8)}, HERE)
