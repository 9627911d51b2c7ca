"""The folder of a training run: where each file is, and how the tables in it are written."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_core.config import (
    ModelConfig,
    PreprocessConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from dino_core.engine.events import EvaluationDone, Event, RunFinished, StepDone, Warned
from dino_core.errors import ConfigError, DinoError
from dino_core.evaluation.class_table import class_lines
from dino_core.files import write_text
from dino_core.toml import dump_toml, load_toml

_COLUMNS = (
    "step", "epoch", "lr", "loss", "loss_class", "loss_bbox", "loss_giou", "grad_norm",
    "images_per_s", "memory_mb", "ap", "ap50", "ap75",
)  # fmt: skip


@dataclass(frozen=True)
class RunSettings:
    """What config.toml holds: everything a resumed run is built from, besides its state."""

    train: TrainConfig
    model: ModelConfig
    preprocess: PreprocessConfig
    data: Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def best(self) -> Path:
        return self.root / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.root / "last.safetensors"

    @property
    def state(self) -> Path:
        return self.root / "state" / "training.safetensors"

    @property
    def features(self) -> Path:
        """Of the frozen backbone, kept while the run goes on."""
        return self.root / "state" / "features"

    @property
    def launch(self) -> Path:
        return self.root / "state" / "launch.json"

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def val_images(self) -> Path:
        """Of the images that were set apart for validation; a data set with a split has none."""
        return self.root / "val.txt"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def metrics_csv(self) -> Path:
        return self.root / "metrics.csv"

    @property
    def metrics_jsonl(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; lines that are no row are passed over."""
        if not self.metrics_jsonl.exists():
            return []
        lines = self.metrics_jsonl.read_text(encoding="utf-8").splitlines()
        return [row for line in lines if (row := _parsed(line)) is not None]

    def check_new(self) -> None:
        """Raises ConfigError when the folder holds something already."""
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise ConfigError(
                f"{self.root}: exists and is not empty", "choose another --out, or use --resume"
            )

    def create(self, settings: RunSettings, val_images: Sequence[str] = ()) -> None:
        """Make the folder and write config.toml, and val.txt where there is something for it."""
        try:
            self.state.parent.mkdir(parents=True, exist_ok=True)
            tables = {
                "train": to_dict(settings.train),
                "model": to_dict(settings.model),
                "preprocess": to_dict(settings.preprocess),
                "data": settings.data,
            }
            write_text(self.config, dump_toml(tables), durable=True)
            if val_images:
                write_text(self.val_images, "".join(f"{name}\n" for name in val_images))
        except OSError as error:
            raise ConfigError(f"{self.root}: cannot be written ({error.strerror})") from error

    def mark_launch(self, identity: Mapping[str, str]) -> None:
        """Note which start of torchrun the run is of, for the processes after a restart."""
        with self._writing():
            write_text(self.launch, json.dumps(dict(identity)) + "\n", durable=True)

    def launched_as(self) -> dict[str, str]:
        """What `mark_launch` noted; empty where it did not."""
        try:
            noted = json.loads(self.launch.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(name): str(value) for name, value in noted.items()}

    def read_settings(self) -> RunSettings:
        """What config.toml holds. Raises ConfigError when this is not a run's folder."""
        if not self.config.is_file() or not self.state.is_file():
            raise ConfigError(
                f"{self.root}: no training run to resume (no config.toml or state/)",
                "--resume takes a run's folder, e.g. runs/train",
            )
        tables = load_toml(self.config)
        where = str(self.config)
        return RunSettings(
            from_dict(TrainConfig, tables.get("train", {}), where),
            from_dict(ModelConfig, tables.get("model", {}), where),
            from_dict(PreprocessConfig, tables.get("preprocess", {}), where),
            dict(tables.get("data", {})),
        )

    def record(self, event: Event) -> None:
        """Append a reported step, an evaluation or a warning to the tables and the log."""
        if isinstance(event, RunFinished):
            with self._writing(), self.log.open("a", encoding="utf-8") as file:
                per_class = event.summary["best_per_class"] or {}
                file.writelines(line + "\n" for line in class_lines(per_class))
        row = _row(event)
        if row is not None:
            with self._writing():
                self._append(row)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        with self._writing():
            write_text(
                self.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n", durable=True
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DinoError(
                f"{self.root}: cannot be written ({error.strerror})",
                "free some space; the last checkpoint is intact, then: "
                f"dino train --resume {self.root}",
            ) from error

    def _append(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False)
        with self.metrics_jsonl.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        with self.log.open("a", encoding="utf-8") as file:
            file.write(_log_line(row) + "\n")
        if row["event"] == "warning":
            return
        new = not self.metrics_csv.exists()
        with self.metrics_csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
            if new:
                writer.writeheader()
            writer.writerow({k: v for k, v in row.items() if v is not None})

    def clear_up(self, step: int) -> None:
        """Remove what a killed run left: half-written files, and rows of steps after `step`."""
        for folder in (self.root, self.state.parent, self.features, self.plots, self.samples):
            for path in folder.glob(".*.part"):
                path.unlink(missing_ok=True)
        with self._writing():
            self.forget_after(step)

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps after `step` from the tables: they are done again."""
        if self.metrics_jsonl.exists():
            lines = self.metrics_jsonl.read_text(encoding="utf-8").splitlines()
            write_text(
                self.metrics_jsonl,
                "".join(f"{x}\n" for x in lines if _is_kept(x, step)),
                durable=True,
            )
        if self.metrics_csv.exists():
            with self.metrics_csv.open(newline="", encoding="utf-8") as file:
                header, *rows = list(csv.reader(file)) or [list(_COLUMNS)]
            kept = [r for r in rows if len(r) == len(header) and int(r[0] or 0) <= step]
            text = "".join(",".join(row) + "\n" for row in [header, *kept])
            write_text(self.metrics_csv, text, durable=True)


def metric_values(metrics: Any) -> dict[str, Any]:
    """The numbers of an evaluation as plain values (a `to_dict` method, or a dataclass)."""
    if hasattr(metrics, "to_dict"):
        return dict(metrics.to_dict())
    return dict(dataclasses.asdict(metrics))


def _row(event: Event) -> dict[str, Any] | None:
    if isinstance(event, StepDone):
        losses = {_loss_name(name): value for name, value in event.losses.items()}
        return {
            "event": "step", "step": event.step, "epoch": event.epoch,
            "progress": round(event.progress, 6), "lr": event.lr, **losses,
            "grad_norm": event.grad_norm, "images_per_s": round(event.images_per_s, 3),
            "memory_mb": round(event.memory_mb, 1),
        }  # fmt: skip
    if isinstance(event, EvaluationDone):
        values = metric_values(event.metrics)
        head = {"event": "evaluation", "step": event.step, "epoch": event.epoch}
        return {**head, "best": event.best, "seconds": round(event.seconds, 2), **values}
    if isinstance(event, Warned):
        return {"event": "warning", "step": event.step, "message": event.message}
    return None


def _loss_name(name: str) -> str:
    return "loss" if name == "total" else f"loss_{name}"


def _log_line(row: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in row.items() if not isinstance(v, (dict, list))}
    return " ".join(
        f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items()
    )


def _is_kept(line: str, step: int) -> bool:
    row = _parsed(line)
    return row is not None and row["step"] <= step


def _parsed(line: str) -> dict[str, Any] | None:
    """A row with the step it belongs to; None for a line cut off by a kill."""
    try:
        row = json.loads(line)
        return {**row, "step": int(row.get("step", 0))}
    except (ValueError, AttributeError, TypeError):
        return None
