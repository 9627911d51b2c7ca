"""State dicts as detrex and mmdet have them, made from official names by a map of its own.

The weights are the recipe's "untied" ones of `foreign/README.md`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from golden import recipe
from torch import Tensor

FOREIGN = Path(__file__).parent / "foreign"
_DETREX_LAYER = {
    "encoder": {"self_attn": "attentions.0", "norm1": "norms.0", "norm2": "norms.1"},
    "decoder": {
        "self_attn": "attentions.0.attn", "cross_attn": "attentions.1",
        "norm2": "norms.0", "norm1": "norms.1", "norm3": "norms.2",
    },
}  # fmt: skip
_MMDET_LAYER = {
    "encoder": {"norm1": "norms.0", "norm2": "norms.1"},
    "decoder": {
        "self_attn": "self_attn.attn", "norm2": "norms.0", "norm1": "norms.1", "norm3": "norms.2",
    },
}  # fmt: skip


def shapes(file: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `foreign/keys_FILE.json`."""
    content = json.loads((FOREIGN / f"keys_{file}.json").read_text())
    return {name: tuple(shape) for name, shape in content.items()}


def detrex_name(official: str, maps: int = 3) -> str:
    """The first of the names that detrex has for an official parameter."""
    layer = re.match(r"transformer\.(encoder|decoder)\.layers\.", official)
    if layer:
        name = _layer(official, _DETREX_LAYER[layer[1]])
        name = name.replace(".linear1.", ".ffns.0.layers.0.0.")
        return name.replace(".linear2.", ".ffns.0.layers.1.")
    if official.startswith("backbone.0.body."):
        return _detectron2(official.removeprefix("backbone.0.body."))
    name = official.replace("backbone.0.", "backbone.")
    name = name.replace("transformer.enc_out_class_embed", "class_embed.6")
    name = name.replace("transformer.enc_out_bbox_embed", "bbox_embed.6")
    name = name.replace("transformer.level_embed", "transformer.level_embeds")
    if name.startswith(("class_embed", "bbox_embed")):
        name = f"transformer.decoder.{name}"
    return _neck(name, maps, "norm")


def mmdet_name(official: str, maps: int = 3) -> str:
    layer = re.match(r"transformer\.(encoder|decoder)\.layers\.", official)
    if layer:
        name = _layer(official, _MMDET_LAYER[layer[1]]).removeprefix("transformer.")
        name = name.replace(".linear1.", ".ffn.layers.0.0.")
        return name.replace(".linear2.", ".ffn.layers.1.")
    name = official.replace("backbone.0.body.", "backbone.").replace("backbone.0.", "backbone.")
    name = name.replace("backbone.layers.", "backbone.stages.")
    name = name.replace("patch_embed.proj.", "patch_embed.projection.")
    name = name.replace(".attn.", ".attn.w_msa.").replace(".mlp.fc1.", ".ffn.layers.0.0.")
    name = name.replace(".mlp.fc2.", ".ffn.layers.1.")
    name = name.replace("transformer.enc_out_class_embed", "class_embed.6")
    name = name.replace("transformer.enc_out_bbox_embed", "bbox_embed.6")
    name = name.replace("class_embed.", "bbox_head.cls_branches.")
    box = re.fullmatch(r"bbox_embed\.(\d)\.layers\.(\d)\.(\w+)", name)
    if box:
        name = f"bbox_head.reg_branches.{box[1]}.{2 * int(box[2])}.{box[3]}"
    name = name.replace("transformer.enc_output_norm", "memory_trans_norm")
    name = name.replace("transformer.enc_output", "memory_trans_fc")
    name = name.replace("transformer.tgt_embed", "query_embedding")
    name = name.replace("label_enc", "dn_query_generator.label_embedding")
    return _neck(name.removeprefix("transformer."), maps, "gn")


def _layer(official: str, parts: dict[str, str]) -> str:
    head, number, part, rest = re.fullmatch(  # type: ignore[union-attr]
        r"(transformer\.\w+\.layers)\.(\d)\.(\w+)\.(.+)", official
    ).groups()
    return f"{head}.{number}.{parts.get(part, part)}.{rest}"


def _neck(name: str, maps: int, norm: str) -> str:
    found = re.fullmatch(r"input_proj\.(\d)\.([01])\.(\w+)", name)
    if not found:
        return name
    level, part = int(found[1]), ("conv", norm)[int(found[2])]
    where = f"convs.{level}" if level < maps else f"extra_convs.{level - maps}"
    return f"neck.{where}.{part}.{found[3]}"


def _detectron2(name: str) -> str:
    """Of torchvision's ResNet."""
    name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return f"backbone.stem.{name}" if name.startswith("conv1") else f"backbone.{name}"


def value(official: str, shape: tuple[int, ...]) -> Tensor:
    """The recipe's value where every head tensor is another."""
    if official.startswith("transformer.enc_out_class_embed."):
        return recipe.weight("class_embed.0." + official.rpartition(".")[2], shape)
    if official.startswith(("class_embed.", "bbox_embed.", "transformer.enc_out_bbox_embed.")):
        return recipe.weight(f"untied.{official}", shape)
    return recipe.weight(official, shape)


def official_names(file: str) -> list[str]:
    """The official names of `keys_FILE.json`, heads under one name a layer."""
    path = recipe.GOLDEN / f"keys_{file}.json"
    heads = re.compile(r"transformer\.decoder\.(class|bbox)_embed")
    return [name for name in json.loads(path.read_text()) if not heads.match(name)]


def detrex_state(scales: int) -> dict[str, Tensor]:
    """What detrex's R50 holds: heads under two names."""
    theirs = shapes(f"detrex_{scales}scale_r50")
    state: dict[str, Tensor] = {}
    for official in official_names(f"{scales}scale_r50"):
        name = detrex_name(official, scales - 1)
        state[name] = value(official, theirs[name])
        alias = name.removeprefix("transformer.decoder.")
        if alias in theirs:
            state[alias] = state[name]
    return {name: state[name] for name in theirs}


def mmdet_state() -> dict[str, Tensor]:
    """What mmdet's R50 4-scale holds: no bias in the neck, counters of the batch norms."""
    theirs = shapes("mmdet_4scale_r50")
    state = {name: torch.tensor(0) for name in theirs if name.endswith("num_batches_tracked")}
    for official in official_names("4scale_r50"):
        name = mmdet_name(official)
        if name in theirs:
            state[name] = value(official, theirs[name])
    return {name: state[name] for name in theirs}
