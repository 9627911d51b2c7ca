"""How much do the denoising settings matter? Short fine-tuning runs on labeled data sets.

    python benchmarks/denoising.py DATA... --steps 300 --batch 4 --seeds 0 1 --log study.jsonl
    python benchmarks/denoising.py --tiny                 # a quick try with a tiny model

One setting at a time is changed from the model's own (`SETTINGS`), for every data set and seed. The
last weights, not the best ones, are scored on the validation split. Runs that are in `--log` are
not repeated, so the study can be stopped and continued at any time. The length of a run is given in
steps, so that other load on the machine changes no result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from report import Row, headline, options, table, write
from tiny import write_tiny_model

from dino_core.checkpoints.zoo import load
from dino_core.config import TrainConfig
from dino_core.data.load import load_dataset
from dino_core.engine.events import EvaluationDone
from dino_core.engine.fit import run_events
from dino_core.engine.request import RunRequest

SETTINGS: dict[str, dict[str, Any]] = {
    "the model's own": {},
    "queries 0": {"dn_number": 0},
    "queries 10": {"dn_number": 10},
    "queries 25": {"dn_number": 25},
    "queries 100": {"dn_number": 100},
    "label noise 0": {"dn_label_noise_ratio": 0.0},
    "label noise 0.25": {"dn_label_noise_ratio": 0.25},
    "label noise 1.0": {"dn_label_noise_ratio": 1.0},
    "box noise 0.2": {"dn_box_noise_scale": 0.2},
    "box noise 0.4": {"dn_box_noise_scale": 0.4},
    "box noise 2.0": {"dn_box_noise_scale": 2.0},
    "both gentle": {"dn_label_noise_ratio": 0.25, "dn_box_noise_scale": 0.4},
}
"""Name to changed settings. `dn_number` is half the number of denoising queries."""


@dataclass(frozen=True)
class Trial:
    """One fine-tuning run and its score on the validation split."""

    data: str
    setting: str
    seed: int
    steps: int
    batch: int
    ap: float
    ap50: float


def train(data: Path, model: str, setting: str, seed: int, recipe: TrainConfig) -> Trial:
    """Fine-tune `model` on `data` with one setting and score the result."""
    network = replace(load(model).meta.model, **SETTINGS[setting])
    dataset = load_dataset(data)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        events = run_events(
            RunRequest(replace(recipe, seed=seed), dataset, run, model=model, model_config=network)
        )
        scores = [event.metrics for event in events if isinstance(event, EvaluationDone)]
    last = scores[-1]
    assert recipe.steps is not None
    return Trial(
        data.name, setting, seed, recipe.steps, recipe.batch, last.ap or 0.0, last.ap50 or 0.0
    )


def study(args: argparse.Namespace, folders: Sequence[Path], model: str) -> Iterator[Trial]:
    """Yield every trial, those in the log first."""
    done = [Trial(**json.loads(line)) for line in _lines(args.log)]
    known = {(t.data, t.setting, t.seed, t.steps, t.batch) for t in done}
    yield from done
    recipe = TrainConfig(
        steps=args.steps,
        batch=args.batch,
        lr=args.lr,
        eval_every_epochs=10**6,  # only at the end
        probe=False,
        plots=False,
        loggers=("csv",),
    )
    settings = list(SETTINGS)[: 2 if args.tiny else None]
    for seed, setting, folder in itertools.product(args.seeds, settings, folders):
        if (folder.name, setting, seed, args.steps, args.batch) in known:
            continue
        trial = train(folder, model, setting, seed, recipe)
        if args.log is not None:
            with args.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(trial)) + "\n")
        yield trial


def _lines(log: Path | None) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines() if log is not None and log.exists() else []


def rows(trials: Sequence[Trial]) -> list[Row]:
    """One row per setting: mean AP per data set, and the difference to the model's settings."""
    names = sorted({trial.data for trial in trials})
    own = _means([t for t in trials if t.setting == next(iter(SETTINGS))])
    result: list[Row] = []
    for setting in SETTINGS:
        chosen = [trial for trial in trials if trial.setting == setting]
        means = _means(chosen)
        if not all(name in means and name in own for name in names):
            continue
        row: Row = {"setting": setting, "seeds": str(len({trial.seed for trial in chosen}))}
        for name in names:
            values = [trial.ap for trial in chosen if trial.data == name]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            row[name] = f"{means[name]:.3f}{spread}"
        difference = statistics.mean(means[name] - own[name] for name in names)
        row["difference"] = f"{difference:+.3f}"
        result.append(row)
    return result


def _means(trials: Sequence[Trial]) -> Mapping[str, float]:
    names = {trial.data for trial in trials}
    return {n: statistics.mean(t.ap for t in trials if t.data == n) for n in names}


def make_data(folder: Path) -> Path:
    """Write colored rectangles as a YOLO data set, to try the script."""
    rng = np.random.default_rng(0)
    for split, number in itertools.product(("train", "val"), range(4)):
        image = Image.new("RGB", (96, 64), (90, 90, 90))
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 20, 20), (60, 30, 36, 34)))
        ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), fill=(200, 40, 40))
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        image.save(folder / "images" / split / f"{number}.png")
        box = f"0 {(x + w / 2) / 96:.4f} {(y + h / 2) / 64:.4f} {w / 96:.4f} {h / 64:.4f}\n"
        (folder / "labels" / split / f"{number}.txt").write_text(box, encoding="utf-8")
    text = "path: .\ntrain: images/train\nval: images/val\nnames: [box]\n"
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return folder


def main() -> None:
    parser = options(__doc__, 1)
    parser.add_argument("data", type=Path, nargs="*", help="labeled data sets")
    parser.add_argument("--model", default="dino-nano")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, help="default: as `dino train` chooses")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--log", type=Path, help="JSONL with one line per run; runs in it are not repeated"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folders, model = args.data, args.model
        if args.tiny:
            args.steps, args.batch, args.seeds = 2, 2, [0]
            folders = [make_data(Path(scratch, "boxes"))]
            model = str(write_tiny_model(Path(scratch, "tiny.safetensors")))
        elif not folders:
            parser.error("no DATA: give the labeled data sets to train on")
        headline("Denoising settings", args, "default")
        trials = list(study(args, folders, model))
    found = rows(trials)
    names = sorted({trial.data for trial in trials})
    columns = {"setting": "setting", "seeds": "seeds", **{f"{n} AP": n for n in names}}
    print(table(found, {**columns, "difference": "difference"}))
    write(args, found, "default")


if __name__ == "__main__":
    main()
