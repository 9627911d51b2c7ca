"""The pipeline: what reaches the network, in which batches, and what comes back."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from dino_core.config import PreprocessConfig
from dino_core.errors import DataError
from dino_core.inference.pipeline import Pipeline, group_by_shape

PLAIN = PreprocessConfig(short_side=32, max_side=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Mean:
    """A network whose only logit is the mean of the valid pixels of its image."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.padded = False

    def __call__(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.shapes.append(images.shape)
        self.padded |= bool(padding_mask.any())
        valid = 3 * (~padding_mask).sum(axis=(1, 2))
        logits = (images.sum(axis=(1, 2, 3)) / valid).astype(np.float32).reshape(-1, 1, 1)
        return logits, np.tile(np.array([0.5, 0.5, 1, 1], np.float32), (len(images), 1, 1))


def gray(value: int, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def means(outputs: list[list[float]]) -> list[list[int]]:
    return [[round(255 * value) for value in group] for group in outputs]


def test_groups_hold_one_shape_and_skip_what_is_missing() -> None:
    small, wide = (32, 32), (32, 64)
    shapes = [small, wide, None, small, small, wide]
    assert group_by_shape(shapes, 2) == [[0, 3], [4], [1, 5]]
    assert group_by_shape([], 2) == []


def test_images_of_several_shapes_are_never_padded_together() -> None:
    network = Mean()
    pipeline = Pipeline(network, PLAIN, None)
    prepared = [pipeline.prepare(gray(10)), pipeline.prepare(gray(20, 32, 64))]
    outputs = pipeline.outputs(prepared)
    assert network.shapes == [(1, 3, 32, 32), (1, 3, 32, 64)] and not network.padded
    assert means([[float(o.logits[0, 0]) for o in outputs]]) == [[10, 20]]
    assert [o.size_hw for o in outputs] == [(32, 32), (32, 64)]


def test_a_fixed_size_is_one_shape_for_all() -> None:
    network = Mean()
    pipeline = Pipeline(network, PLAIN, (48, 64))
    images = [gray(10), gray(20, 500, 31), gray(30, 64, 128)]
    assert [pipeline.input_shape(i.shape[:2]) for i in images] == [(48, 64)] * 3
    outputs = pipeline.outputs([pipeline.prepare(image) for image in images])
    assert network.shapes == [(3, 3, 48, 64)] and network.padded
    assert means([[float(o.logits[0, 0]) for o in outputs]]) == [[10, 20, 30]]
    (box,) = outputs[2].decode().boxes_xyxy_px
    assert box.tolist() == [0, 0, 128, 64]  # the whole original, not the padded input


def test_prepared_images_have_the_shape_that_was_promised() -> None:
    pipeline = Pipeline(Mean(), PLAIN, None)
    for size in ((32, 32), (33, 77), (500, 3), (1, 1), (479, 640)):
        assert pipeline.prepare(gray(1, *size)).pixels.shape[1:] == pipeline.input_shape(size)


def test_groups_come_back_in_order() -> None:
    pipeline = Pipeline(Mean(), PLAIN, None)
    groups = [[3, 1], [2], [5, 4, 6]]
    found = [
        [float(o.logits[0, 0]) for o in outputs]
        for outputs in pipeline.outputs_of_groups(groups, gray)
    ]
    assert means(found) == groups
    assert list(pipeline.outputs_of_groups([], gray)) == []


def test_the_next_group_is_read_while_the_network_runs_and_not_more() -> None:
    """The network waits for the reader: a reader that did not run beside it would hang."""
    read: list[int] = []
    next_group_is_read = threading.Event()

    def reading(value: int) -> NDArray[np.uint8]:
        read.append(value)
        if value == 3:
            next_group_is_read.set()
        return gray(value)

    network = Mean()

    def waiting(
        images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        assert next_group_is_read.wait(timeout=60)
        return network(images, padding_mask)

    groups = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    outputs = Pipeline(waiting, PLAIN, None).outputs_of_groups(groups, reading)
    next(outputs)
    assert len(read) <= 2 + 2 + 1  # one group in the network, the next one, and one image
    assert len(list(outputs)) == 4


def test_an_unreadable_image_is_raised_after_the_groups_before_it() -> None:
    def reading(value: int) -> NDArray[np.uint8]:
        if value == 3:
            raise DataError("3.png: bad")
        return gray(value)

    outputs = Pipeline(Mean(), PLAIN, None).outputs_of_groups([[0, 1], [2, 3]], reading)
    assert len(next(outputs)) == 2
    with pytest.raises(DataError, match=r"3\.png"):
        next(outputs)


def test_finite() -> None:
    def network(
        images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        boxes = np.full((2, 1, 4), 0.5, np.float32)
        boxes[1, 0, 2] = np.inf
        return np.zeros((2, 1, 1), np.float32), boxes

    pipeline = Pipeline(network, PLAIN, None)
    outputs = pipeline.outputs([pipeline.prepare(gray(1))] * 2)
    assert [output.finite for output in outputs] == [True, False]
