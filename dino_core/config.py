"""All settings as frozen dataclasses, the only schema: strict `from_dict`, `to_dict`, and TOML."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from dino_core.errors import ConfigError

if typing.TYPE_CHECKING:
    import tomllib
else:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

T = TypeVar("T")

NECK_GROUPS = 32  # of each level's GroupNorm (ALGORITHM 2)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the network's parameters and arithmetic.

    The defaults are the published 4-scale ResNet-50 (arXiv 2203.03605, appendix; official
    `DINO_4scale.py`).
    """

    variant: str = "dino-r50-4scale"
    backbone: str = "resnet50"  # a timm name that supports features_only
    backbone_out_indices: tuple[int, ...] = (2, 3, 4)
    backbone_frozen_stages: int = 2  # leading timm feature stages without gradient
    backbone_drop_path: float = 0.0  # stochastic depth in training, of Swin, ConvNeXt and others
    num_classes: int = 91
    num_levels: int = 4  # backbone maps plus extra stride-2 levels
    hidden_dim: int = 256
    num_heads: int = 8
    num_points: int = 4
    ffn_dim: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_queries: int = 900
    tied_heads: bool = True  # one box and one class head for all decoder layers (official)
    neck_bias: bool = True
    position_temperature: float = 20.0
    position_offset: float = 0.0  # detrex: -0.5
    box_eps: float = 1e-3  # inverse_sigmoid epsilon of the predicted boxes (mmdet: 1e-5)
    dn_number: int = 100  # half the number of denoising queries; 0: none
    dn_label_noise_ratio: float = 0.5
    dn_box_noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.hidden_dim % self.num_heads or self.hidden_dim % NECK_GROUPS:
            raise ConfigError(
                f"hidden_dim is {self.hidden_dim}; it must be a multiple of num_heads "
                f"({self.num_heads}) and of {NECK_GROUPS}, the groups of the neck's norms"
            )
        if self.num_levels < len(self.backbone_out_indices):
            raise ConfigError(
                f"num_levels is {self.num_levels}, fewer than the "
                f"{len(self.backbone_out_indices)} maps of backbone_out_indices"
            )
        if ":" in self.backbone:  # timm would fetch or read what a model file names
            raise ConfigError(f"backbone '{self.backbone}' is a place, not a timm name")


@dataclass(frozen=True)
class PreprocessConfig:
    """How an image becomes the network's input; stored in every checkpoint.

    The image is resized, aspect kept, so that its short side is `short_side` unless the long side
    would exceed `max_side`; other side truncated (ALGORITHM 28). With a `canvas` it is then padded
    to that (height, width), so that every image has one shape, in PyTorch as in an exported file;
    the published models have none. `rounding` and `interpolation` differ in detrex and mmdet.
    """

    short_side: int = 800
    max_side: int = 1333
    canvas: tuple[int, int] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    rounding: Literal["down", "nearest"] = "down"  # of the resized sides
    interpolation: Literal["antialiased", "plain"] = "antialiased"  # bilinear of Pillow, OpenCV


@dataclass(frozen=True)
class LossConfig:
    """Matching costs and loss weights (paper appendix; official `DINO_4scale.py`)."""

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    weight_class: float = 1.0
    weight_bbox: float = 5.0
    weight_giou: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    mal_gamma: float = 1.5  # DEIM's
    encoder_repeats: int = 1  # proposals matched to each box; 1 as published, more: H-DETR's way

    def __post_init__(self) -> None:
        if self.encoder_repeats < 1:
            raise ConfigError(f"encoder_repeats is {self.encoder_repeats}; it must be at least 1")


AugmentName = Literal["none", "default", "strong", "published"]
FreezeName = Literal["none", "backbone"]
ClassLossName = Literal["focal", "mal"]
"""Sigmoid focal loss as published, or the matchability-aware loss of DEIM (arXiv 2412.04234,
equation 4): a matched query aims at its box's IoU to the power of `mal_gamma`, not at 1."""
LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]
LOGGERS: tuple[str, ...] = typing.get_args(LoggerName)


@dataclass(frozen=True)
class TrainConfig:
    """The training recipe as asked for; None: the plan chooses (`engine/planning/plan.py`).

    At most one of `steps`, `epochs`, `minutes` decides the length; all None: chosen too.
    """

    epochs: int | None = None
    steps: int | None = None  # optimiser steps
    minutes: float | None = None
    images_per_step: int | None = None  # batch x accumulate x processes
    batch: int | None = None  # images a forward pass
    accumulate: int | None = None  # forward passes a step
    lr: float | None = None
    backbone_lr_factor: float | None = None
    offsets_lr_factor: float = 1.0  # of attention's sampling offsets (published: no effect, 26)
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    schedule: Literal["step", "cosine"] = "cosine"
    step_milestones: tuple[float, ...] = (11 / 12,)  # fractions of the run
    step_gamma: float = 0.1
    warmup_steps: int | None = None
    final_lr_factor: float = 0.02  # cosine ends here
    ema: bool = True
    ema_decay: float | None = None
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    seed: int = 42
    workers: int | None = None  # processes that load images; 0: a thread
    augment: AugmentName | None = None
    class_loss: ClassLossName | None = None
    mosaic: float = 0.0  # share of the samples that are made of four images
    copy_paste: float = 0.0  # share of the samples that get objects of another image
    mosaic_until: float = 0.8  # fraction of the run after which neither of the two is done
    scale_jitter: tuple[float, float] | None = None  # of the inference size; None: `augment`'s own
    image_size: int | None = None  # long side in pixels
    freeze: FreezeName | None = None
    cached_views: int = 0  # of each image, their backbone maps kept on disk; needs freeze backbone
    eval_every_epochs: int = 1
    patience: int | None = None  # evaluations without a better AP before stopping; None: never
    checkpoint_every_steps: int = 500
    log_every_steps: int = 10
    val_split: float = 0.1  # used only when the data has no validation split
    gradient_checkpointing: bool = False
    probe: bool = True  # the worst batch goes through once before the first step
    plots: bool = True
    loggers: tuple[LoggerName, ...] | None = None
    # csv is always written; None: TensorBoard too, where it is installed
    compile: bool = False  # torch.compile of backbone and transformer layers
    shard: Literal["none", "fsdp"] = "none"  # spread weights and moments over the processes
    class_aliases: tuple[str, ...] = ()  # "sofa=couch": the data's sofa starts as the model's couch
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
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
    """A recipe in which everything is chosen: what a run goes by and its config.toml holds."""

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


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """`did you mean ...` for an unknown name; empty when nothing is near."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else ""


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON/TOML values (tuples become lists)."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build config dataclass `cls` from plain values.

    Args:
        cls: One of this module's dataclasses.
        data: Keys are field names; missing keys keep their defaults.
        where: Shown in errors, e.g. the file's name.

    Raises:
        ConfigError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{prefix}expected a table of {cls.__name__} settings, found {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in data:
        if key not in fields:
            raise ConfigError(
                f"{prefix}unknown setting '{key}' for {cls.__name__}",
                nearest(str(key), fields) or f"known: {', '.join(sorted(fields))}",
            )
    return cls(**{k: _coerce(hints[k], v, f"{prefix}{k}") for k, v in data.items()})


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as type `hint`, or ConfigError; ints pass for floats, lists for tuples."""
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
                f"{where}: {value!r} is not one of {', '.join(map(str, args))}",
                nearest(str(value), map(str, args)),
            )
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        item = args[0]
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, found {len(value)}")
        return tuple(_coerce(item, v, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def load_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises ConfigError where it is missing or malformed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def dump_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings as TOML text; None is left out, since TOML has no null."""
    return tomli_w.dumps(_without_none(tables))


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def apply_overrides(tables: dict[str, Any], assignments: typing.Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=c` assignments (values in TOML syntax, bare words as strings) to nested tables.

    Returns: a new nested dict; `tables` is unchanged.
    Raises: ConfigError on an assignment without `=`.
    """
    result = {k: dict(v) if isinstance(v, Mapping) else v for k, v in tables.items()}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE", "e.g. --set train.lr=1e-4")
        try:
            value = tomllib.loads(f"v = {text.strip()}")["v"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        node = result
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            child = node.get(parent, {})
            if not isinstance(child, Mapping):
                raise ConfigError(f"--set {assignment}: '{parent}' is not a table")
            node[parent] = dict(child)
            node = node[parent]
        node[leaf] = value
    return result
