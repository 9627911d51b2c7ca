"""Proof that an artifact answers as torch does, on real images, saying where it differs.

DINO picks the best encoder tokens as its queries, and the order of two nearly equal tokens hangs
on the last bit of their scores. One swap exchanges the learned contents of two queries, so
comparing raw outputs row by row would measure that coin flip. Two things are measured apart:

- arithmetic: torch is made to take the artifact's own tokens, and every raw value is compared;
  that those tokens deserved it shows in `selection`, the gap between torch's scores of the
  artifact's k-th token and of its own k-th best;
- answers: both run freely, and detections above a threshold are matched by class and overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dino_core.errors import ConfigError, ExportError
from dino_core.metadata import METADATA_KEY, from_json
from dino_core.processing.postprocess import Decoded, decode
from dino_core.processing.preprocess import collate, fit_size, load_image, preprocess, resized_size

if TYPE_CHECKING:
    from dino_core.models.dino import Dino, DinoOutput

_TOKENS = "tokens"


@dataclass(frozen=True)
class Tolerance:
    """What passes.

    Attributes:
        logits: Largest |difference| of a raw logit, and of a selection score.
        boxes: Largest |difference| of a normalised box value.
        iou: Smallest overlap of matched detections.
        score: Largest |difference| of the scores of matched detections. A detection may be missing
            on one side only within this distance of the threshold.
        threshold: Detections from this score on are compared.
    """

    logits: float = 2e-3
    boxes: float = 5e-4
    iou: float = 0.98
    score: float = 0.01
    threshold: float = 0.3


@dataclass(frozen=True)
class ImageParity:
    """One image.

    Attributes:
        image: Its file.
        logits: Largest |difference| of raw logits, with the same tokens.
        boxes: Largest |difference| of raw normalised boxes, with the same tokens.
        selection: Largest gap between the scores of the tokens that each side chose.
        tokens_moved: Queries whose token is not the one torch has at that rank.
        detections: Torch's detections above the threshold.
        matched: How many of them the artifact has too.
        unmatched: Detections of either side alone, clear of the threshold.
        iou: Smallest overlap of a matched pair; None without one.
        score: Largest |difference| of the scores of a matched pair; None without one.
    """

    image: str
    logits: float
    boxes: float
    selection: float
    tokens_moved: int
    detections: int
    matched: int
    unmatched: int
    iou: float | None
    score: float | None

    def within(self, tolerance: Tolerance) -> bool:
        return (
            self.logits <= tolerance.logits
            and self.selection <= tolerance.logits
            and self.boxes <= tolerance.boxes
            and self.unmatched == 0
            and (self.iou is None or self.iou >= tolerance.iou)
            and (self.score is None or self.score <= tolerance.score)
        )


@dataclass(frozen=True)
class ParityReport:
    """All images; `ok` when each is within the tolerance."""

    artifact: str
    tolerance: Tolerance
    images: tuple[ImageParity, ...]

    @property
    def ok(self) -> bool:
        return all(image.within(self.tolerance) for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        """The content of parity.json: the worst of each number, then every image."""
        ious = [i.iou for i in self.images if i.iou is not None]
        scores = [i.score for i in self.images if i.score is not None]
        return {
            "schema": 1,
            "artifact": self.artifact,
            "ok": self.ok,
            "logits_max_abs": max((i.logits for i in self.images), default=None),
            "boxes_max_abs": max((i.boxes for i in self.images), default=None),
            "selection_max_abs": max((i.selection for i in self.images), default=None),
            "matched_iou_min": min(ious, default=None),
            "score_max_abs": max(scores, default=None),
            "detections": sum(i.detections for i in self.images),
            "unmatched": sum(i.unmatched for i in self.images),
            "tolerance": asdict(self.tolerance),
            "images": [asdict(image) for image in self.images],
        }


def verify_onnx(
    artifact: Path,
    model: Dino,
    images: Sequence[str | Path],
    tolerance: Tolerance | None = None,
) -> ParityReport:
    """Compare an ONNX file with the torch model it was made from.

    Both get the same pixels: each image is resized and padded to the artifact's fixed input.

    Args:
        artifact: What `export_onnx` wrote.
        model: In evaluation mode, on the CPU, float32.
        images: Image files.
        tolerance: What passes.

    Raises:
        ConfigError: no images.
        DataError: an image cannot be read.
        ExportError: ONNX Runtime cannot run the file.
    """
    if not images:
        raise ConfigError("no images to verify the export on", "name some photos")
    tolerance = tolerance or Tolerance()
    session = _Session(artifact)
    rows = [_compare(session, model, Path(image), tolerance) for image in images]
    return ParityReport(str(artifact), tolerance, tuple(rows))


class _Session:
    """The artifact in ONNX Runtime, with the indices of the chosen tokens as a third output."""

    def __init__(self, artifact: Path) -> None:
        import onnx
        import onnxruntime

        try:
            proto = onnx.load(str(artifact))
        except Exception as error:  # among them protobuf's, which has no stubs
            raise ExportError(f"{artifact}: cannot be read as ONNX: {error}") from error
        properties = {entry.key: entry.value for entry in proto.metadata_props}
        self.config = from_json(properties.get(METADATA_KEY, ""), str(artifact)).preprocess
        selections = [node for node in proto.graph.node if node.op_type == "TopK"]
        if len(selections) != 1:
            raise ExportError(f"{artifact}: {len(selections)} TopK nodes, a DINO has one")
        chosen = selections[0].output[1]
        identity = onnx.helper.make_node("Identity", [chosen], [_TOKENS])
        proto.graph.node.append(identity)
        proto.graph.output.append(
            onnx.helper.make_tensor_value_info(_TOKENS, onnx.TensorProto.INT64, None)
        )
        try:
            self._session = onnxruntime.InferenceSession(
                proto.SerializeToString(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own kinds share no public base
            raise ExportError(f"{artifact}: ONNX Runtime cannot load it: {error}") from error
        batch, _, height, width = self._session.get_inputs()[0].shape
        self.batch: int = batch
        self.input_hw: tuple[int, int] = (height, width)

    def run(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Returns logits (B, Q, C), boxes_cxcywh (B, Q, 4), token_indices (B, Q)."""
        inputs = {"images": images, "padding_mask": padding_mask}
        logits, boxes, tokens = self._session.run(["logits", "boxes", _TOKENS], inputs)
        return logits, boxes, tokens


def _compare(session: _Session, model: Dino, path: Path, tolerance: Tolerance) -> ImageParity:
    pixels = load_image(path)
    size_hw = (pixels.shape[0], pixels.shape[1])
    config = session.config
    resized = fit_size(resized_size(size_hw, config), session.input_hw)
    images, mask = collate([preprocess(pixels, config, resized)] * session.batch, session.input_hw)
    logits, boxes, tokens = session.run(images, mask)
    with torch.inference_mode():
        given = (torch.from_numpy(images), torch.from_numpy(mask))
        free: DinoOutput = model(*given)
        forced: DinoOutput = model(*given, forced_tokens=torch.from_numpy(tokens))
    own = decode(
        free.logits[0].numpy(),
        free.boxes_cxcywh[0].numpy(),
        size_hw,
        threshold=tolerance.threshold - tolerance.score,
    )
    theirs = decode(logits[0], boxes[0], size_hw, threshold=tolerance.threshold - tolerance.score)
    answers = match_detections(own, theirs, tolerance)
    return ImageParity(
        image=str(path),
        logits=_largest(forced.logits.numpy() - logits),
        boxes=_largest(forced.boxes_cxcywh.numpy() - boxes),
        selection=_largest(
            (free.encoder.logits.amax(dim=-1) - forced.encoder.logits.amax(dim=-1)).numpy()
        ),
        tokens_moved=int((free.encoder.token_indices[0].numpy() != tokens[0]).sum()),
        detections=int((own.scores >= tolerance.threshold).sum()),
        matched=answers.matched,
        unmatched=answers.unmatched,
        iou=answers.iou,
        score=answers.score,
    )


@dataclass(frozen=True)
class Answers:
    """How two lists of detections agree; the fields are those of `ImageParity`."""

    matched: int
    unmatched: int
    iou: float | None
    score: float | None


def match_detections(own: Decoded, theirs: Decoded, tolerance: Tolerance) -> Answers:
    """Pair detections of the same class, best overlap first.

    Args:
        own: Torch's, from a little below the threshold on.
        theirs: The artifact's, likewise.
        tolerance: Its threshold and score distance decide which detections must have a partner.
    """
    overlap = box_overlaps(own.boxes_xyxy_px, theirs.boxes_xyxy_px)  # (N, M)
    overlap[own.class_indices[:, None] != theirs.class_indices[None]] = 0.0
    pairs: list[tuple[int, int, float]] = []
    while overlap.size and overlap.max() > 0.5:
        row, column = np.unravel_index(int(overlap.argmax()), overlap.shape)
        pairs.append((int(row), int(column), float(overlap[row, column])))
        overlap[row, :] = overlap[:, column] = 0.0
    clear = tolerance.threshold + tolerance.score
    lonely_own = np.delete(own.scores, [row for row, _, _ in pairs])
    lonely_theirs = np.delete(theirs.scores, [column for _, column, _ in pairs])
    relevant = [
        (iou, abs(float(own.scores[row]) - float(theirs.scores[column])))
        for row, column, iou in pairs
        if max(own.scores[row], theirs.scores[column]) >= tolerance.threshold
    ]
    return Answers(
        matched=sum(bool(own.scores[row] >= tolerance.threshold) for row, _, _ in pairs),
        unmatched=int((lonely_own >= clear).sum() + (lonely_theirs >= clear).sum()),
        iou=min((iou for iou, _ in relevant), default=None),
        score=max((score for _, score in relevant), default=None),
    )


def box_overlaps(
    first_xyxy: NDArray[np.float32], second_xyxy: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(N, 4) and (M, 4) boxes -> (N, M) intersection over union; 0 for boxes without area."""
    a, b = first_xyxy.astype(np.float64)[:, None], second_xyxy.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(min=0).prod(axis=-1)
    area_a = (a[..., 2:] - a[..., :2]).prod(axis=-1)
    area_b = (b[..., 2:] - b[..., :2]).prod(axis=-1)
    union = area_a + area_b - shared
    result: NDArray[np.float64] = np.divide(
        shared, union, out=np.zeros_like(shared), where=union > 0
    )
    return result


def _largest(difference: NDArray[np.float32]) -> float:
    """Largest absolute value; NaN on either side counts as infinite."""
    largest = float(np.abs(difference).max())
    return largest if largest == largest else float("inf")
