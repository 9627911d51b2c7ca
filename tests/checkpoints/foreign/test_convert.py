from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_core.checkpoints.foreign import pickled_values
from dino_core.checkpoints.foreign.architecture import network_of, without_unused
from dino_core.checkpoints.foreign.convert import import_checkpoint
from dino_core.checkpoints.foreign.keymaps.coco import official_coco_classes
from dino_core.checkpoints.foreign.keymaps.official import our_name
from dino_core.checkpoints.io import build_model
from dino_core.config import ModelConfig
from dino_core.errors import CheckpointError
from dino_core.models.dino import Dino
from dino_core.variants import VARIANTS

GOLDEN = Path(__file__).parents[2] / "golden"
BACK = (
    (r"backbone\.body\.((?:conv1|bn1|layer\d)\..+)", r"backbone.0.body.\1"),
    (r"backbone\.body\.stem\.(.+)", r"backbone.0.downsample_layers.0.\1"),
    (r"backbone\.body\.stages\.(\d)\.downsample\.(.+)", r"backbone.0.downsample_layers.\1.\2"),
    (r"backbone\.body\.stages\.(\d)\.blocks\.(\d+)\.conv_dw\.(.+)",
     r"backbone.0.stages.\1.\2.dwconv.\3"),
    (r"backbone\.body\.stages\.(\d)\.blocks\.(\d+)\.mlp\.fc(\d)\.(.+)",
     r"backbone.0.stages.\1.\2.pwconv\3.\4"),
    (r"backbone\.body\.stages\.(\d)\.blocks\.(\d+)\.(.+)", r"backbone.0.stages.\1.\2.\3"),
    (r"backbone\.body\.(.+)", r"backbone.0.\1"),
    (r"neck\.(.+)", r"\1"),
    (r"(level_embed|tgt_embed\.weight|encoder\..+)", r"transformer.\1"),
    (r"query_selection\.(class|bbox)_embed\.(.+)", r"transformer.enc_out_\1_embed.\2"),
    (r"query_selection\.(.+)", r"transformer.\1"),
    (r"decoder\.(class|bbox)_embed\.(.+)", r"\1_embed.\2"),
    (r"(decoder\..+)", r"transformer.\1"),
    (r"(label_enc\.weight)", r"\1"),
)  # fmt: skip
"""Our names to official ones, written down apart from the map under test."""


@pytest.fixture(autouse=True)
def networks_of_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of one value each, expanded to the published shapes, take no memory here."""
    monkeypatch.setattr(pickled_values, "_ALWAYS", 4 << 30)


def official_keys(model: str = "4scale_r50") -> dict[str, list[int]]:
    keys: dict[str, list[int]] = json.loads((GOLDEN / f"keys_{model}.json").read_text())
    return keys


def official_state(num_classes: int = 91, model: str = "4scale_r50") -> dict[str, Tensor]:
    """Names and shapes of an official file; every tensor one value, heads tied."""
    keys = official_keys(model)
    aliases = json.loads((GOLDEN / "aliases_4scale_r50.json").read_text())
    first = {other: name for name, others in aliases.items() for other in others}
    state = {}
    for index, (name, shape) in enumerate(keys.items()):
        resized = [{91: num_classes, 92: num_classes + 1}.get(n, n) for n in shape[:1]] + shape[1:]
        wanted = resized if "class_embed" in name or "label_enc" in name else shape
        value = list(keys).index(first[name]) if name in first else index
        state[name] = torch.tensor(float(value)).expand(wanted)
    return state


def our_state_in_official_names(config: ModelConfig) -> dict[str, Tensor]:
    """A file as the official code would write it, from names found the other way round."""
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in Dino(config).state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        for pattern, replacement in BACK:
            if match := re.fullmatch(pattern, name):
                state[match.expand(replacement)] = torch.tensor(0.0).expand(shape)
                break
    assert len(state) == len(shapes)
    return state


def saved(path: Path, content: Mapping[str, Any]) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return official_state()


class TestImport:
    def test_every_tensor_finds_its_place(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        path = saved(tmp_path / "official.pth", {"model": state, "args": argparse.Namespace(a=1)})
        imported = import_checkpoint(path)
        ours = imported.state_dict
        for name, tensor in state.items():
            assert torch.equal(ours[our_name(name) or "?"], tensor), name
        assert imported.meta.variant == "dino-r50-4scale"
        assert imported.meta.model == ModelConfig()
        assert imported.meta.provenance["layout"] == "official"
        assert len(imported.meta.provenance["sha256"]) == 64
        assert build_model(imported).level_embed[0, 0] == state["transformer.level_embed"][0, 0]

    @pytest.mark.parametrize("model", ["4scale_r50", "5scale_r50", "4scale_swinl"])
    def test_map_is_onto_and_one_to_one_up_to_the_tied_heads(self, model: str) -> None:
        keys = official_keys(model)
        aliases = json.loads((GOLDEN / "aliases_4scale_r50.json").read_text())
        config = network_of(official_state(model=model), Path("x.pth"))
        groups: dict[str, set[str]] = {}
        for name in without_unused({n: torch.empty(0) for n in keys}, config):
            groups.setdefault(our_name(name) or "?", set()).add(name)
        with torch.device("meta"):
            assert groups.keys() == Dino(config).state_dict().keys()
        tied = {frozenset([name, *others]) for name, others in aliases.items()}
        assert {frozenset(g) for g in groups.values() if len(g) > 1} == tied

    @pytest.mark.parametrize(
        ("model", "variant"),
        [
            ("4scale_r50", "dino-r50-4scale"),
            ("5scale_r50", "dino-r50-5scale"),
            ("4scale_swinl", "dino-swinl-4scale"),
        ],
    )
    def test_published_variants_are_told_apart(
        self, tmp_path: Path, model: str, variant: str
    ) -> None:
        """Every tensor has a place but the indices, which Swin computes; every place is filled."""
        state = official_state(model=model)
        imported = import_checkpoint(saved(tmp_path / "official.pth", {"model": state}))
        assert imported.meta.variant == variant
        assert imported.meta.model == VARIANTS[variant].model
        left = {n for n in state if our_name(n) not in imported.state_dict}
        assert left == {n for n in state if n.endswith("relative_position_index")}
        build_model(imported)  # raises where one of its tensors is missing

    @pytest.mark.parametrize("variant", ["dino-swint-4scale", "dino-swinl-5scale"])
    def test_other_swins(self, tmp_path: Path, variant: str) -> None:
        config = VARIANTS[variant].model
        state = our_state_in_official_names(config)
        imported = import_checkpoint(saved(tmp_path / "swin.pth", state))
        assert imported.meta.model == config

    def test_resnet101(self, tmp_path: Path) -> None:
        config = VARIANTS["dino-r101-4scale"].model
        state = our_state_in_official_names(config)
        assert import_checkpoint(saved(tmp_path / "r.pth", state)).meta.model == config

    @pytest.mark.parametrize("backbone", ["convnext_large", "convnext_xlarge"])
    def test_convnext(self, tmp_path: Path, backbone: str) -> None:
        """The official one has a norm for every map, also for the finest, which nobody reads."""
        config = replace(VARIANTS["dino-convnextl-4scale"].model, backbone=backbone)
        state = our_state_in_official_names(config)
        width = len(state["backbone.0.downsample_layers.0.1.bias"])
        state |= {f"backbone.0.norm0.{n}": torch.zeros(width) for n in ("weight", "bias")}
        imported = import_checkpoint(saved(tmp_path / "convnext.pth", state))
        assert replace(imported.meta.model, variant=config.variant) == config
        assert imported.meta.variant == (
            config.variant if backbone == "convnext_large" else "dino-convnextxl-4scale"
        )

    def test_containers_of_all_kinds(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        wrapped = {f"module.{n}": t for n, t in state.items()}
        for number, content in enumerate(
            [state, wrapped, {"model": wrapped}, {"ema_model": wrapped, "epoch": 3}]
        ):
            path = saved(tmp_path / f"{number}.pth", content)
            level = import_checkpoint(path).state_dict["level_embed"]
            assert torch.equal(level, state["transformer.level_embed"])

    def test_averaged_weights_on_request(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        averaged = {n: t + 1 for n, t in state.items()}
        path = saved(tmp_path / "both.pth", {"model": state, "ema_model": averaged})
        level = state["transformer.level_embed"]
        assert torch.equal(import_checkpoint(path).state_dict["level_embed"], level)
        assert torch.equal(import_checkpoint(path, ema=True).state_dict["level_embed"], level + 1)

    def test_other_class_counts(self, tmp_path: Path) -> None:
        imported = import_checkpoint(saved(tmp_path / "own.pth", official_state(4)))
        assert imported.meta.model.num_classes == 4
        assert imported.meta.classes.names == ("class 0", "class 1", "class 2", "class 3")

    def test_longer_label_book(self, tmp_path: Path) -> None:
        content = official_state(4)
        content["label_enc.weight"] = torch.arange(92.0)[:, None].expand(92, 256)
        imported = import_checkpoint(saved(tmp_path / "own.pth", content))
        assert torch.equal(imported.state_dict["label_enc.weight"][:, 0], torch.arange(5.0))
        content["label_enc.weight"] = content["label_enc.weight"][:3]
        with pytest.raises(CheckpointError, match="3 rows, fewer than the 4 classes"):
            import_checkpoint(saved(tmp_path / "short.pth", content))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"transformer.encoder.layers.5.norm1.bias": None}, "encoder.layers.5.norm1.bias"),
            ({"transformer.mystery": torch.zeros(1)}, "1 unknown tensors: transformer.mystery"),
            ({"transformer.encoder.layers.6.norm1.bias": torch.zeros(256)}, "without a place"),
            ({"input_proj.1.0.bias": torch.zeros(3)}, r"is \(3,\), expected \(256,\)"),
            ({"bbox_embed.3.layers.2.bias": torch.ones(4)}, "which is another name of it"),
            ({"class_embed.0.weight": None,
              "transformer.decoder.class_embed.0.weight": None}, "lacks class_embed"),
            ({"transformer.level_embed": torch.zeros(5, 256)}, "5 scales in .* has 4"),
            ({"transformer.level_embed": None}, "not a checkpoint of DINO"),
        ],
    )  # fmt: skip
    def test_what_does_not_match_is_named(
        self, tmp_path: Path, state: dict[str, Tensor], change: dict[str, Any], words: str
    ) -> None:
        content = {n: t for n, t in {**state, **change}.items() if t is not None}
        with pytest.raises(CheckpointError, match=words):
            import_checkpoint(saved(tmp_path / "bad.pth", content))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"backbone.0.patch_embed.proj.weight": torch.zeros(100, 3, 4, 4)}, "width=100"),
            ({"backbone.0.patch_embed.proj.weight": None}, "no ResNet, Swin or ConvNeXt"),
            ({"backbone.0.layers.1.blocks.0.attn.relative_position_bias_table": None},
             "lacks backbone.0.layers.1"),
            ({"backbone.0.layers.1.blocks.0.attn.relative_position_bias_table": torch.zeros(9)},
             "1 dimensions, expected 2"),
            ({"backbone.0.patch_embed.proj.weight": torch.tensor(1.0)}, "one number in backbone"),
        ],
    )  # fmt: skip
    def test_other_backbones_are_refused(
        self, tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        content = official_state(model="4scale_swinl") | change
        content = {n: t for n, t in content.items() if t is not None}
        with pytest.raises(CheckpointError, match=words):
            import_checkpoint(saved(tmp_path / "swin.pth", content))


def test_official_files_with_a_head_of_its_own_for_each_layer(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """`dec_pred_bbox_embed_share = False`, the class head still shared."""
    apart = dict(state)
    for name in state:
        head = re.fullmatch(r"(?:transformer\.decoder\.)?bbox_embed\.(\d)\..+", name)
        if head:
            apart[name] = state[name] + int(head[1])
    imported = import_checkpoint(saved(tmp_path / "a.pth", {"model": apart}))
    assert imported.meta.model == replace(ModelConfig(), tied_heads=False)
    ours = imported.state_dict
    for layer in range(6):
        for kind, part in (("class", "bias"), ("bbox", "layers.2.bias")):
            theirs = apart[f"{kind}_embed.{layer}.{part}"]
            assert torch.equal(ours[f"decoder.{kind}_embed.{layer}.{part}"], theirs)
    build_model(imported)


def test_files_of_other_projects(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of DINO"):
        import_checkpoint(saved(tmp_path / "a.pth", {"model": {"fc.weight": torch.zeros(2)}}))
    with pytest.raises(CheckpointError, match="holds no weights"):
        import_checkpoint(saved(tmp_path / "b.pth", {"epoch": 3}))
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        import_checkpoint(tmp_path / "c.pth")


def test_coco_slots() -> None:
    classes = official_coco_classes()
    assert len(classes) == 91
    assert sum(name == "" for name in classes.names) == 11
    assert (classes.names[1], classes.names[18], classes.names[90]) == (
        "person", "dog", "toothbrush",
    )  # fmt: skip
    assert classes.source_ids == tuple(range(91))
    assert [i for i, n in enumerate(classes.names) if not n] == [
        0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83,
    ]  # fmt: skip
