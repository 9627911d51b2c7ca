"""A model of a few thousand parameters, to try the benchmark scripts in seconds."""

from __future__ import annotations

from pathlib import Path

import torch

from dino_core.checkpoints.io import save_checkpoint
from dino_core.config import ModelConfig, PreprocessConfig
from dino_core.detections import ClassMap
from dino_core.metadata import CheckpointMeta
from dino_core.models.dino import Dino

TINY = ModelConfig(
    variant="dino-tiny",
    backbone="test_efficientnet",
    backbone_out_indices=(2, 3),
    backbone_frozen_stages=0,
    num_classes=3,
    num_levels=2,
    hidden_dim=32,
    num_heads=2,
    ffn_dim=64,
    encoder_layers=1,
    decoder_layers=2,
    num_queries=50,
    dn_number=10,
)


def write_tiny_model(path: Path) -> Path:
    """Write a model file with random weights and return its path."""
    torch.manual_seed(0)
    classes = ClassMap.from_names(["a", "b", "c"])
    meta = CheckpointMeta(TINY.variant, TINY, PreprocessConfig(128, 128), classes)
    save_checkpoint(path, Dino(TINY).state_dict(), meta)
    return path
