"""Rules from parameter names of detrex (commit e244e6c, detectron2 02b5c4e) to official ones.

detrex also differs in having one class and one box head per decoder layer, the seventh being the
encoder's, in the position encoding, which its files do not state, and in freezing only the stem.
"""

from __future__ import annotations

from dino_core.checkpoints.foreign.keymaps.rules import Rules, layer_rules

MARKS = ("transformer.level_embeds", "neck.convs.0.conv.weight")
"""Names that only files of this code base have, not those of the official code or mmdet."""

POSITION = (10000.0, -0.5)
"""Temperature and offset of the position encoding in its DINO configurations, with exceptions."""

PUBLISHED_POSITIONS = {"dino_r50_4scale_24ep.pth": (20.0, 0.0)}
"""The exceptions: published files with another position encoding in their configuration."""

_HEADS = r"(?:transformer\.decoder\.)?"  # each head is registered under two names


def rules(maps: int) -> Rules:
    """Rules to official names, for a model whose neck reads `maps` maps of the backbone."""
    stages = tuple(
        rule
        for stage in range(1, 5)
        for rule in _block_rules(rf"backbone\.res{stage + 1}\.(\d+)", f"layer{stage}")
    )
    return (
        (r"backbone\.stem\.conv1\.weight", r"backbone.0.body.conv1.weight"),
        (r"backbone\.stem\.conv1\.norm\.(\w+)", r"backbone.0.body.bn1.\1"),
        *stages,
        (r"backbone\.((?:patch_embed|layers|norm\d)\..+)", r"backbone.0.\1"),  # Swin
        (r"backbone\.((?:downsample_layers|stages)\..+)", r"backbone.0.\1"),  # ConvNeXt
        (r"neck\.convs\.(\d)\.conv\.(\w+)", r"input_proj.\1.0.\2"),
        (r"neck\.convs\.(\d)\.norm\.(\w+)", r"input_proj.\1.1.\2"),
        (r"neck\.extra_convs\.0\.conv\.(\w+)", rf"input_proj.{maps}.0.\1"),
        (r"neck\.extra_convs\.0\.norm\.(\w+)", rf"input_proj.{maps}.1.\1"),
        (r"transformer\.level_embeds", r"transformer.level_embed"),
        (r"(label_enc\.weight|transformer\.tgt_embed\.weight)", r"\1"),
        (r"(transformer\.enc_output(?:_norm)?\.\w+)", r"\1"),
        *layer_rules(
            transformer=r"transformer\.",
            self_attn=r"attentions\.0",
            cross_attn=r"attentions\.1",
            decoder_self_attn=r"attentions\.0\.attn",
            ffn=r"ffns\.0",
        ),
        (r"(transformer\.decoder\.(?:norm|ref_point_head)\..+)", r"\1"),
        (_HEADS + r"(class|bbox)_embed\.([0-5])\.(.+)", r"\1_embed.\2.\3"),
        (_HEADS + r"(class|bbox)_embed\.6\.(.+)", r"transformer.enc_out_\1_embed.\2"),
    )


def _block_rules(block: str, layer: str) -> Rules:
    """Rules from a residual block of detectron2 to torchvision's names."""
    return (
        (block + r"\.conv(\d)\.weight", rf"backbone.0.body.{layer}.\1.conv\2.weight"),
        (block + r"\.conv(\d)\.norm\.(\w+)", rf"backbone.0.body.{layer}.\1.bn\2.\3"),
        (block + r"\.shortcut\.weight", rf"backbone.0.body.{layer}.\1.downsample.0.weight"),
        (block + r"\.shortcut\.norm\.(\w+)", rf"backbone.0.body.{layer}.\1.downsample.1.\2"),
    )
