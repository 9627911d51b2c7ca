from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dino_core.checkpoints.io import load_checkpoint, save_checkpoint
from dino_core.checkpoints.published.names import BUILT_IN
from dino_core.detections import ClassMap
from dino_core.engine.start import start_from


def test_weights_of_a_variant_bring_their_network(tmp_path: Path) -> None:
    """As of imported files: positions of detrex, resizing of mmdet, which training ends."""
    given = load_checkpoint(BUILT_IN["dino-nano"])
    model = replace(given.meta.model, position_temperature=10000.0, position_offset=-0.5)
    preprocess = replace(given.meta.preprocess, interpolation="plain", rounding="nearest")
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, given.state_dict, replace(given.meta, model=model, preprocess=preprocess))
    for name, weights in (("dino-nano", path), (str(path), None)):
        start = start_from(name, weights, ClassMap.from_names(["cat"]))
        assert start.model.config == replace(model, num_classes=1)
        assert start.preprocess.interpolation == "antialiased"
        assert torch.equal(start.model.level_embed, given.state_dict["level_embed"])
    assert start.preprocess.rounding == "nearest"
