"""What `dino train --plan` prints: the plan for people, or as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dino_cli.findings_view import show_findings
from dino_cli.train_view import data_lines, plan_lines
from dino_core.config import to_dict

if TYPE_CHECKING:
    from dino_core.data.check.findings import Finding
    from dino_core.data.records import DatasetIndex
    from dino_core.engine.events import RunPlanned


def print_plan(
    event: RunPlanned, dataset: DatasetIndex, findings: Sequence[Finding], as_json: bool
) -> None:
    """Print the plan on stdout."""
    if as_json:
        print(json.dumps(plan_dict(event, dataset, findings), ensure_ascii=False))
        return
    for line in data_lines(dataset):
        print(line)
    show_findings(findings, dataset.root, sys.stdout)
    for line in plan_lines(event):
        print(line)
    print("nothing was written; without --plan this starts the run")


def plan_dict(
    event: RunPlanned, dataset: DatasetIndex, findings: Sequence[Finding]
) -> dict[str, Any]:
    """The plan as plain values; times in seconds, memory in MiB."""
    trial, ahead, plan = event.trial, event.forecast, event.plan
    return {
        "schema": 1,
        "data": {
            "path": str(dataset.root),
            "format": dataset.format,
            "classes": [name for name in dataset.classes.names if name],
            "splits": {
                name: {"images": len(records), "boxes": sum(len(r.class_indices) for r in records)}
                for name, records in dataset.splits.items()
            },
        },
        "findings": [finding.to_dict() for finding in findings],
        "model": to_dict(event.model),
        "preprocess": to_dict(event.preprocess),
        "parameters": event.parameters,
        "device": event.device,
        "dtype": event.dtype,
        "devices": event.processes,
        "steps": plan.steps,
        "minutes": plan.minutes,
        "epochs": plan.epochs,
        "steps_per_epoch": plan.steps_per_epoch,
        "images_per_step": event.config.images_per_step,
        "decisions": [dataclasses.asdict(decision) for decision in plan.decisions],
        "train": to_dict(event.config),
        "worst_batch": None
        if trial is None
        else {
            **dataclasses.asdict(trial.worst),
            "at_a_time": trial.at_a_time,
            "memory_mb": round(trial.peak_mb, 1),
            "memory_limit_mb": None if trial.limit_mb is None else round(trial.limit_mb, 1),
            "step_s": trial.step_s,
        },
        "forecast": None if ahead is None else dataclasses.asdict(ahead),
    }
