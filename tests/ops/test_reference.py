"""The reference against numbers worked out by hand; the rest is tested against the reference."""

from __future__ import annotations

import pytest
import torch

from dino_core.ops.reference import ms_deform_attn_reference


def sample(x: float, y: float, image: list[list[float]]) -> float:
    """One point of weight 1 on a one-channel image."""
    pixels = torch.tensor(image, dtype=torch.float64)
    height, width = pixels.shape
    return float(
        ms_deform_attn_reference(
            pixels.reshape(1, -1, 1, 1),
            [(height, width)],
            torch.tensor([x, y], dtype=torch.float64).reshape(1, 1, 1, 1, 1, 2),
            torch.ones(1, 1, 1, 1, 1, dtype=torch.float64),
        )
    )


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.25, 0.25, 1.0),  # center of the first pixel of a 2 x 2 level
        (0.75, 0.25, 2.0),
        (0.25, 0.75, 3.0),
        (0.5, 0.5, 2.5),  # the mean of all four
        (0.5, 0.25, 1.5),
        (0.0, 0.25, 0.5),  # on the left border half of the sample is outside, and zero
        (0.0, 0.0, 0.25),
        (1.0, 1.0, 1.0),
        (-0.25, 0.25, 0.0),  # a whole pixel outside
        (1.25, 0.25, 0.0),
        (float("nan"), 0.25, 0.0),
        (0.25, float("inf"), 0.0),
        (1e30, 0.25, 0.0),
        (-3e38, 3e38, 0.0),
    ],
)
def test_bilinear_sample(x: float, y: float, expected: float) -> None:
    assert sample(x, y, [[1.0, 2.0], [3.0, 4.0]]) == pytest.approx(expected, abs=1e-12)


def test_levels_points_and_heads_are_summed_in_their_order() -> None:
    # Two 1 x 1 levels, two heads, two points in each center: weighted sums, by hand.
    value = torch.tensor([[[10.0], [20.0]], [[100.0], [200.0]]]).reshape(1, 2, 2, 1)  # S, M
    weights = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[1.0, 0.0], [0.0, 2.0]]])  # M, L, P
    locations = torch.full((1, 1, 2, 2, 2, 2), 0.5)
    output = ms_deform_attn_reference(
        value, [(1, 1), (1, 1)], locations, weights.reshape(1, 1, 2, 2, 2)
    )
    head_0 = 0.3 * 10 + 0.7 * 100
    head_1 = 1.0 * 20 + 2.0 * 200
    torch.testing.assert_close(output, torch.tensor([[[head_0, head_1]]]))
