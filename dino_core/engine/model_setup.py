"""How a network is set up for training: data type, frozen part, average, shards, compilation."""

from __future__ import annotations

import copy

import torch

from dino_core.config import FreezeName, ResolvedConfig, TrainConfig
from dino_core.engine.compiling import check_compiler, compile_parts
from dino_core.engine.ema import Ema
from dino_core.engine.parallel.sharding import check_sharding, shard
from dino_core.errors import ConfigError
from dino_core.models.dino import Dino


def check_options(config: TrainConfig, device: torch.device) -> None:
    """Raises ConfigError where this machine cannot do what `config` asks for."""
    if config.shard == "fsdp":
        check_sharding()
        other = "compile" if config.compile else "cached_views" if config.cached_views else ""
        if other:
            raise ConfigError(
                f"train.{other} and train.shard = fsdp: not supported together", "choose one"
            )
    if config.compile:
        check_compiler(device)


def choose_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Data type inside the network: bfloat16 where the hardware multiplies it, else float32."""
    if config.dtype != "auto":
        return torch.bfloat16 if config.dtype == "bf16" else torch.float32
    if device.type == "cuda":
        # Older GPUs emulate bfloat16, which is slower than float32.
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and cpu_multiplies_bf16()
    return torch.bfloat16 if fast else torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has instructions that multiply bfloat16 numbers."""
    # Other processors convert to float32 for each product, which costs more than it saves.
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def freeze(model: Dino, part: FreezeName) -> None:
    """Exclude a part of the model from training: its parameters get no gradients."""
    if part == "backbone":
        model.backbone.requires_grad_(False)


def training_mode(model: Dino, frozen: FreezeName) -> None:
    """Set the model to training mode, except for its frozen part."""
    # For stochastic depth, and because the decoder predicts from all layers in training mode only.
    # Batch norms are frozen in either mode.
    model.train()
    if frozen == "backbone":
        model.backbone.eval()


def average_of(network: Dino, config: ResolvedConfig, device: torch.device) -> Ema[Dino] | None:
    """The weight average of `network`, which is sharded and compiled as `config` says.

    The copy is made first: a sharded or compiled model cannot be copied.
    """
    shadow = copy.deepcopy(network) if config.ema else None
    if config.shard == "fsdp":
        shard(network, device)
        if shadow is not None:
            shard(shadow, device)
    if config.compile:
        # Only the live model: the average predicts a few times per run, less than its compilation
        # costs.
        compile_parts(network)
    return None if shadow is None else Ema(network, config.ema_decay, shadow)
