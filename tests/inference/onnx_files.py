"""A detector as an ONNX file made by hand: its answers can be worked out on paper.

logits[b, q, c] = mean of channel q of image b, less c; boxes[b] = (share of pixels that are not
padding, 0.5, 0.5, 0.5) for each query.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dino_core.config import ModelConfig, PreprocessConfig
from dino_core.detections import ClassMap
from dino_core.metadata import CheckpointMeta, to_json

PLAIN = PreprocessConfig(short_side=8, max_side=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
META = CheckpointMeta("tiny", ModelConfig(num_classes=2), PLAIN, ClassMap(("cat", "dog"), (3, 7)))


def write_onnx(
    path: Path,
    batch: int | str = 1,
    size_hw: tuple[int | str, int | str] = (8, 16),
    metadata: str | None = None,
    names: tuple[str, str] = ("images", "padding_mask"),
) -> Path:
    """Write such a file; names in place of sizes make them free."""
    constants = [
        numpy_helper.from_array(np.array([2, 3]), "hw"),
        numpy_helper.from_array(np.array([1, 2]), "mask_hw"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "second"),
        numpy_helper.from_array(np.array([[[0.0, 1.0]]], np.float32), "class_offset"),
        numpy_helper.from_array(np.full((1, 3, 3), 0.5, np.float32), "rest"),
        numpy_helper.from_array(np.zeros((1, 3, 1), np.float32), "queries"),
    ]
    nodes = [
        helper.make_node("ReduceMean", [names[0], "hw"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["mean_column"]),
        helper.make_node("Sub", ["mean_column", "class_offset"], ["logits"]),
        helper.make_node("Not", [names[1]], ["valid"]),
        helper.make_node("Cast", ["valid"], ["valid_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["valid_float", "mask_hw"], ["share"], keepdims=1),
        helper.make_node("Add", ["share", "queries"], ["share_column"]),
        helper.make_node("Mul", ["share_column", "queries"], ["zeros"]),
        helper.make_node("Add", ["zeros", "rest"], ["others"]),
        helper.make_node("Concat", ["share_column", "others"], ["boxes"], axis=2),
    ]
    inputs = [
        helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [batch, 3, *size_hw]),
        helper.make_tensor_value_info(names[1], TensorProto.BOOL, [batch, *size_hw]),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3, 2]),
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, 3, 4]),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    text = to_json(META) if metadata is None else metadata
    if text:
        helper.set_model_props(model, {"dino": text})
    onnx.save(model, str(path))
    return path


def write_constant_onnx(
    path: Path,
    logits: tuple[int, ...] = (1, 5, 2),
    boxes: tuple[int, ...] = (1, 5, 4),
    images: tuple[int | str, ...] = (1, 3, 8, 16),
    mask: tuple[int | str, ...] | None = None,
    declared: bool = True,
    logits_type: int = TensorProto.FLOAT,
) -> Path:
    """Write a file whose outputs are constants of any shape, which it declares or not."""
    constants = {"logits": (logits, logits_type), "boxes": (boxes, TensorProto.FLOAT)}
    nodes = [helper.make_node("Identity", [f"{name}_value"], [name]) for name in constants]
    values = [
        numpy_helper.from_array(
            np.full(shape, 0.5, helper.tensor_dtype_to_np_dtype(kind)), f"{name}_value"
        )
        for name, (shape, kind) in constants.items()
    ]
    mask = (images[0], *images[2:]) if mask is None else mask
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, images),
        helper.make_tensor_value_info("padding_mask", TensorProto.BOOL, mask),
    ]
    outputs = [
        helper.make_tensor_value_info(
            name, kind, shape if declared else [f"{name}{i}" for i in range(len(shape))]
        )
        for name, (shape, kind) in constants.items()
    ]
    graph = helper.make_graph(nodes, "constant", inputs, outputs, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"dino": to_json(META)})
    onnx.save(model, str(path))
    return path
