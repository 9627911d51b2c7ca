"""Small things tests are made of: a DINO of a few thousand parameters and labelled pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dino_core.config import ModelConfig, PreprocessConfig
from dino_core.detections import ClassMap
from dino_core.metadata import CheckpointMeta

CLASS_NAMES = ("square", "disc")
COLORS = {"square": (220, 40, 40), "disc": (40, 90, 230)}
TINY_INPUT = PreprocessConfig(short_side=64, max_side=64)


def tiny_config(num_classes: int = len(CLASS_NAMES)) -> ModelConfig:
    """A true DINO, as small as one can be: every code path, hardly any arithmetic."""
    return ModelConfig(
        variant="dino-tiny",
        backbone="test_efficientnet",
        backbone_out_indices=(2, 3),
        backbone_frozen_stages=0,
        num_classes=num_classes,
        num_levels=2,
        hidden_dim=32,
        num_heads=2,
        num_points=2,
        ffn_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=20,
        dn_number=5,
    )


def tiny_checkpoint(path: Path, classes: ClassMap | None = None, seed: int = 0) -> Path:
    """Write a model file with random weights and return its path."""
    import torch

    from dino_core.checkpoints.io import save_checkpoint
    from dino_core.models.dino import Dino

    classes = classes or ClassMap.from_names(CLASS_NAMES)
    config = tiny_config(len(classes))
    torch.manual_seed(seed)
    meta = CheckpointMeta("dino-tiny", config, TINY_INPUT, classes)
    save_checkpoint(path, Dino(config).state_dict(), meta)
    return path


def draw_shapes(
    rng: np.random.Generator, size_hw: tuple[int, int], count: int
) -> tuple[Image.Image, list[tuple[str, tuple[int, int, int, int]]]]:
    """A gray picture with `count` coloured shapes; their names and (x, y, w, h) boxes."""
    height, width = size_hw
    image = Image.new("RGB", (width, height), (128, 128, 128))
    pen = ImageDraw.Draw(image)
    shapes = []
    for _ in range(count):
        side = int(rng.integers(min(size_hw) // 5, min(size_hw) // 2))
        x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        name = CLASS_NAMES[int(rng.integers(len(CLASS_NAMES)))]
        corners = (x, y, x + side - 1, y + side - 1)
        (pen.rectangle if name == "square" else pen.ellipse)(corners, fill=COLORS[name])
        shapes.append((name, (x, y, side, side)))
    return image, shapes


def make_images(folder: Path, count: int = 2, size_hw: tuple[int, int] = (48, 64)) -> list[Path]:
    """Write pictures of shapes and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"image{index}.png" for index in range(count)]
    for path in paths:
        draw_shapes(rng, size_hw, 2)[0].save(path)
    return paths


def make_coco_dataset(
    root: Path,
    splits: Sequence[tuple[str, int]] = (("train", 6), ("val", 3)),
    size_hw: tuple[int, int] = (48, 64),
) -> Path:
    """Write `root/annotations/instances_SPLIT.json` and `root/SPLIT/*.png`; category ids from 1."""
    rng = np.random.default_rng(1)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count in splits:
        (root / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            image, shapes = draw_shapes(rng, size_hw, 1 + number % 2)
            image.save(root / split / f"{number:04d}.png")
            images.append(
                {
                    "id": number, "file_name": f"{number:04d}.png",
                    "width": size_hw[1], "height": size_hw[0],
                }
            )  # fmt: skip
            for name, box in shapes:
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": number,
                        "category_id": CLASS_NAMES.index(name) + 1, "bbox": list(box),
                        "area": box[2] * box[3], "iscrowd": 0,
                    }
                )  # fmt: skip
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": n} for i, n in enumerate(CLASS_NAMES, start=1)],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root
