"""Names of detrex and mmdet against their own key lists, by a map written the other way round."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from golden import other_codes, recipe
from torch import Tensor, nn

from dino_core.checkpoints.foreign.keymaps import mmdet
from dino_core.checkpoints.foreign.layouts import (
    DETREX,
    LAYOUTS,
    MMDET,
    Layout,
    official_state,
    pixels_apart,
    recognize,
)
from dino_core.errors import CheckpointError

HERE = Path("some.pth")


def numbered(file: str) -> dict[str, Tensor]:
    """The tensors of a key list, each filled with a number of its own, at no memory."""
    shapes = other_codes.shapes(file)
    return {n: torch.tensor(float(i)).expand(s) for i, (n, s) in enumerate(shapes.items())}


def first(tensor: Tensor) -> float:
    return float(tensor[(0,) * tensor.dim()])


def official_shapes(file: str) -> dict[str, tuple[int, ...]]:
    content = json.loads((recipe.GOLDEN / f"keys_{file}.json").read_text())
    return {name: tuple(content[name]) for name in other_codes.official_names(file)}


@pytest.mark.parametrize(
    ("layout", "file", "official", "maps"),
    [
        (DETREX, "detrex_4scale_r50", "4scale_r50", 3),
        (DETREX, "detrex_5scale_r50", "5scale_r50", 4),
        (DETREX, "detrex_4scale_swinl", "4scale_swinl", 3),
        (MMDET, "mmdet_4scale_r50", "4scale_r50", 3),
    ],
)
def test_every_key_goes_to_its_official_name(
    layout: Layout, file: str, official: str, maps: int
) -> None:
    given = numbered(file)
    for copy in [n for n in given if n.startswith(("class_embed", "bbox_embed"))]:
        given[copy] = given[f"transformer.decoder.{copy}"]
    state = official_state(given, layout, HERE)
    wanted = official_shapes(official)
    biases = {n for n in wanted if re.fullmatch(r"input_proj\.\d\.0\.bias", n)}
    assert wanted.keys() - state.keys() == (biases if layout is MMDET else set())
    assert not state.keys() - wanted.keys()
    their_name = other_codes.mmdet_name if layout is MMDET else other_codes.detrex_name
    for name, tensor in state.items():
        theirs = their_name(name, maps)
        assert first(tensor) == first(given[theirs]), name
        rows = 80 if "class_embed" in name or "label_enc" in name else wanted[name][0]
        assert tuple(tensor.shape) == (rows, *wanted[name][1:]), name
    dropped = [n for n in given if n.endswith("num_batches_tracked")]
    copies = [n for n in given if n.startswith(("class_embed", "bbox_embed"))]
    assert len(state) == len(given) - len(dropped) - len(copies)


def test_mmdet_swin_has_the_official_backbone_and_one_level_more() -> None:
    given = numbered("mmdet_5scale_swinl")
    state = official_state(given, MMDET, HERE)
    assert len(state) == len(given)
    four = official_shapes("4scale_swinl")
    more = {f"backbone.0.norm0.{part}" for part in ("weight", "bias")}
    more |= {f"input_proj.4.{part}" for part in ("0.weight", "1.weight", "1.bias")}
    less = {f"input_proj.{level}.0.bias" for level in range(4)}
    assert state.keys() == (four.keys() | more) - less
    for name, tensor in state.items():
        if name.startswith("backbone.") and name not in more:
            assert tuple(tensor.shape) == four[name]
        if not re.fullmatch(mmdet.MERGES, name):
            assert first(tensor) == first(given[other_codes.mmdet_name(name, 4)])


def test_aliases_of_detrex_are_the_ones_that_share_a_tensor() -> None:
    path = other_codes.FOREIGN / "aliases_detrex_4scale_r50.json"
    theirs = {frozenset([n, *others]) for n, others in json.loads(path.read_text()).items()}
    groups: dict[str, set[str]] = {}
    names = [n for n in other_codes.shapes("detrex_4scale_r50") if "neck.extra" not in n]
    for name in names:  # one alone, so that nothing is merged; an extra level needs the others
        (official,) = official_state({name: torch.zeros(1)}, DETREX, HERE)
        groups.setdefault(official, set()).add(name)
    assert {frozenset(g) for g in groups.values() if len(g) > 1} == theirs


def test_swin_merges_compute_the_same() -> None:
    """mmdet gathers 2 x 2 pixels with nn.Unfold, the official code by four slices."""
    torch.manual_seed(0)
    channels, rows, columns = 6, 4, 10
    pixels = torch.randn(2, channels, rows, columns)
    norm, reduction = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 5, bias=False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    theirs = reduction(norm(nn.Unfold(2, stride=2)(pixels).transpose(1, 2)))
    prefix = "backbone.stages.1.downsample"
    state = official_state(
        {f"{prefix}.norm.{n}": t for n, t in norm.state_dict().items()}
        | {f"{prefix}.reduction.weight": reduction.weight.detach()},
        MMDET,
        HERE,
    )
    norm.load_state_dict(
        {part: state[f"backbone.0.layers.1.downsample.norm.{part}"] for part in ("weight", "bias")}
    )
    reduction.load_state_dict({"weight": state["backbone.0.layers.1.downsample.reduction.weight"]})
    x = pixels.permute(0, 2, 3, 1)  # (B, H, W, C), as in the official code
    quarters = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
    ours = reduction(norm(torch.cat(quarters, dim=-1).flatten(1, 2)))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_merges_of_the_written_formula() -> None:
    weight = torch.arange(5 * 12.0).reshape(5, 12)
    blocks = weight.reshape(5, 3, 4).transpose(1, 2)[:, [0, 2, 1, 3], :].reshape(5, 12)
    assert torch.equal(pixels_apart(weight), blocks)
    vector = torch.arange(12.0)
    assert torch.equal(pixels_apart(vector), vector.reshape(3, 4).T[[0, 2, 1, 3]].reshape(-1))
    odd = torch.zeros(6)
    assert pixels_apart(odd) is odd


def test_each_is_known_by_its_names() -> None:
    files = {"mmdet_4scale_r50": MMDET, "mmdet_5scale_swinl": MMDET, "detrex_5scale_r50": DETREX}
    for file, layout in files.items():
        assert recognize(numbered(file), HERE) is layout
    names = {layout.name for layout in LAYOUTS}
    assert names == {"official", "detrex", "mmdet"}
    marks = [set(layout.marks) for layout in LAYOUTS]
    assert not marks[0] & marks[1] and not marks[1] & marks[2] and not marks[0] & marks[2]
    with pytest.raises(CheckpointError, match=r"not a checkpoint of DINO.*fc\.weight"):
        recognize({"fc.weight": torch.zeros(1)}, HERE)


def test_convnext_of_detrex_has_the_official_names() -> None:
    names = (
        "stages.2.26.pwconv1.bias",
        "stages.0.0.gamma",
        "downsample_layers.3.1.weight",
        "norm3.bias",
    )
    state = official_state({f"backbone.{n}": torch.zeros(1) for n in names}, DETREX, HERE)
    assert list(state) == [f"backbone.0.{name}" for name in names]


def test_unknown_names_are_listed() -> None:
    given = {"encoder.layers.0.norms.2.weight": torch.zeros(1), "bbox_head.fc.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"2 unknown tensors: encoder.*norms\.2.*fc\.bias"):
        official_state(given, MMDET, HERE)


def test_two_names_of_one_tensor_hold_one_value() -> None:
    given = {"class_embed.2.bias": torch.zeros(3)}
    given["transformer.decoder.class_embed.2.bias"] = torch.ones(3)
    with pytest.raises(CheckpointError, match=r"differs from 'class_embed\.2\.bias'"):
        official_state(given, DETREX, HERE)
