"""The deterministic weights and inputs behind the golden numbers; see README.md."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_core.targets import Target

GOLDEN = Path(__file__).parent
_TIED = re.compile(r"^(?:transformer\.decoder\.)?(bbox_embed|class_embed)\.\d+\.(.*)$")
_NORMAL = ("transformer.level_embed", "transformer.tgt_embed.weight", "label_enc.weight")
_HEADS, _POINTS = 8, 4


def official_shapes() -> dict[str, list[int]]:
    """Parameter names and shapes of the official R50 4-scale model."""
    shapes: dict[str, list[int]] = json.loads((GOLDEN / "keys_4scale_r50.json").read_text())
    return shapes


def official_state() -> dict[str, Tensor]:
    """Its weights, by official name."""
    return {name: weight(name, tuple(shape)) for name, shape in official_shapes().items()}


def normal(key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    digest = hashlib.sha256(f"0:{key}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    return rng.standard_normal(shape)


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    match = _TIED.match(key)
    key = f"{match.group(1)}.0.{match.group(2)}" if match else key
    n = normal(key, shape)
    if key.endswith("running_var"):
        value = 1.0 + 0.1 * np.abs(n)
    elif key.endswith("running_mean"):
        value = 0.05 * n
    elif key.endswith("sampling_offsets.bias"):
        value = _offset_grid(n.size) + 0.1 * n
    elif key.endswith("sampling_offsets.weight"):
        value = n * (0.5 / np.sqrt(shape[1]))
    elif "class_embed" in key and key.endswith(".bias"):
        value = -4.6 + 0.5 * n
    elif "bbox_embed" in key and ".layers.2." in key:
        value = 0.05 * n
    elif key in _NORMAL:
        value = n
    elif len(shape) == 1:
        value = 1.0 + 0.05 * n if key.endswith("weight") else 0.02 * n
    else:
        value = n / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32))


def _offset_grid(numel: int) -> NDArray[np.float64]:
    angle = np.arange(_HEADS) * (2.0 * np.pi / _HEADS)
    grid = np.stack([np.cos(angle), np.sin(angle)], -1)
    grid = grid / np.abs(grid).max(-1, keepdims=True)
    levels = numel // (_HEADS * _POINTS * 2)
    grid = np.tile(grid[:, None, None, :], (1, levels, _POINTS, 1))
    return (grid * (np.arange(_POINTS) + 1.0)[None, None, :, None]).reshape(-1)


def _image(i: int, h: int, w: int) -> Tensor:
    y, x = np.arange(h, dtype=np.float64)[:, None], np.arange(w, dtype=np.float64)[None, :]
    u, v = x / w, y / h
    pi2 = 2 * np.pi
    channels = [
        np.sin(pi2 * (3 + c + i) * u + 0.7 * c) * np.cos(pi2 * (2 + c) * v + 0.4 * i)
        + 0.5 * np.sin(pi2 * (11 + 2 * i) * u * v + 5.0 * u * u + c)
        + 0.4 * np.cos(0.31 * x + 0.17 * y + 9.0 * v * v + 1.3 * c)
        + 0.3 * np.sin(0.9 * x - 0.55 * y * (1 + 0.2 * c) + 3.0 * u)
        for c in range(3)
    ]
    return torch.from_numpy(np.stack(channels).astype(np.float32))


def batch() -> tuple[Tensor, Tensor]:
    """Two images padded to (2, 3, 416, 480), and their padding mask."""
    images = torch.zeros(2, 3, 416, 480)
    mask = torch.ones(2, 416, 480, dtype=torch.bool)
    for i, (h, w) in enumerate(((352, 480), (416, 320))):
        images[i, :, :h, :w] = _image(i, h, w)
        mask[i, :h, :w] = False
    return images, mask


def targets() -> list[Target]:
    """3 and 5 boxes."""
    result = []
    for i, count in enumerate((3, 5)):
        j = np.arange(count, dtype=np.float64)
        rows = [
            0.25 + 0.5 * np.mod(0.37 * (j + 1) + 0.11 * i, 1),
            0.25 + 0.5 * np.mod(0.61 * (j + 1) + 0.23 * i, 1),
            0.10 + 0.35 * np.mod(0.29 * (j + 1) + 0.17 * i, 1),
            0.08 + 0.40 * np.mod(0.53 * (j + 1) + 0.31 * i, 1),
        ]
        labels = ((17 * np.arange(count) + 29 * i + 1) % 91).astype(np.int64)
        boxes = torch.from_numpy(np.stack(rows, -1).astype(np.float32))
        result.append(Target(torch.from_numpy(labels), boxes))
    return result


def matcher_inputs() -> tuple[Tensor, Tensor]:
    """(2, 900, 91) logits and (2, 900, 4) boxes."""

    def sigmoid(a: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1.0 / (1.0 + np.exp(-a))

    logits = normal("matcher.logits", (2, 900, 91)) * 1.5 - 3.0
    b = normal("matcher.boxes", (2, 900, 4))
    boxes = np.concatenate([sigmoid(b[..., :2]), 0.03 + 0.45 * sigmoid(b[..., 2:])], -1)
    return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(boxes.astype(np.float32))
