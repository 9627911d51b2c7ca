"""Stochastic depth (arXiv 1603.09382): residual branches are left out at random in training."""

from __future__ import annotations

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Leaves the branch out for some images, and scales it up for the others."""

    def __init__(self, rate: float) -> None:
        """`rate` is the probability that the branch of an image is left out."""
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        # One draw per image: (B, 1, 1, ...).
        kept = branch.new_empty(len(branch), *(1,) * (branch.dim() - 1)).bernoulli_(keep)
        # The division keeps the expected value, so evaluation needs no correction.
        return branch * kept.div_(keep)


def rates(highest: float, depths: tuple[int, ...]) -> list[list[float]]:
    """The rate of each block, by stage: evenly from 0 at the first to `highest` at the last."""
    last = max(sum(depths) - 1, 1)
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [
        [highest * (start + block) / last for block in range(depth)]
        for start, depth in zip(starts, depths, strict=True)
    ]
