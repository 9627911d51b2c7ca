"""Whole files of detrex and mmdet: every tensor has a place, else the file is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import other_codes
from torch import Tensor

from dino_core.checkpoints.foreign import pickled_values
from dino_core.checkpoints.foreign.convert import import_checkpoint
from dino_core.checkpoints.foreign.keymaps.coco import coco_classes
from dino_core.checkpoints.io import build_model
from dino_core.config import ModelConfig, PreprocessConfig
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError
from dino_core.variants import VARIANTS


@pytest.fixture(autouse=True)
def networks_of_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of one value each, expanded to the published shapes, take no memory here."""
    monkeypatch.setattr(pickled_values, "_ALWAYS", 4 << 30)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def numbered(file: str) -> dict[str, Tensor]:
    """A file of detrex or mmdet, each tensor of another value but those with two names."""
    state = {}
    for index, (name, shape) in enumerate(other_codes.shapes(file).items()):
        state[name] = torch.tensor(float(index)).expand(shape)
        alias = f"transformer.decoder.{name}"
        state[name] = state.get(alias, state[name])
    return state


class TestDetrex:
    @pytest.fixture
    def given(self) -> dict[str, Tensor]:
        return numbered("detrex_4scale_r50")

    def test_import(self, tmp_path: Path, given: dict[str, Tensor]) -> None:
        path = saved(tmp_path / "dino_r50.pth", {"model": given, "iteration": 3})
        imported = import_checkpoint(path)
        config = imported.meta.model
        published = ModelConfig()
        assert config == replace(
            published, num_classes=80, tied_heads=False, position_temperature=10000.0,
            position_offset=-0.5, backbone_frozen_stages=1,
        )  # fmt: skip
        assert imported.meta.preprocess == PreprocessConfig(rounding="nearest")
        labels = json.loads((other_codes.FOREIGN / "labels80.json").read_text())
        classes = imported.meta.classes
        assert classes.names == tuple(row["name"] for row in labels)
        assert classes.source_ids == tuple(row["coco_id"] for row in labels)
        provenance = imported.meta.provenance
        assert (provenance["layout"], provenance["weights"]) == ("detrex", "model")
        assert "10000, offset -0.5 (detrex's usual one" in provenance["notes"][0]
        # the seventh head is the encoder's, the others are apart
        state = imported.state_dict
        for layer in range(6):
            head = given[f"class_embed.{layer}.bias"][0]
            assert state[f"decoder.class_embed.{layer}.bias"].unique() == head
        assert state["query_selection.class_embed.bias"][0] == given["class_embed.6.bias"][0]
        assert (
            len({float(state[f"decoder.bbox_embed.{n}.layers.1.bias"][0]) for n in range(6)}) == 6
        )
        # no row after the last class
        assert state["label_enc.weight"].shape == (81, 256)
        assert (state["label_enc.weight"][80] == 0).all()
        assert (state["label_enc.weight"][:80] == given["label_enc.weight"]).all()
        build_model(imported)

    def test_what_is_asked_for(self, tmp_path: Path, given: dict[str, Tensor]) -> None:
        averaged = {  # without the second names
            n: t + 1 for n, t in given.items() if not n.startswith(("class_embed", "bbox_embed"))
        }
        path = saved(tmp_path / "dino.pth", {"model": given, "ema_state": averaged})
        imported = import_checkpoint(path, ema=True, position_temperature=20.0, position_offset=0.0)
        level = given["transformer.level_embeds"]
        assert torch.equal(imported.state_dict["level_embed"], level + 1)
        config = imported.meta.model
        assert (config.position_temperature, config.position_offset) == (20, 0)
        assert len(imported.meta.provenance["notes"]) == 1
        imported = import_checkpoint(path)
        assert torch.equal(imported.state_dict["level_embed"], level)
        assert "has averaged ones too" in imported.meta.provenance["notes"][1]

    def test_five_scales(self, tmp_path: Path) -> None:
        given = numbered("detrex_5scale_r50")
        imported = import_checkpoint(saved(tmp_path / "dino.pth", {"model": given}))
        config = imported.meta.model
        assert (config.variant, config.num_levels) == ("dino-r50-5scale", 5)
        assert config.backbone_out_indices == (1, 2, 3, 4)
        assert (config.tied_heads, config.position_offset) == (False, -0.5)
        state = imported.state_dict
        assert len(state) == len(given) - 56  # second names of 7 heads of 8 tensors
        assert sum(t.numel() for t in state.values()) - 256 == sum(
            t.numel() for n, t in given.items() if not n.startswith(("class_embed", "bbox_embed"))
        )
        build_model(imported)

    def test_swin(self, tmp_path: Path) -> None:
        given = numbered("detrex_4scale_swinl")
        imported = import_checkpoint(saved(tmp_path / "dino.pth", {"model": given}))
        assert imported.meta.model == replace(
            VARIANTS["dino-swinl-4scale"].model, num_classes=80, tied_heads=False,
            position_temperature=10000.0, position_offset=-0.5,
        )  # fmt: skip
        indices = [n for n in given if n.endswith("relative_position_index")]
        assert len(imported.state_dict) == len(given) - 56 - len(indices)
        merge = imported.state_dict["backbone.body.layers.2.downsample.reduction.weight"]
        assert (merge == given["backbone.layers.2.downsample.reduction.weight"]).all()
        build_model(imported)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"transformer.decoder.layers.5.norms.2.bias": None}, "decoder.layers.5.norm3.bias"),
            ({"class_embed.3.bias": None, "transformer.decoder.class_embed.3.bias": None},
             "1 missing: decoder.class_embed.3.bias"),
            ({"class_embed.3.bias": torch.ones(80)}, "which is another name of it"),
            ({"transformer.tgt_embed.weight": None}, "lacks transformer.tgt_embed.weight"),
            ({"transformer.level_embeds": torch.tensor(1.0)}, "one number in"),
            ({"label_enc.weight": torch.zeros(79, 256)}, "79 rows, fewer than the 80 classes"),
            ({"label_enc.weight": torch.zeros(80, 128)}, r"label_enc.weight is \(81, 128\)"),
            ({"transformer.decoder.layers.6.norms.2.bias": torch.zeros(256)}, "without a place"),
        ],
    )  # fmt: skip
    def test_what_does_not_match_is_named(
        self, tmp_path: Path, given: dict[str, Tensor], change: dict[str, Any], words: str
    ) -> None:
        content = {n: t for n, t in {**given, **change}.items() if t is not None}
        with pytest.raises(CheckpointError, match=words):
            import_checkpoint(saved(tmp_path / "bad.pth", content))


class TestMmdet:
    @pytest.fixture
    def given(self) -> dict[str, Tensor]:
        return numbered("mmdet_4scale_r50")

    def test_import(self, tmp_path: Path, given: dict[str, Tensor]) -> None:
        text = "model = dict(positional_encoding=dict(offset=-0.5, temperature=10000))"
        content = {"meta": {"cfg": text}, "state_dict": given}
        imported = import_checkpoint(saved(tmp_path / "a.pth", content))
        config = imported.meta.model
        assert config == replace(
            ModelConfig(), num_classes=80, tied_heads=False, neck_bias=False, box_eps=1e-5,
            position_temperature=10000.0, position_offset=-0.5,
        )  # fmt: skip
        assert imported.meta.preprocess == PreprocessConfig(
            rounding="nearest", interpolation="plain"
        )
        assert imported.meta.classes == coco_classes()
        # used: all but the batch norms' counters; new: one row of the label embedding
        counters = [n for n in given if n.endswith("num_batches_tracked")]
        assert len(imported.state_dict) == len(given) - len(counters)
        parameters = sum(t.numel() for n, t in given.items() if n not in counters)
        assert sum(t.numel() for t in imported.state_dict.values()) == parameters + 256
        build_model(imported)
        usual = import_checkpoint(saved(tmp_path / "b.pth", given)).meta.model
        assert (usual.position_temperature, usual.position_offset) == (20, 0)

    def test_swin(self, tmp_path: Path) -> None:
        """Five scales; the merges' channels stand in another order."""
        given = numbered("mmdet_5scale_swinl")
        norm = "backbone.stages.1.downsample.norm.weight"
        given[norm] = torch.arange(4 * 384.0)
        imported = import_checkpoint(saved(tmp_path / "swin.pth", {"state_dict": given}))
        assert imported.meta.model == replace(
            VARIANTS["dino-swinl-5scale"].model, num_classes=80, tied_heads=False,
            neck_bias=False, box_eps=1e-5,
        )  # fmt: skip
        indices = [n for n in given if n.endswith("relative_position_index")]
        assert len(imported.state_dict) == len(given) - len(indices)
        permuted = imported.state_dict["backbone.body.layers.1.downsample.norm.weight"]
        first = [permuted[384 * pixel].item() for pixel in range(4)]
        assert first == [0, 2, 1, 3]  # of the first channel's four, side by side before
        build_model(imported)

    def test_own_classes(self, tmp_path: Path, given: dict[str, Tensor]) -> None:
        few = {
            n: t[:2] if "cls_branches" in n or "label_embedding" in n else t
            for n, t in given.items()
        }
        content = {"meta": {"dataset_meta": {"classes": ("cat", "dog")}}, "state_dict": few}
        path = saved(tmp_path / "a.pth", content)
        assert import_checkpoint(path).meta.classes == ClassMap(("cat", "dog"), (0, 1))
        content["meta"]["dataset_meta"]["classes"] = ("cat", "cat")
        with pytest.raises(CheckpointError, match="class names are not unique: cat"):
            import_checkpoint(saved(tmp_path / "b.pth", content))

    def test_eighty_classes_that_are_not_coco(
        self, tmp_path: Path, given: dict[str, Tensor]
    ) -> None:
        names = [f"part {n}" for n in range(80)]
        content = {"meta": {"dataset_meta": {"classes": names}}, "state_dict": given}
        classes = import_checkpoint(saved(tmp_path / "a.pth", content)).meta.classes
        assert classes == ClassMap.from_names(names)
