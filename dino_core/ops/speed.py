"""Measures how fast deformable attention is on this machine, for `dino env`."""

from __future__ import annotations

import time

import torch

from dino_core.ops.deformable_attention import deformable_attention

_LEVELS = [(60, 80), (30, 40), (15, 20), (8, 10)]  # 480x640 at strides 8 to 64
_HEADS, _CHANNELS, _POINTS, _REPEATS = 8, 32, 4, 3


def encoder_forward_ms(device: str) -> float:
    """Milliseconds of an encoder layer's attention for a 480x640 image in fp32, best of three."""
    tokens = sum(height * width for height, width in _LEVELS)
    points = (1, tokens, _HEADS, len(_LEVELS), _POINTS)
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, tokens, _HEADS, _CHANNELS, generator=generator).to(device)
    references = torch.rand(1, tokens, len(_LEVELS), 2, generator=generator).to(device)
    offsets = torch.randn(*points, 2, generator=generator).to(device)
    logits = torch.randn(points, generator=generator).to(device)
    times = []
    with torch.inference_mode():
        for _ in range(1 + _REPEATS):  # the first run warms up
            start = time.perf_counter()
            deformable_attention(value, _LEVELS, references, offsets, logits)
            if device != "cpu":
                # A GPU only queues the work, so without this the time would be that of the launch.
                torch.accelerator.synchronize()
            times.append(time.perf_counter() - start)
    # Other work on the machine can only make a run slower, so the fastest is the closest to the
    # truth.
    return min(times[1:]) * 1e3
