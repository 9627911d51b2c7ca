"""Projection of the backbone's maps to the transformer's width, and extra levels (ALGORITHM 2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dino_core.config import NECK_GROUPS


class Neck(nn.Module):
    """1x1 convolutions for the backbone's maps, 3x3 ones of stride 2 for the levels beyond them."""

    def __init__(
        self, in_channels: Sequence[int], hidden_dim: int, num_levels: int, bias: bool
    ) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, hidden_dim, 1, bias=bias), nn.GroupNorm(NECK_GROUPS, hidden_dim)
            )
            for channels in in_channels
        )
        # The first extra level reads the backbone's raw last map, 2048 channels in a ResNet, and
        # each further one the level before it (ALGORITHM 2).
        channels = in_channels[-1]
        for _ in range(num_levels - len(in_channels)):
            conv = nn.Conv2d(channels, hidden_dim, 3, stride=2, padding=1, bias=bias)
            self.input_proj.append(nn.Sequential(conv, nn.GroupNorm(NECK_GROUPS, hidden_dim)))
            channels = hidden_dim

    def reset_parameters(self) -> None:
        for projection in self.input_proj:
            assert isinstance(projection, nn.Sequential)
            conv = projection[0]
            assert isinstance(conv, nn.Conv2d)
            # A convolution's default in PyTorch is Kaiming; the official code chose Xavier
            # (ALGORITHM 27).
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute the levels of the transformer.

        Args:
            maps: Backbone maps (B, C_l, H_l, W_l), finest first.

        Returns: L maps (B, hidden, H_l, W_l). The first extra level reads the backbone's last map,
            not its projection; each further one reads the level before it.
        """
        levels = [
            projection(feature) for projection, feature in zip(self.input_proj, maps, strict=False)
        ]
        feature = maps[-1]
        for projection in self.input_proj[len(maps) :]:
            feature = projection(feature)
            levels.append(feature)
        return levels
