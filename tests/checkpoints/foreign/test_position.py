from __future__ import annotations

import pytest

from dino_core.checkpoints.foreign.layouts import DETREX, MMDET, OFFICIAL, Layout
from dino_core.checkpoints.foreign.position import find_position
from dino_core.errors import CheckpointError, ConfigError

CONFIG = """model = dict(
    num_queries=900,
    positional_encoding=dict(
        normalize=True, num_feats=128, offset={offset}, temperature={temperature}),
    type='DINO')
optim_wrapper = dict(optimizer=dict(lr=0.0001))
"""


@pytest.mark.parametrize(
    ("layout", "file", "text", "expected"),
    [
        (OFFICIAL, "checkpoint0011_4scale.pth", "", (20, 0)),
        (DETREX, "dino_r50_4scale_12ep.pth", "", (10000, -0.5)),
        (DETREX, "dino_r50_4scale_24ep.pth", "", (20, 0)),
        (
            MMDET,
            "dino-4scale_r50_improved_8xb2-12e_coco_20230818_162607-6f47a913.pth",
            "",
            (10000, -0.5),
        ),
        (MMDET, "a.pth", "", (20, 0)),
        (MMDET, "a.pth", "model = dict(type='DINO')\n", (20, 0)),
        (MMDET, "a.pth", CONFIG.format(offset="0.0", temperature="20"), (20, 0)),
        (MMDET, "a.pth", CONFIG.format(offset="-0.5", temperature="10000"), (10000, -0.5)),
        (MMDET, "a.pth", CONFIG.format(offset="-5e-1", temperature="1e4"), (10000, -0.5)),
        # what the code means where its configuration does not say
        (MMDET, "a.pth", "positional_encoding=dict(num_feats=128, normalize=True)", (10000, 0)),
    ],
)
def test_where_it_is_from(
    layout: Layout, file: str, text: str, expected: tuple[float, float]
) -> None:
    found = find_position(layout, file, text, None, None)
    assert (found.temperature, found.offset) == expected
    assert ("file's configuration" in found.source) == ("positional_encoding" in text)
    assert ("does not state" in found.source) == (found.source.startswith(("detrex's", "mmdet's")))


def test_what_is_asked_for_comes_first() -> None:
    text = CONFIG.format(offset="-0.5", temperature="10000")
    found = find_position(MMDET, "a.pth", text, 20.0, None)
    assert (found.temperature, found.offset, found.source) == (20, -0.5, "as requested")
    found = find_position(DETREX, "dino_r50_4scale_24ep.pth", "", None, -0.25)
    assert (found.temperature, found.offset) == (20, -0.25)
    found = find_position(DETREX, "a.pth", "", None, 0.0)
    assert (found.temperature, found.offset) == (10000, 0)


@pytest.mark.parametrize(
    "bad", [(0.0, None), (-20.0, 0.0), (float("nan"), None), (20, float("inf"))]
)
def test_impossible_ones(bad: tuple[float | None, float | None]) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        find_position(DETREX, "a.pth", "", *bad)


def test_positions_that_are_not_normalised() -> None:
    with pytest.raises(CheckpointError, match="not normalized"):
        find_position(MMDET, "a.pth", "positional_encoding=dict(normalize=False)", None, None)
    strange = "positional_encoding=dict(temperature=1.2.3)"
    with pytest.raises(CheckpointError, match=r"temperature is 1\.2\.3"):
        find_position(MMDET, "a.pth", strange, None, None)
