"""Parameter names of the official code (IDEA-Research/DINO, commit faa8520) and ours, as data."""

from __future__ import annotations

import re

MARKS = ("transformer.level_embed", "input_proj.0.0.weight")
"""Names that a file of this layout has, and those of detrex and mmdet have not."""

RULES: tuple[tuple[str, str], ...] = (
    (r"backbone\.0\.body\.(.+)", r"backbone.body.\1"),
    (r"input_proj\.(.+)", r"neck.input_proj.\1"),
    (r"transformer\.(level_embed|tgt_embed\.weight)", r"\1"),
    (r"label_enc\.weight", r"label_enc.weight"),
    (r"transformer\.encoder\.(layers\..+)", r"encoder.\1"),
    (r"transformer\.(enc_output|enc_output_norm)\.(.+)", r"query_selection.\1.\2"),
    (r"transformer\.enc_out_(class|bbox)_embed\.(.+)", r"query_selection.\1_embed.\2"),
    (r"transformer\.decoder\.((?:layers|norm|ref_point_head)\..+)", r"decoder.\1"),
    # One module for all decoder layers, which the official state dict names once a layer, twice.
    (r"(?:transformer\.decoder\.)?(class|bbox)_embed\.\d+\.(.+)", r"decoder.\1_embed.0.\2"),
)
"""Full-match pattern and replacement; the first that matches an official name gives ours."""

_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in RULES)


def our_name(official: str) -> str | None:
    """Our name of an official parameter; None where no rule knows it."""
    for pattern, replacement in _COMPILED:
        match = pattern.fullmatch(official)
        if match:
            return match.expand(replacement)
    return None
