"""Rules from parameter names of the official code (IDEA-Research/DINO, faa8520) to ours."""

from __future__ import annotations

import re

from dino_core.checkpoints.foreign.keymaps.rules import Rules, renamed

MARKS = ("transformer.level_embed", "input_proj.0.0.weight")
"""Names that only files of the official code have, not those of detrex or mmdet."""

_BLOCK = r"backbone\.0\.stages\.(\d)\.(\d+)\."
_OUR_BLOCK = r"backbone.body.stages.\1.blocks.\2."
_CONVNEXT: Rules = (
    (r"backbone\.0\.downsample_layers\.0\.(.+)", r"backbone.body.stem.\1"),
    (
        r"backbone\.0\.downsample_layers\.([1-3])\.(.+)",
        r"backbone.body.stages.\1.downsample.\2",
    ),
    (_BLOCK + r"dwconv\.(.+)", _OUR_BLOCK + r"conv_dw.\3"),
    (_BLOCK + r"pwconv([12])\.(.+)", _OUR_BLOCK + r"mlp.fc\3.\4"),
    (_BLOCK + r"(norm\..+|gamma)", _OUR_BLOCK + r"\3"),
)

RULES: Rules = (
    (r"backbone\.0\.body\.(.+)", r"backbone.body.\1"),  # ResNet
    (r"backbone\.0\.((?:patch_embed|layers|norm\d)\..+)", r"backbone.body.\1"),  # Swin
    *_CONVNEXT,
    (r"input_proj\.(.+)", r"neck.input_proj.\1"),
    (r"transformer\.(level_embed|tgt_embed\.weight)", r"\1"),
    (r"label_enc\.weight", r"label_enc.weight"),
    (r"transformer\.encoder\.(layers\..+)", r"encoder.\1"),
    (r"transformer\.(enc_output|enc_output_norm)\.(.+)", r"query_selection.\1.\2"),
    (r"transformer\.enc_out_(class|bbox)_embed\.(.+)", r"query_selection.\1_embed.\2"),
    (r"transformer\.decoder\.((?:layers|norm|ref_point_head)\..+)", r"decoder.\1"),
    # The head of each layer is registered under two names.
    (r"(?:transformer\.decoder\.)?((?:class|bbox)_embed\.\d+\..+)", r"decoder.\1"),
)
"""Patterns and replacements; the first pattern that matches a whole name gives ours."""

_LAYER_HEAD = re.compile(r"(decoder\.(?:class|bbox)_embed)\.\d+\.")


def our_name(official: str, tied: bool = True) -> str | None:
    """Our name of an official parameter; None if no rule knows it.

    Args:
        official: The parameter's official name.
        tied: Whether the decoder layers share one class and one box head, as published, or each has
            its own (`dec_pred_*_embed_share = False`).
    """
    ours = renamed(official, RULES)
    return _LAYER_HEAD.sub(r"\1.0.", ours) if ours and tied else ours
