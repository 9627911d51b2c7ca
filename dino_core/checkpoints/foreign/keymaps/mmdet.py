"""Rules from parameter names of mmdet 3.3 to official ones.

mmdet also differs in having one class and one box head per decoder layer, the seventh being the
encoder's, no bias in the neck, another epsilon of the predicted boxes, and another order of the
channels in Swin's merges.
"""

from __future__ import annotations

from dino_core.checkpoints.foreign.keymaps.rules import Rules, layer_rules

MARKS = ("bbox_head.cls_branches.0.weight",)
"""Names that only files of this code base have, not those of the official code or detrex."""

POSITION = (20.0, 0.0)
"""Temperature and offset of the position encoding if a file has no configuration."""

PUBLISHED_POSITIONS = {
    "dino-4scale_r50_improved_8xb2-12e_coco_20230818_162607-6f47a913.pth": (10000.0, -0.5)
}
"""Published files with another position encoding, in case they have no configuration."""

UNSTATED_POSITION = (10000.0, 0.0)
"""Temperature and offset that a configuration means if it leaves them out."""

BOX_EPS = 1e-5

DROPPED = r"backbone\..+\.num_batches_tracked"
"""A counter of batch norms, which is not needed since they are frozen."""

MERGES = r"backbone\.0\.layers\.\d\.downsample\.(?:reduction\.weight|norm\.(?:weight|bias))"
"""Official names of the tensors whose last dimension is four pixels of C channels."""

MERGE_ORDER = (0, 2, 1, 3)
"""Official pixel i of a merge is mmdet's pixel `MERGE_ORDER[i]`.

mmdet has the four pixels of a channel side by side, row by row (`nn.Unfold`). The official code has
one pixel after the other, column by column."""


def rules(maps: int) -> Rules:
    """Rules to official names, for a model whose neck reads `maps` maps of the backbone."""
    block = r"backbone\.stages\.(\d\.blocks\.\d+)\."
    return (
        (r"backbone\.((?:conv1|bn1|layer\d)\..+)", r"backbone.0.body.\1"),
        (r"backbone\.patch_embed\.projection\.(\w+)", r"backbone.0.patch_embed.proj.\1"),
        (r"backbone\.((?:patch_embed\.norm|norm\d)\.\w+)", r"backbone.0.\1"),
        (block + r"(norm\d\.\w+)", r"backbone.0.layers.\1.\2"),
        (block + r"attn\.w_msa\.(.+)", r"backbone.0.layers.\1.attn.\2"),
        (block + r"ffn\.layers\.0\.0\.(\w+)", r"backbone.0.layers.\1.mlp.fc1.\2"),
        (block + r"ffn\.layers\.1\.(\w+)", r"backbone.0.layers.\1.mlp.fc2.\2"),
        (r"backbone\.stages\.(\d\.downsample\..+)", r"backbone.0.layers.\1"),
        (r"neck\.convs\.(\d)\.conv\.(\w+)", r"input_proj.\1.0.\2"),
        (r"neck\.convs\.(\d)\.gn\.(\w+)", r"input_proj.\1.1.\2"),
        (r"neck\.extra_convs\.0\.conv\.(\w+)", rf"input_proj.{maps}.0.\1"),
        (r"neck\.extra_convs\.0\.gn\.(\w+)", rf"input_proj.{maps}.1.\1"),
        (r"level_embed", r"transformer.level_embed"),
        (r"query_embedding\.weight", r"transformer.tgt_embed.weight"),
        (r"memory_trans_fc\.(\w+)", r"transformer.enc_output.\1"),
        (r"memory_trans_norm\.(\w+)", r"transformer.enc_output_norm.\1"),
        (r"dn_query_generator\.label_embedding\.weight", r"label_enc.weight"),
        *layer_rules(
            transformer="",
            self_attn="self_attn",
            cross_attn="cross_attn",
            decoder_self_attn=r"self_attn\.attn",
            ffn="ffn",
        ),
        (r"(decoder\.(?:norm|ref_point_head)\..+)", r"transformer.\1"),
        (r"bbox_head\.cls_branches\.([0-5])\.(\w+)", r"class_embed.\1.\2"),
        (r"bbox_head\.cls_branches\.6\.(\w+)", r"transformer.enc_out_class_embed.\1"),
        *_box_rules(),
    )


def _box_rules() -> Rules:
    """Rules of the box heads, in which mmdet also counts the ReLUs between the linear layers."""
    return tuple(
        rule
        for theirs, ours in ((0, 0), (2, 1), (4, 2))
        for rule in (
            (
                rf"bbox_head\.reg_branches\.([0-5])\.{theirs}\.(\w+)",
                rf"bbox_embed.\1.layers.{ours}.\2",
            ),
            (
                rf"bbox_head\.reg_branches\.6\.{theirs}\.(\w+)",
                rf"transformer.enc_out_bbox_embed.layers.{ours}.\1",
            ),
        )
    )
