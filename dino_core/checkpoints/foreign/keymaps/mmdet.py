"""Parameter names of mmdet 3.3 in official ones, as data.

What is no rename: one class and one box head a decoder layer, the seventh being the encoder's; no
bias in the neck; another epsilon of the predicted boxes; and the channels in Swin's merges.
"""

from __future__ import annotations

from dino_core.checkpoints.foreign.keymaps.rules import Rules, layer_rules

MARKS = ("bbox_head.cls_branches.0.weight",)
"""Names that a file of this layout has, and those of the official code and detrex have not."""

POSITION = (20.0, 0.0)
"""Temperature and offset of the position encoding where a file's configuration is not there."""

PUBLISHED_POSITIONS = {
    "dino-4scale_r50_improved_8xb2-12e_coco_20230818_162607-6f47a913.pth": (10000.0, -0.5)
}
"""Published files whose own configuration says otherwise, should they lack it."""

UNSTATED_POSITION = (10000.0, 0.0)
"""What a configuration that describes the encoding means by leaving either out."""

BOX_EPS = 1e-5

DROPPED = r"backbone\..+\.num_batches_tracked"
"""A counter of training's batch norms, which do not count while frozen."""

MERGES = r"backbone\.0\.layers\.\d\.downsample\.(?:reduction\.weight|norm\.(?:weight|bias))"
"""Official names of tensors whose last dimension holds four pixels of C channels each."""

MERGE_ORDER = (0, 2, 1, 3)
"""mmdet has a channel's four pixels side by side, row by row (`nn.Unfold`); officially the pixels
stand one after another, column by column: official pixel i is mmdet's `MERGE_ORDER[i]`."""


def rules(maps: int) -> Rules:
    """To official names, for a model whose backbone gives `maps` maps to the neck."""
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
    """Linear layers stand between ReLUs and are numbered with them."""
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
