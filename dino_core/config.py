"""All settings as frozen dataclasses, the only schema, and their way from and to plain values."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from dino_core.errors import ConfigError
from dino_core.limits import (
    LOSS_RANGES,
    MODEL_RANGES,
    PREPROCESS_RANGES,
    TRAIN_RANGES,
    check_ranges,
    shown,
)
from dino_core.suggestions import nearest, nearest_or_all

T = TypeVar("T")

MIN_IMAGE_SIZE = 32  # pixels of a side of the input: the coarsest backbone map has stride 32
NECK_GROUPS = 32  # groups of the GroupNorm of each level (ALGORITHM 2)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the network's parameters and how they are used.

    The defaults are those of the published 4-scale ResNet-50 (arXiv 2203.03605, appendix; the
    official `DINO_4scale.py`).

    Attributes:
        variant: Name of the model.
        backbone: Name of a network in timm that supports `features_only`.
        backbone_out_indices: Which feature maps of the backbone are used, counted from 0, the
            finest.
        backbone_frozen_stages: Number of leading backbone stages that are not trained.
        backbone_drop_path: Stochastic depth in training: the probability that the backbone's last
            block is left out. Swin, ConvNeXt and some of timm's networks have it.
        num_classes: Number of classes.
        num_levels: Number of feature levels of the transformer: the backbone's maps, and further
            levels of half the resolution each.
        hidden_dim: Width of the transformer, in channels.
        num_heads: Number of attention heads.
        num_points: Sampling points per head and level in deformable attention.
        ffn_dim: Hidden width of the feed-forward networks, in channels.
        encoder_layers: Number of encoder layers.
        decoder_layers: Number of decoder layers.
        num_queries: Number of queries, an upper bound of the detections per image.
        tied_heads: All decoder layers share one box head and one class head (official).
        neck_bias: The neck's convolutions have a bias (mmdet's have none).
        position_temperature: Temperature of the sine encoding of image positions.
        position_offset: Added to pixel positions before they are encoded (detrex: -0.5).
        box_eps: Smallest distance of a coordinate from 0 and 1 before the inverse sigmoid of the
            predicted boxes (mmdet: 1e-5).
        dn_number: Half the number of denoising queries in training; 0 for none.
        dn_label_noise_ratio: Twice the probability that a denoising query gets a random label.
        dn_box_noise_scale: Factor of the box noise of denoising queries; at 1 a positive query's
            corners move by up to half of the box's width and height.
    """

    variant: str = "dino-r50-4scale"
    backbone: str = "resnet50"
    backbone_out_indices: tuple[int, ...] = (2, 3, 4)
    backbone_frozen_stages: int = 2
    backbone_drop_path: float = 0.0
    num_classes: int = 91
    num_levels: int = 4
    hidden_dim: int = 256
    num_heads: int = 8
    num_points: int = 4
    ffn_dim: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_queries: int = 900
    tied_heads: bool = True
    neck_bias: bool = True
    position_temperature: float = 20.0
    position_offset: float = 0.0
    box_eps: float = 1e-3
    dn_number: int = 100
    dn_label_noise_ratio: float = 0.5
    dn_box_noise_scale: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, MODEL_RANGES)
        if self.hidden_dim % self.num_heads or self.hidden_dim % NECK_GROUPS:
            raise ConfigError(
                f"hidden_dim is {self.hidden_dim}; it must be a multiple of num_heads "
                f"({self.num_heads}) and of {NECK_GROUPS}, the groups of the neck's norms"
            )
        maps = self.backbone_out_indices
        if not maps or list(maps) != sorted(set(maps)):
            raise ConfigError(
                f"backbone_out_indices is {shown(maps)}; it must list maps in ascending order"
            )
        if self.num_levels < len(maps):
            raise ConfigError(
                f"num_levels is {self.num_levels}, fewer than the {len(maps)} maps of "
                "backbone_out_indices"
            )
        # timm would download or read what follows "hf-hub:" or "local-dir:", and this name may come
        # from a model file of an unknown source.
        if ":" in self.backbone:
            raise ConfigError(
                f"backbone {shown(self.backbone)} is a location, expected a timm name"
            )


@dataclass(frozen=True)
class PreprocessConfig:
    """How an image becomes the network's input. It is stored in every checkpoint.

    The image is resized with its aspect ratio, so that its short side is `short_side`, or its long
    side `max_side` if that makes it smaller (ALGORITHM 28). The defaults are the published ones.

    Attributes:
        short_side: Length of the short side in pixels.
        max_side: Largest length of the long side in pixels.
        canvas: (height, width) in pixels that every image is padded to, so that all inputs have one
            shape, in PyTorch as in an exported file. None, as published, pads to the batch only.
        mean: Subtracted from the red, green and blue values, which are in [0, 1].
        std: Red, green and blue values are divided by it after that.
        rounding: How the resized sides become whole pixels (detrex and mmdet: "nearest").
        interpolation: Bilinear filter of the resizing: "antialiased" as Pillow has it, or "plain"
            as OpenCV has it (mmdet).
    """

    short_side: int = 800
    max_side: int = 1333
    canvas: tuple[int, int] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    rounding: Literal["down", "nearest"] = "down"
    interpolation: Literal["antialiased", "plain"] = "antialiased"

    def __post_init__(self) -> None:
        check_ranges(self, PREPROCESS_RANGES)


@dataclass(frozen=True)
class LossConfig:
    """Matching costs and loss weights (paper, appendix; the official `DINO_4scale.py`).

    Attributes:
        cost_class: Weight of the class in the matching cost.
        cost_bbox: Weight of the L1 distance of boxes in the matching cost.
        cost_giou: Weight of the GIoU of boxes in the matching cost.
        weight_class: Weight of the class loss.
        weight_bbox: Weight of the L1 loss of boxes.
        weight_giou: Weight of the GIoU loss of boxes.
        focal_alpha: Weight of present classes in the focal loss; absent ones get the rest of 1.
        focal_gamma: Exponent of the focal loss: how much confident predictions count less.
        mal_gamma: Exponent of the IoU in the matchability-aware loss (default of DEIM).
        encoder_repeats: Number of encoder proposals matched to each box. 1 is as published; more
            is the one-to-many matching of H-DETR (arXiv 2207.13080).
    """

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    weight_class: float = 1.0
    weight_bbox: float = 5.0
    weight_giou: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    mal_gamma: float = 1.5
    encoder_repeats: int = 1

    def __post_init__(self) -> None:
        check_ranges(self, LOSS_RANGES)


AugmentName = Literal["none", "default", "strong", "published"]
FreezeName = Literal["none", "backbone"]
ClassLossName = Literal["focal", "mal"]
"""Sigmoid focal loss as published, or the matchability-aware loss of DEIM (arXiv 2412.04234,
equation 4), in which the target of a matched query is its box's IoU to the power of `mal_gamma`."""


@dataclass(frozen=True)
class TrainConfig:
    """The training recipe as requested. None lets the plan choose (`engine/planning/plan.py`).

    At most one of `epochs`, `steps` and `minutes` sets the length; if all are None, the plan does.

    Attributes:
        epochs: Number of passes over the training images.
        steps: Number of optimizer steps.
        minutes: Duration of the training in minutes.
        images_per_step: Images per optimizer step: batch x accumulate x processes.
        batch: Images per forward pass and process.
        accumulate: Forward passes per optimizer step.
        lr: Learning rate of the transformer and the heads.
        backbone_lr_factor: Learning rate of the backbone, as a factor of `lr`.
        offsets_lr_factor: Learning rate of the attention's sampling offsets, as a factor of `lr`
            (ALGORITHM 26: the published factor of 0.1 has no effect in the official code).
        weight_decay: Weight decay of AdamW (published).
        clip_norm: Largest norm of the gradient; larger ones are scaled down to it (published).
        schedule: Course of the learning rate: "cosine", or "step" as published.
        step_milestones: Fractions of the run after which "step" lowers the learning rate
            (published: after epoch 11 of 12).
        step_gamma: Factor by which "step" lowers it (published).
        warmup_steps: Optimizer steps in which the learning rate rises from near zero.
        final_lr_factor: Where "cosine" ends, as a factor of `lr`.
        ema: Evaluate and save an exponential moving average of the weights.
        ema_decay: Decay of this average per step.
        dtype: Number format of the forward pass; "auto" is bf16 where it is fast.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        seed: Random seed.
        workers: Processes that load images; 0 for a thread.
        augment: Augmentation of the training images.
        class_loss: Loss of the classes.
        mosaic: Share of the samples that are made of four images, 0 to 1.
        copy_paste: Share of the samples that get objects of another image, 0 to 1.
        mosaic_until: Fraction of the run after which `mosaic` and `copy_paste` stop.
        scale_jitter: Lowest and highest factor of the image size at inference; None for the
            geometry of `augment`.
        image_size: Long side of the input in pixels.
        freeze: Parts that are not trained: "backbone" or "none".
        cached_views: Number of augmented views of each image whose backbone maps are kept on disk;
            0 for none. Needs `freeze` "backbone".
        eval_every_epochs: Number of epochs from one evaluation to the next.
        patience: Stop after this number of evaluations without a better AP; None for never.
        checkpoint_every_steps: Number of optimizer steps from one checkpoint to the next.
        log_every_steps: Number of optimizer steps from one report of the losses to the next.
        val_split: Share of the images for validation, if the data has no validation split.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.
        probe: Try the largest batch before the first step, to find out if memory suffices.
        plots: Draw plots into the run folder.
        loggers: Where metrics are reported besides the CSV file that is always written; None for
            TensorBoard, if it is installed.
        compile: Compile the backbone and the transformer's layers with `torch.compile`.
        shard: Spread weights and optimizer state over the processes ("fsdp") or not ("none").
        class_aliases: Classes that start from a class of the starting model with another name:
            "sofa=couch" starts the data's sofa from the model's couch.
        loss: Matching costs and loss weights.
    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    images_per_step: int | None = None
    batch: int | None = None
    accumulate: int | None = None
    lr: float | None = None
    backbone_lr_factor: float | None = None
    offsets_lr_factor: float = 1.0
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    schedule: Literal["step", "cosine"] = "cosine"
    step_milestones: tuple[float, ...] = (11 / 12,)
    step_gamma: float = 0.1
    warmup_steps: int | None = None
    final_lr_factor: float = 0.02
    ema: bool = True
    ema_decay: float | None = None
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    seed: int = 42
    workers: int | None = None
    augment: AugmentName | None = None
    class_loss: ClassLossName | None = None
    mosaic: float = 0.0
    copy_paste: float = 0.0
    mosaic_until: float = 0.8
    scale_jitter: tuple[float, float] | None = None
    image_size: int | None = None
    freeze: FreezeName | None = None
    cached_views: int = 0
    eval_every_epochs: int = 1
    patience: int | None = None
    checkpoint_every_steps: int = 500
    log_every_steps: int = 10
    val_split: float = 0.1
    gradient_checkpointing: bool = False
    probe: bool = True
    plots: bool = True
    loggers: tuple[str, ...] | None = None
    compile: bool = False
    shard: Literal["none", "fsdp"] = "none"
    class_aliases: tuple[str, ...] = ()
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        check_ranges(self, TRAIN_RANGES)
        for name in ("mosaic", "copy_paste", "mosaic_until"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}, expected a share from 0 to 1")
        if self.scale_jitter is not None and not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ConfigError(
                f"scale_jitter is {list(self.scale_jitter)}, expected a low and a high factor",
                "e.g. --set train.scale_jitter=[0.5,2.0]",
            )


@dataclass(frozen=True)
class ResolvedConfig(TrainConfig):
    """A recipe in which everything is chosen, as a run uses it and its config.toml stores it."""

    images_per_step: int = 8
    batch: int = 8
    accumulate: int = 1
    lr: float = 2e-4
    backbone_lr_factor: float = 0.1
    warmup_steps: int = 100
    ema_decay: float = 0.9997
    workers: int = 0
    augment: AugmentName = "default"
    class_loss: ClassLossName = "focal"
    freeze: FreezeName = "none"


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain values for JSON and TOML; tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build the config dataclass `cls` from plain values.

    Args:
        cls: One of this module's dataclasses.
        data: Keys are field names; missing keys keep their defaults.
        where: What errors begin with, e.g. the file's name.

    Raises:
        ConfigError: A key is unknown (the nearest known one is suggested) or a value is of the
            wrong type.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{prefix}expected a table of {cls.__name__} settings, found {shown(data)}"
        )
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in data:
        if key not in fields:
            raise ConfigError(
                f"{prefix}unknown setting {shown(key)} for {cls.__name__}",
                nearest_or_all(str(key), sorted(fields)),
            )
    return cls(**{k: _coerce(hints[k], v, f"{prefix}{k}") for k, v in data.items()})


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as type `hint`, or ConfigError. Floats may be given as ints, tuples as lists."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        table: type[Any] = typing.cast("type[Any]", hint)
        return value if isinstance(value, table) else from_dict(table, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(
                f"{where}: {shown(value)} is not one of {', '.join(map(str, args))}",
                nearest(shown(value), map(str, args)),
            )
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {shown(value)}")
        item = args[0]
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, found {len(value)}")
        return tuple(_coerce(item, v, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # an integer of more than 308 digits
            raise ConfigError(f"{where}: expected a number, found {shown(value)}") from None
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, found {shown(value)}")
    return value
