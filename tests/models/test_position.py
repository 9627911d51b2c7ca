from __future__ import annotations

import math

import pytest
import torch

from dino_core.models.position import image_position_encoding


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_each_valid_pixel_has_its_own_sines(offset: float) -> None:
    """Against the formula of ALGORITHM 4, pixel by pixel, in an image with padding."""
    height, width, hidden, temperature = 5, 7, 16, 20.0
    valid_h, valid_w = 4, 6
    mask = torch.ones(2, height, width, dtype=torch.bool)
    mask[0, :valid_h, :valid_w] = False
    mask[1] = False
    found = image_position_encoding(mask, hidden, temperature, offset)
    assert found.shape == (2, height, width, hidden)
    for image, (rows, columns) in enumerate([(valid_h, valid_w), (height, width)]):
        for y in range(rows):
            for x in range(columns):
                expected = []
                for place, count in ((y, rows), (x, columns)):
                    angle = (place + 1 + offset) / (count + 1e-6) * 2 * math.pi
                    for channel in range(hidden // 2):
                        wave = angle / temperature ** (2 * (channel // 2) / (hidden // 2))
                        expected.append(math.sin(wave) if channel % 2 == 0 else math.cos(wave))
                torch.testing.assert_close(
                    found[image, y, x], torch.tensor(expected), atol=2e-6, rtol=0
                )
