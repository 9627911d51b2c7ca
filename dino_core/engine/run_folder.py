"""The folder of a training run: where each file is, and how the tables and the log are written."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_core.config import (
    ModelConfig,
    PreprocessConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from dino_core.engine.events import (
    EvaluationDone,
    Event,
    RolledBack,
    RunFinished,
    StepDone,
    Warned,
)
from dino_core.errors import ConfigError
from dino_core.evaluation.class_table import class_lines
from dino_core.files import write_errors, write_text
from dino_core.toml import dump_toml, load_toml

if TYPE_CHECKING:
    from dino_core.engine.summary import RunSummary

_COLUMNS = (
    "step", "epoch", "lr", "loss", "loss_class", "loss_bbox", "loss_giou", "grad_norm",
    "images_per_s", "memory_mb", "ap", "ap50", "ap75",
)  # fmt: skip


@dataclass(frozen=True)
class RunSettings:
    """The content of config.toml: with the state, everything that a resumed run is built from."""

    train: TrainConfig
    model: ModelConfig
    preprocess: PreprocessConfig
    data: Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        root: The folder itself.
    """

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
        """Features of a frozen backbone, which are kept until the run ends."""
        return self.root / "state" / "features"

    @property
    def launch(self) -> Path:
        return self.root / "state" / "launch.json"

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def val_images(self) -> Path:
        """Paths of the images that were split off for validation, where the data had no split."""
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
        """The rows of metrics.jsonl; lines that are not a row are ignored."""
        if not self.metrics_jsonl.exists():
            return []
        lines = self.metrics_jsonl.read_text(encoding="utf-8").splitlines()
        return [row for line in lines if (row := _parsed(line)) is not None]

    def check_new(self) -> None:
        """Raises ConfigError where the folder is not empty."""
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise ConfigError(
                f"{self.root}: exists and is not empty", "choose another --out, or use --resume"
            )

    def create(self, settings: RunSettings, val_images: Sequence[str] = ()) -> None:
        """Create the folder and write config.toml and, with `val_images`, val.txt.

        Raises:
            ConfigError: the folder cannot be written, or a path in the settings is not UTF-8.
        """
        text = dump_toml(
            {
                "train": to_dict(settings.train),
                "model": to_dict(settings.model),
                "preprocess": to_dict(settings.preprocess),
                "data": settings.data,
            }
        )
        try:
            self.state.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.config, text, durable=True)
            if val_images:
                write_text(self.val_images, "".join(f"{name}\n" for name in val_images))
        except OSError as error:
            raise ConfigError(f"{self.root}: cannot be written ({error.strerror})") from error

    def log_data(self, warnings: Sequence[str]) -> None:
        """Begin the log with what was left out or repaired when the data were read."""
        with self._writing():
            self._log(f"data: {sentence}" for sentence in warnings)

    def mark_launch(self, identity: Mapping[str, str]) -> None:
        """Note which launch of torchrun the run belongs to, for the processes after a restart."""
        with self._writing():
            write_text(self.launch, json.dumps(dict(identity)) + "\n", durable=True)

    def launched_as(self) -> dict[str, str]:
        """What `mark_launch` noted; empty where it was never called."""
        try:
            noted = json.loads(self.launch.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(name): str(value) for name, value in noted.items()}

    def read_settings(self) -> RunSettings:
        """Read config.toml. Raises ConfigError where this is not a run folder."""
        if not self.config.is_file() or not self.state.is_file():
            raise ConfigError(
                f"{self.root}: no training run to resume (no config.toml or state/)",
                "--resume takes a run folder, e.g. runs/train",
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
        """Append a reported step, an evaluation or a warning to the tables and the log.

        Raises:
            DinoError: a file cannot be written.
        """
        if isinstance(event, RunFinished):
            with self._writing():
                self._log(class_lines(event.summary.class_values()))
        row = _row(event)
        if row is not None:
            with self._writing():
                self._append(row)

    def write_summary(self, summary: RunSummary) -> None:
        """Write summary.json. Raises DinoError where it cannot be written."""
        text = json.dumps(summary.to_dict(), indent=2, ensure_ascii=False)
        with self._writing():
            write_text(self.summary, text + "\n", durable=True)

    def _writing(self) -> AbstractContextManager[None]:
        hint = (
            f"free some space; the last checkpoint is intact, then: dino train --resume {self.root}"
        )
        return write_errors(self.root, kept="the last checkpoint is intact", hint=hint)

    def _append(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False)
        with self.metrics_jsonl.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._log([_log_line(row)])
        if row["event"] == "warning":
            return
        # Opening the file for appending creates it.
        new = not self.metrics_csv.exists()
        with self.metrics_csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
            if new:
                writer.writeheader()
            writer.writerow({k: v for k, v in row.items() if v is not None})

    def _log(self, lines: Iterable[str]) -> None:
        with self.log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{line}\n" for line in lines)

    def clear_up(self, step: int) -> None:
        """Remove what a killed run left: unfinished files, and rows of steps after `step`."""
        for folder in (self.root, self.state.parent, self.features, self.plots, self.samples):
            # Names of files whose writing was cut off (`files.part_path`).
            for path in folder.glob(".*.part"):
                path.unlink(missing_ok=True)
        with self._writing():
            self.forget_after(step)

    def forget_after(self, step: int) -> None:
        """Remove the rows of steps after `step` from the tables: these steps are done again."""
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
            # The last row may be cut off where a process was killed.
            kept = [r for r in rows if len(r) == len(header) and int(r[0] or 0) <= step]
            text = "".join(",".join(row) + "\n" for row in [header, *kept])
            write_text(self.metrics_csv, text, durable=True)


def _row(event: Event) -> dict[str, Any] | None:
    """The row of an event in metrics.jsonl; None where it has none."""
    if isinstance(event, StepDone):
        losses = {_loss_column(name): value for name, value in event.losses.items()}
        return {
            "event": "step", "step": event.step, "epoch": event.epoch,
            "progress": round(event.progress, 6), "lr": event.lr, **losses,
            "grad_norm": event.grad_norm, "images_per_s": round(event.images_per_s, 3),
            "memory_mb": round(event.memory_mb, 1),
        }  # fmt: skip
    if isinstance(event, EvaluationDone):
        head = {"event": "evaluation", "step": event.step, "epoch": event.epoch}
        seconds = round(event.seconds, 2)
        return {**head, "best": event.best, "seconds": seconds, **event.metrics.to_dict()}
    if isinstance(event, (Warned, RolledBack)):
        return {"event": "warning", "step": event.step, "message": event.message}
    return None


def _loss_column(name: str) -> str:
    """The column of a loss term; the total is simply the loss."""
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
    """A row with its step; None for a line that was cut off when the process was killed."""
    try:
        row = json.loads(line)
        return {**row, "step": int(row.get("step", 0))}
    except (ValueError, AttributeError, TypeError):
        return None
