"""Verification of an artifact: it must reproduce torch on real images, or say where it differs.

DINO picks the best encoder tokens as its queries, and the order of two nearly equal tokens depends
on the last bit of their scores. One swap exchanges the learned contents of two queries, so that
comparing raw outputs row by row would measure that coin flip. Two things are measured separately:

- values: torch is forced to take the artifact's own tokens, and every raw value is compared.
  Whether those tokens were among the best shows in `selection`, the gap between torch's score of
  the artifact's k-th token and of its own k-th best;
- detections: both run freely, and detections above a threshold are matched by class and IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dino_core.errors import ConfigError
from dino_core.inference.pipeline import Pipeline, RawOutput, Runtime
from dino_core.metadata import CheckpointMeta
from dino_core.processing.overlap import box_iou
from dino_core.processing.postprocess import Decoded
from dino_core.processing.preprocess import load_image

if TYPE_CHECKING:
    from dino_core.models.dino import Dino, DinoOutput


class VerifiedRuntime(Runtime, Protocol):
    """An artifact opened for verification, which also reports the tokens that became queries."""

    @property
    def path(self) -> Path:
        """The artifact's file."""

    @property
    def meta(self) -> CheckpointMeta:
        """The metadata inside the artifact."""

    @property
    def input_hw(self) -> tuple[int, int]:
        """Fixed height and width of its input."""

    @property
    def batch(self) -> int:
        """Fixed number of images per run."""

    def run_with_tokens(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Run one batch.

        Args:
            images: (B, 3, H, W) float32.
            padding_mask: (B, H, W) bool, True on padding.

        Returns:
            logits (B, Q, C), boxes_cxcywh (B, Q, 4) and token_indices (B, Q), the index of the
            encoder token behind each query.
        """


@dataclass(frozen=True)
class Tolerance:
    """How much an artifact may differ from torch.

    Attributes:
        logits: Largest |difference| of a raw logit, and of a selection score.
        boxes: Largest |difference| of a normalized box value.
        iou: Smallest IoU of matched detections.
        score: Largest |difference| of the scores of matched detections. A detection may be missing
            on one side only if its score is within this distance of the threshold.
        threshold: Lowest score of the detections compared.
    """

    logits: float = 2e-3
    boxes: float = 5e-4
    iou: float = 0.98
    score: float = 0.01
    threshold: float = 0.3


@dataclass(frozen=True)
class ImageParity:
    """The comparison on one image.

    Attributes:
        image: The image file.
        logits: Largest |difference| of raw logits, with the same tokens.
        boxes: Largest |difference| of raw normalized boxes, with the same tokens.
        selection: Largest gap between the scores of the tokens that each side chose.
        tokens_moved: Queries whose token is not the one that torch has at that rank.
        detections: Torch's detections above the threshold.
        matched: How many of them the artifact has too.
        unmatched: Detections of one side only, clearly above the threshold.
        iou: Smallest IoU of a matched pair; None without one.
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
        """Whether every number passes."""
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
    """The comparison on all images.

    Attributes:
        artifact: The artifact's file.
        tolerance: What passes.
        images: One entry per image.
    """

    artifact: str
    tolerance: Tolerance
    images: tuple[ImageParity, ...]

    @property
    def ok(self) -> bool:
        """Whether every image is within the tolerance."""
        return all(image.within(self.tolerance) for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        """The content of parity.json: the worst value of each number, then every image."""
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


def verify_artifact(
    runtime: VerifiedRuntime,
    model: Dino,
    images: Sequence[str | Path],
    tolerance: Tolerance | None = None,
) -> ParityReport:
    """Compare an artifact with the torch model that it was made from.

    Both get the same pixels: each image is resized and padded to the artifact's fixed input.

    Args:
        runtime: The artifact, opened by its exporter.
        model: In evaluation mode, on the CPU, float32.
        images: Image files.
        tolerance: What passes.

    Raises:
        ConfigError: there are no images.
        DataError: an image cannot be read.
    """
    if not images:
        raise ConfigError("no images to verify the export on", "give some photos")
    tolerance = tolerance or Tolerance()
    rows = [_compare(runtime, model, Path(image), tolerance) for image in images]
    return ParityReport(str(runtime.path), tolerance, tuple(rows))


def _compare(
    runtime: VerifiedRuntime, model: Dino, path: Path, tolerance: Tolerance
) -> ImageParity:
    pipeline = Pipeline(runtime.run, runtime.meta.preprocess, runtime.input_hw)
    prepared = pipeline.prepare(load_image(path))
    # A file with a fixed batch gets the same image several times; row 0 is compared below.
    images, mask = pipeline.collate([prepared] * runtime.batch)
    logits, boxes, tokens = runtime.run_with_tokens(images, mask)
    # `free` picks its own tokens. `forced` takes the artifact's, so that each row of its output
    # belongs to the same query as in the artifact's output and can be compared with it.
    with torch.inference_mode():
        given = (torch.from_numpy(images), torch.from_numpy(mask))
        free: DinoOutput = model(*given)
        forced: DinoOutput = model(*given, forced_tokens=torch.from_numpy(tokens))
    free_output = RawOutput(free.logits[0].numpy(), free.boxes_cxcywh[0].numpy(), prepared.size_hw)
    # A detection just below the threshold on one side may be just above it on the other.
    lowest = tolerance.threshold - tolerance.score
    own = free_output.decode(threshold=lowest)
    theirs = RawOutput(logits[0], boxes[0], prepared.size_hw).decode(threshold=lowest)
    agreement = compare_detections(own, theirs, tolerance)
    return ImageParity(
        image=str(path),
        logits=_largest(forced.logits.numpy() - logits),
        boxes=_largest(forced.boxes_cxcywh.numpy() - boxes),
        # By rank: the artifact may order equally good tokens differently, but not pick worse ones.
        selection=_largest(
            (free.encoder.logits.amax(dim=-1) - forced.encoder.logits.amax(dim=-1)).numpy()
        ),
        tokens_moved=int((free.encoder.token_indices[0].numpy() != tokens[0]).sum()),
        detections=int((own.scores >= tolerance.threshold).sum()),
        matched=agreement.matched,
        unmatched=agreement.unmatched,
        iou=agreement.iou,
        score=agreement.score,
    )


@dataclass(frozen=True)
class Agreement:
    """How two lists of detections agree; the fields are those of `ImageParity`."""

    matched: int
    unmatched: int
    iou: float | None
    score: float | None


def compare_detections(own: Decoded, theirs: Decoded, tolerance: Tolerance) -> Agreement:
    """Pair detections of the same class, greatest IoU first.

    Args:
        own: Torch's detections, also those slightly below the threshold.
        theirs: The artifact's detections, likewise.
        tolerance: Its threshold and score distance decide which detections must have a partner.
    """
    overlap = box_iou(own.boxes_xyxy_px, theirs.boxes_xyxy_px)  # (N, M)
    overlap[own.class_indices[:, None] != theirs.class_indices[None]] = 0.0  # never a pair
    pairs: list[tuple[int, int, float]] = []
    # Greedy, and independent of the order of the detections, which near-ties may exchange.
    while overlap.size and overlap.max() > 0.5:
        row, column = np.unravel_index(int(overlap.argmax()), overlap.shape)
        pairs.append((int(row), int(column), float(overlap[row, column])))
        overlap[row, :] = overlap[:, column] = 0.0
    # A score near the threshold may lie on either side of it, so a missing partner counts only for
    # detections that are clearly above.
    clear = tolerance.threshold + tolerance.score
    lonely_own = np.delete(own.scores, [row for row, _, _ in pairs])
    lonely_theirs = np.delete(theirs.scores, [column for _, column, _ in pairs])
    relevant = [
        (iou, abs(float(own.scores[row]) - float(theirs.scores[column])))
        for row, column, iou in pairs
        if max(own.scores[row], theirs.scores[column]) >= tolerance.threshold
    ]
    return Agreement(
        matched=sum(bool(own.scores[row] >= tolerance.threshold) for row, _, _ in pairs),
        unmatched=int((lonely_own >= clear).sum() + (lonely_theirs >= clear).sum()),
        iou=min((iou for iou, _ in relevant), default=None),
        score=max((score for _, score in relevant), default=None),
    )


def _largest(difference: NDArray[np.float32]) -> float:
    """Largest absolute value; NaN on either side counts as infinite."""
    largest = float(np.abs(difference).max())
    # NaN differs from itself. Every comparison with NaN is false, so it would pass any tolerance.
    return largest if largest == largest else float("inf")
