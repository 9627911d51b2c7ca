"""The ONNX file: its interface, its metadata, and its values in ONNX Runtime against torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from factories import CLASS_NAMES, TINY_INPUT, make_coco_dataset, tiny_config
from torch import Tensor, nn

from dino_core.errors import ExportError
from dino_core.evaluation.evaluate import start_evaluation
from dino_core.exporters.exporter import ExportSettings
from dino_core.exporters.onnx import write_onnx
from dino_core.inference.detector import Detector
from dino_core.inference.torch_runtime import TorchRuntime
from dino_core.metadata import CheckpointMeta, from_json
from dino_core.ops.backend import use_backend

if TYPE_CHECKING:
    from tests.exporters.conftest import Exported


@pytest.fixture(scope="module")
def proto(exported: Exported) -> onnx.ModelProto:
    return onnx.load(str(exported.report.path))


def shape_of(value: onnx.ValueInfoProto) -> list[int]:
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def test_inputs_and_outputs_are_those_of_the_contract(proto: onnx.ModelProto) -> None:
    inputs = {v.name: (shape_of(v), v.type.tensor_type.elem_type) for v in proto.graph.input}
    outputs = {v.name: (shape_of(v), v.type.tensor_type.elem_type) for v in proto.graph.output}
    real, boolean = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    assert inputs == {"images": ([2, 3, 64, 96], real), "padding_mask": ([2, 64, 96], boolean)}
    assert outputs == {"logits": ([2, 20, 2], real), "boxes": ([2, 20, 4], real)}


def test_the_file_is_valid_and_of_standard_operators_only(proto: onnx.ModelProto) -> None:
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} == {""}
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 18)]
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("GridSample") == 2 * (1 + 2)  # levels x (encoder + decoder layers)


def test_the_metadata_is_inside(proto: onnx.ModelProto) -> None:
    properties = {p.key: p.value for p in proto.metadata_props}
    meta = from_json(properties["dino"])
    assert meta.variant == "dino-tiny"
    assert meta.classes.names == CLASS_NAMES
    assert meta.model == tiny_config()
    assert (meta.preprocess.short_side, meta.preprocess.max_side) == (64, 96)
    assert meta.preprocess.mean == TINY_INPUT.mean


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_values_are_torchs_with_padding(exported: Exported, backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[0, 50:] = True
    mask[1, :, 70:] = True
    images = torch.randn(2, 3, 64, 96, generator=generator).masked_fill(mask[:, None], 0.0)
    with torch.inference_mode(), use_backend(backend):  # type: ignore[arg-type]
        expected = exported.model(images, mask)

    session = onnxruntime.InferenceSession(
        str(exported.report.path), providers=["CPUExecutionProvider"]
    )
    logits, boxes = session.run(
        ["logits", "boxes"], {"images": images.numpy(), "padding_mask": mask.numpy()}
    )

    # Two fp32 implementations of about 1e6 operations a value: 1e-4 is 100 times what was seen.
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(boxes, expected.boxes_cxcywh.numpy(), atol=1e-4)


class Untraceable(nn.Module):
    """Its result depends on a value, which no graph can express."""

    def forward(self, images: Tensor, padding_mask: Tensor) -> Tensor:
        return images if float(images.sum()) > 0 else -images


def tiny_meta() -> CheckpointMeta:
    from dino_core.detections import ClassMap

    classes = ClassMap.from_names(CLASS_NAMES)
    return CheckpointMeta("dino-tiny", tiny_config(), TINY_INPUT, classes)


def test_a_model_that_cannot_be_traced_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="could not write this model as ONNX opset 18"):
        write_onnx(
            Untraceable(),  # type: ignore[arg-type]
            tiny_meta(),
            tmp_path / "a.onnx",
            ExportSettings((64, 96), opset=18),
        )
    assert not list(tmp_path.iterdir())


def test_evaluating_the_file_predicts_what_torch_predicts(
    exported: Exported, tmp_path: Path
) -> None:
    # Images of exactly the fixed size: nothing is resized or padded on either side.
    data = make_coco_dataset(tmp_path / "data", size_hw=(64, 96))
    artifact = Detector.load(exported.report.path)
    torch_model = Detector(TorchRuntime(copy.deepcopy(exported.model), "cpu"), artifact.meta)
    ours = start_evaluation(artifact, data, batch=2).finish()
    expected = start_evaluation(torch_model, data, batch=2).finish()
    for one, other in zip(ours.predictions, expected.predictions, strict=True):
        assert len(one.scores) == 20 * 2
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        # Nearly equal scores may swap places, so boxes are compared as a set.
        order, other_order = (np.lexsort(p.boxes_xyxy_px.round(1).T) for p in (one, other))
        np.testing.assert_allclose(
            one.boxes_xyxy_px[order], other.boxes_xyxy_px[other_order], atol=0.2
        )
    assert ours.metrics.ap == pytest.approx(expected.metrics.ap, abs=1e-3)
