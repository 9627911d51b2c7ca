"""Files of mmdet and detrex against what their own models answer.

mmdet's `dino-4scale_r50` against the outputs of its own model (DINO in 3.3.0).

Its seven heads are all different, its neck has no bias, and its predicted boxes have another
epsilon than the official ones: each of these would show. Tolerances as in test_parity; 14 to 65
neighbors an image have scores nearer than 2e-5, so the tokens are forced. Of detrex's model no
outputs are here, but how far another position encoding moves them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import other_codes, recipe

from dino_core.checkpoints.foreign.convert import import_checkpoint
from dino_core.checkpoints.io import build_model
from dino_core.inference.detector import Detector
from dino_core.models.dino import Dino, DinoOutput
from dino_core.processing.postprocess import decode

pytestmark = pytest.mark.slow
SIZES = ((352, 480), (416, 320))
SHA256 = {  # of tensors in mmdet's own names
    "bbox_head.cls_branches.3.bias": "1b3e80d84a33713e",
    "bbox_head.cls_branches.6.weight": "6bd49828d545df9b",
    "bbox_head.reg_branches.6.4.bias": "cbf0eb3451c47c02",
    "bbox_head.reg_branches.2.0.weight": "ebb34f5180980d0c",
    "decoder.layers.0.norms.0.weight": "180f58dd9813a3f5",
    "neck.extra_convs.0.conv.weight": "12fa815fde878d1a",
    "dn_query_generator.label_embedding.weight": "d3915521ddff1a3a",
}


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    with np.load(other_codes.FOREIGN / "golden_mmdet_4scale_r50_untied.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Dino:
    """Published files keep `meta` and `state_dict`, in the format before zip."""
    state = other_codes.mmdet_state()
    for name, digest in SHA256.items():
        assert hashlib.sha256(state[name].numpy().tobytes()).hexdigest()[:16] == digest, name
    text = "model = dict(positional_encoding=dict(normalize=True, offset=0.0, temperature=20))\n"
    path = tmp_path_factory.mktemp("mmdet") / "dino-4scale_r50_8xb2-12e_coco.pth"
    content = {"meta": {"epoch": 12, "cfg": text}, "state_dict": state}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    loaded = Detector.load(path, device="cpu", dtype="fp32").model
    path.unlink()
    assert isinstance(loaded, Dino)
    return loaded.eval()


@pytest.fixture(scope="module")
def output(model: Dino, theirs: dict[str, np.ndarray]) -> DinoOutput:
    tokens = torch.from_numpy(theirs["topk_idx"]).long()
    with torch.no_grad():
        return model(*recipe.batch(), all_layers=True, forced_tokens=tokens)


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(ours.numpy(), theirs, atol=tolerance, rtol=0)


def test_logits_and_boxes(output: DinoOutput, theirs: dict[str, np.ndarray]) -> None:
    close(output.logits, theirs["pred_logits"], 1e-4)
    close(output.boxes_cxcywh, theirs["pred_boxes"], 1e-5)


def test_intermediate_layers(output: DinoOutput, theirs: dict[str, np.ndarray]) -> None:
    close(output.layer_logits[4, :, :100], theirs["aux4_logits"], 1e-4)
    close(output.layer_boxes_cxcywh[:5, :, :100], theirs["aux_boxes"], 1e-5)
    close(output.encoder.anchors_logit.sigmoid(), theirs["init_reference"], 1e-5)


def test_an_image_alone_chooses_the_same_tokens(model: Dino, theirs: dict[str, np.ndarray]) -> None:
    images, mask = recipe.batch()
    height, width = SIZES[0]
    alone = images[:1, :, :height, :width], mask[:1, :height, :width]
    tokens = torch.from_numpy(theirs["single0_topk_idx"]).long()[None]
    with torch.no_grad():
        own = model(*alone)
        output = model(*alone, forced_tokens=tokens)
    assert set(own.encoder.token_indices[0].tolist()) == set(tokens[0].tolist())
    close(output.logits[0, :200], theirs["single0_pred_logits"], 1e-4)
    close(output.boxes_cxcywh[0, :200], theirs["single0_pred_boxes"], 1e-5)


@pytest.mark.parametrize("image", [0, 1])
def test_detections(output: DinoOutput, theirs: dict[str, np.ndarray], image: int) -> None:
    """mmdet's 300 best of its own decoding, clipped; places of equal scores may be exchanged."""
    found = decode(output.logits[image].numpy(), output.boxes_cxcywh[image].numpy(), SIZES[image])
    scores = theirs[f"post_scores_{image}"]
    np.testing.assert_allclose(found.scores, scores, atol=2e-5)
    gaps = np.abs(np.diff(scores))
    settled = np.flatnonzero((np.r_[1, gaps] > 1e-5) & (np.r_[gaps, 0] > 1e-5))
    assert len(settled) > 50
    assert (found.class_indices[settled] == theirs[f"post_labels_{image}"][settled]).all()
    boxes = theirs[f"post_boxes_{image}"]
    np.testing.assert_allclose(found.boxes_xyxy_px[settled], boxes[settled], atol=0.02)


def test_detrex_without_its_offset_errs_as_measured(tmp_path: Path) -> None:
    """As detrex's own model (commit e244e6c) does against a temperature of 10000 and offset 0.

    Measured there: logits move by up to 0.077, boxes by 0.013, and 16 and 17 tokens change.
    """
    path = tmp_path / "model_final.pth"
    torch.save({"model": other_codes.detrex_state(4), "iteration": 89999}, path)
    without = import_checkpoint(path, position_offset=0.0)
    with torch.no_grad():
        right = build_model(import_checkpoint(path))(*recipe.batch())
        wrong_model = build_model(without)
        wrong = wrong_model(*recipe.batch(), forced_tokens=right.encoder.token_indices)
        own = wrong_model(*recipe.batch()).encoder.token_indices
    assert (right.logits - wrong.logits).abs().max().item() == pytest.approx(0.077, abs=6e-4)
    moved = (right.boxes_cxcywh - wrong.boxes_cxcywh).abs().max().item()
    assert moved == pytest.approx(0.013, abs=6e-4)
    pairs = zip(right.encoder.token_indices.tolist(), own.tolist(), strict=True)
    assert [len(set(a) - set(b)) for a, b in pairs] == [16, 17]
