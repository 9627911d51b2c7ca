"""What a run needs before its first step: starting weights, device, arithmetic, input size."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dino_core.checkpoints.class_names import parse_aliases
from dino_core.checkpoints.io import Checkpoint
from dino_core.checkpoints.surgery import TransferReport, transfer
from dino_core.checkpoints.zoo import history, load, resolve
from dino_core.config import ModelConfig, PreprocessConfig, ResolvedConfig, TrainConfig
from dino_core.detections import ClassMap
from dino_core.engine.compiling import check_compiler, compile_parts
from dino_core.engine.ema import Ema
from dino_core.engine.parallel.sharding import check_sharding, shard
from dino_core.errors import ConfigError
from dino_core.models.dino import Dino
from dino_core.processing.preprocess import at_image_size
from dino_core.variants import VARIANTS

FROM_SCRATCH = "none"
"""As `weights`: random initialisation."""


@dataclass(frozen=True)
class Start:
    """A model ready to train and where its weights came from.

    Attributes:
        model: Ready to train.
        preprocess: Its input.
        report: What it took over; None from scratch and on resume.
        origin: What a person typed: a name, a file, "none".
        history: An entry for each model file that went before, oldest first (`zoo.history`).
    """

    model: Dino
    preprocess: PreprocessConfig
    report: TransferReport | None
    origin: str
    history: tuple[Mapping[str, Any], ...] = ()

    def at_size(self, image_size: int | None) -> Start:
        """The same with an input whose long side is `image_size`; None: as it is."""
        return replace(self, preprocess=at_image_size(self.preprocess, image_size))


def start_from(
    name: str,
    weights: str | Path | None,
    classes: ClassMap,
    model_config: ModelConfig | None = None,
    class_aliases: Sequence[str] = (),
) -> Start:
    """Build the network for `classes` and give it its starting weights, at its own input size.

    Args:
        name: A variant's name or a model file.
        weights: A model file, "none" (random), or None for the weights that `name` stands for.
        classes: The data's classes.
        model_config: Replaces the network's settings (its class count is ignored).
        class_aliases: `NEW=OLD`: the data's class starts with the rows of the model's.

    Raises:
        CheckpointError, ConfigError: no such model or weights, or they do not fit.
    """
    source: Checkpoint | None = None
    path = Path()
    if str(weights) != FROM_SCRATCH:
        path = resolve(str(weights) if weights is not None else name)
        source = load(path)
    if name in VARIANTS:
        base, preprocess = VARIANTS[name].model, VARIANTS[name].preprocess
        if source is not None and weights is None:
            base, preprocess = source.meta.model, source.meta.preprocess
        elif source is not None and source.meta.variant == name:
            base = source.meta.model  # e.g. heads one a layer and positions as mmdet's
    else:
        named = source if source is not None and weights is None else load(name)
        base, preprocess = named.meta.model, named.meta.preprocess
    config = replace(model_config or base, num_classes=len(classes))
    model = Dino(config)
    # Training resizes antialiased; what predicts with the new weights shall do the same.
    preprocess = replace(preprocess, interpolation="antialiased")
    if source is None:
        if class_aliases:
            raise ConfigError(
                "class aliases need starting weights, whose classes they name",
                "leave out --weights none, or --class-alias",
            )
        return Start(model, preprocess, None, FROM_SCRATCH)
    old = source.meta.classes
    aliases = parse_aliases(class_aliases, classes.names, old.names)
    report = transfer(model, source.state_dict, old, classes, aliases)
    return Start(model, preprocess, report, str(weights or name), history(path, source.meta))


def check_options(config: TrainConfig, device: torch.device) -> None:
    """Raises ConfigError where this machine or this start cannot do what is asked for."""
    if config.shard == "fsdp":
        check_sharding()
        other = "compile" if config.compile else "cached_views" if config.cached_views else ""
        if other:
            raise ConfigError(
                f"train.{other} and train.shard = fsdp: not supported together", "choose one"
            )
    if config.compile:
        check_compiler(device)


def average_of(network: Dino, config: ResolvedConfig, device: torch.device) -> Ema[Dino] | None:
    """The average of `network`, which is spread and compiled as `config` says."""
    shadow = copy.deepcopy(network) if config.ema else None
    if config.shard == "fsdp":
        shard(network, device)
        if shadow is not None:
            shard(shadow, device)
    if config.compile:
        compile_parts(network)
    return None if shadow is None else Ema(network, config.ema_decay, shadow)


def freeze(model: Dino, what: str) -> None:
    """Take the gradient from the part that `TrainConfig.freeze` names."""
    if what == "backbone":
        model.backbone.requires_grad_(False)


def training_mode(model: Dino, frozen: str) -> None:
    """Set the model to training, but for the part that `TrainConfig.freeze` names."""
    model.train()
    if frozen == "backbone":
        model.backbone.eval()


def choose_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Arithmetic inside the network: bfloat16 where the hardware multiplies it, else float32."""
    if config.dtype != "auto":
        return torch.bfloat16 if config.dtype == "bf16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and cpu_multiplies_bf16()
    return torch.bfloat16 if fast else torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
