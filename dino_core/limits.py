"""Ranges of settings, and the readable display of values that people or files give."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from dino_core.errors import ConfigError

_SHOWN = 80  # characters of a value in a message
_ITEMS = 8  # of a list
_DEPTH = 3  # lists within lists
_BITS = 200  # of an integer; about 60 digits

MAX_IMAGE_SIZE = 4096  # pixels; at this size the smallest model takes 3.4 GB for one image

MODEL_RANGES: dict[str, tuple[float, float]] = {
    "backbone_out_indices": (0, 31),
    "backbone_frozen_stages": (0, 32),
    "backbone_drop_path": (0, 0.99),
    "num_classes": (1, 100_000),
    "num_levels": (1, 16),
    "hidden_dim": (1, 8192),
    "num_heads": (1, 1024),
    "num_points": (1, 64),
    "ffn_dim": (1, 1 << 16),
    "encoder_layers": (0, 100),
    "decoder_layers": (1, 100),
    "num_queries": (1, 20_000),
    "position_temperature": (1e-3, 1e9),
    "position_offset": (-1e3, 1e3),
    "box_eps": (1e-9, 0.1),
    "dn_number": (0, 10_000),
    "dn_label_noise_ratio": (0, 2),
    "dn_box_noise_scale": (0, 100),
}
"""Far beyond any DINO, yet small enough that a false value can neither take all memory nor fail
somewhere in the network."""

PREPROCESS_RANGES: dict[str, tuple[float, float]] = {
    "short_side": (1, MAX_IMAGE_SIZE),
    "max_side": (1, MAX_IMAGE_SIZE),
    "canvas": (1, MAX_IMAGE_SIZE),
    "mean": (-1e3, 1e3),
    "std": (1e-6, 1e3),
}

TRAIN_RANGES: dict[str, tuple[float, float]] = {
    "minutes": (0, 1e7),
    "lr": (0, 1e30),
    "backbone_lr_factor": (0, 1e3),
    "offsets_lr_factor": (0, 1e3),
    "weight_decay": (0, 1e3),
    "clip_norm": (0, 1e9),
    "step_gamma": (0, 1e3),
    "final_lr_factor": (0, 1e3),
    "ema_decay": (0, 1),
    "scale_jitter": (0, 100),
    "val_split": (0, 1),
}
"""Above all, they leave out NaN and infinity, with which a run fails after minutes."""

LOSS_RANGES: dict[str, tuple[float, float]] = {
    "cost_class": (0, 1e6),
    "cost_bbox": (0, 1e6),
    "cost_giou": (0, 1e6),
    "weight_class": (0, 1e38),
    "weight_bbox": (0, 1e38),
    "weight_giou": (0, 1e38),
    "focal_alpha": (0, 1),
    "focal_gamma": (0, 100),
    "mal_gamma": (0, 100),
    "encoder_repeats": (1, 100),
}


def check_ranges(config: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Check the numbers of a config dataclass.

    Args:
        config: Its tuples are checked number by number, and None is accepted.
        ranges: Field name to the smallest and largest value that is allowed.

    Raises:
        ConfigError: A number is outside its range, or not a number at all (NaN).
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:
                raise ConfigError(f"{name} is {shown(value)}; it must be from {low:g} to {high:g}")


def shown(value: Any) -> str:
    """A value for an error message: one short line, however large or deep the value is.

    `repr` takes any time and memory for a list that repeats others many times, as a YAML file can
    describe in a few bytes, and it fails for thousands of digits and for thousands of levels.
    """
    text = _shown(value, _DEPTH)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def readable(text: str) -> str:
    """A name from a file as it is, if it is short and can be printed; otherwise as `shown`."""
    return text if len(text) <= _SHOWN and text.isprintable() else shown(text)


def _shown(value: Any, depth: int) -> str:
    if isinstance(value, int) and value.bit_length() > _BITS:
        return "a number of more than 60 digits"
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, bytes)):
        return repr(value[:_SHOWN])
    if not isinstance(value, (list, tuple, Mapping)):
        return f"a value of type {type(value).__name__}"
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        pairs = islice(value.items(), _ITEMS)
        items = [f"{_shown(key, 0)}: {_shown(item, depth - 1)}" for key, item in pairs]
    else:
        items = [_shown(item, depth - 1) for item in value[:_ITEMS]]
    more = ["..."] if len(value) > _ITEMS else []
    left, right = "{}" if isinstance(value, Mapping) else "[]"
    return f"{left}{', '.join(items + more)}{right}"
