"""Renaming by rules, which are data: patterns of whole names, with their replacements."""

from __future__ import annotations

import re

Rules = tuple[tuple[str, str], ...]
"""The first pattern that matches a whole name gives the new name."""


def renamed(name: str, rules: Rules) -> str | None:
    """The new name; None if no rule knows `name`."""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None


def layer_rules(
    transformer: str, self_attn: str, cross_attn: str, decoder_self_attn: str, ffn: str
) -> Rules:
    """Rules of the transformer layers for a code base on mmcv's building blocks.

    Such code numbers the decoder's norms in the order of their use, and the official code in the
    order of their definition.

    Args:
        transformer: Pattern before `encoder` and `decoder`.
        self_attn: Pattern of the encoder's deformable attention.
        cross_attn: Pattern of the decoder's deformable attention.
        decoder_self_attn: Pattern of the decoder's attention among queries.
        ffn: Pattern of the feed-forward network.
    """
    encoder, decoder = (rf"{transformer}({part}\.layers\.\d+)\." for part in ("encoder", "decoder"))
    table = (
        (encoder, rf"{self_attn}\.(.+)", "self_attn"),
        (encoder, r"norms\.0\.(\w+)", "norm1"),
        (encoder, r"norms\.1\.(\w+)", "norm2"),
        (decoder, rf"{decoder_self_attn}\.(.+)", "self_attn"),
        (decoder, rf"{cross_attn}\.(.+)", "cross_attn"),
        (decoder, r"norms\.0\.(\w+)", "norm2"),
        (decoder, r"norms\.1\.(\w+)", "norm1"),
        (decoder, r"norms\.2\.(\w+)", "norm3"),
        *(
            (layer, rf"{ffn}\.layers\.{theirs}\.(\w+)", ours)
            for layer in (encoder, decoder)
            for theirs, ours in ((r"0\.0", "linear1"), ("1", "linear2"))
        ),
    )
    return tuple((layer + theirs, rf"transformer.\1.{ours}.\2") for layer, theirs, ours in table)
