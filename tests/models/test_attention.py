from __future__ import annotations

import pytest
import torch

from dino_core.models.attention import SelfAttention


@pytest.mark.parametrize("masked", [False, True])
def test_bf16_training_equals_fp32(masked: bool) -> None:
    """Training in bf16 on a CPU goes another way than the fused operator."""
    torch.manual_seed(0)
    layer = SelfAttention(32, 4)
    torch.nn.init.normal_(layer.in_proj_weight, std=0.2)
    x, position = torch.randn(2, 2, 9, 32)
    blocked = torch.zeros(9, 9, dtype=torch.bool)
    blocked[5:, :5] = True
    mask = blocked if masked else None

    def gradient(out: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(out.float().square().sum(), layer.in_proj_weight)
        return found

    wanted = layer(x, position, mask)
    with torch.autocast("cpu", torch.bfloat16):
        given = layer(x, position, mask)
    assert given.dtype == torch.bfloat16
    torch.testing.assert_close(given.float(), wanted, atol=0.03, rtol=0.03)
    exact, found = gradient(wanted), gradient(given)
    assert (found - exact).norm() < 0.03 * exact.norm()


def test_blocked_pairs_do_not_meet() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(32, 4)
    torch.nn.init.normal_(layer.in_proj_weight, std=0.2)
    x = torch.randn(1, 9, 32, requires_grad=True)
    blocked = torch.zeros(9, 9, dtype=torch.bool)
    blocked[5:, :5] = True
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, torch.zeros(1, 9, 32), blocked)
    (grad,) = torch.autograd.grad(out[:, 5:].float().sum(), x)
    assert grad[:, :5].abs().max() == 0
    assert grad[:, 5:].abs().min() > 0
