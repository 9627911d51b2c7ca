"""What options, arguments and commands of other tools are called here: one table for each."""

from __future__ import annotations

from typing import Any

OPTIONS = {
    "conf": "--threshold",
    "conf-thres": "--threshold",
    "conf-threshold": "--threshold",
    "confidence": "--threshold",
    "score-thr": "--threshold",
    "score-threshold": "--threshold",
    "imgsz": "--image-size",
    "img": "--image-size",
    "img-size": "--image-size",
    "input-size": "--image-size",
    "resolution": "--image-size",
    "size": "--image-size",
    "weights": "--model",
    "checkpoint": "--model",
    "ckpt": "--model",
    "pretrained": "--weights",
    "source": "SOURCE",
    "input": "SOURCE",
    "images": "SOURCE",
    "data": "DATA",
    "dataset": "DATA",
    "dataset-dir": "DATA",
    "coco-path": "DATA",
    "batch-size": "--batch",
    "max-det": "--max-detections",
    "vid-stride": "--every",
    "project": "--out",
    "name": "--out",
    "output": "--out",
    "output-dir": "--out",
    "work-dir": "--out",
    "save-dir": "--out",
    "save-txt": "--save yolo",
    "save-crop": "--save crops",
    "save-json": "--save json",
    "half": "--dtype fp16",
    "fp16": "--dtype fp16",
    "amp": "--dtype bf16",
    "lr0": "--lr",
    "learning-rate": "--lr",
    "epoch": "--epochs",
    "num-epochs": "--epochs",
    "max-epochs": "--epochs",
    "cfg": "--config",
    "hyp": "--config",
    "cfg-options": "--set",
    "opt": "--set",
    "gpus": "--devices",
    "num-gpus": "--devices",
    "task": "",
    "mode": "",
}
"""Name without dashes, to the option here, or an argument in capitals; "" has no counterpart."""

COMMANDS = {
    "detect": "predict",
    "infer": "predict",
    "inference": "predict",
    "demo": "predict",
    "val": "eval",
    "validate": "eval",
    "test": "eval",
    "evaluate": "eval",
    "fit": "train",
    "finetune": "train",
}
"""Commands of other tools, to the command here."""


def option_hint(option: str, command: Any) -> str:
    """What an unknown option is called in `command`; "" where the table does not know it."""
    name = option.lstrip("-").replace("_", "-").lower()
    target = OPTIONS.get(name, "")
    if not target:
        return ""
    if target.isupper():
        known = target in (getattr(p, "metavar", None) or "" for p in command.params)
        return f"{target} is given without an option: dino {command.name} {target}" if known else ""
    return f"it is called {target} here" if _has(target.split()[0], command) else ""


def assignment_hint(argument: str, command: Any) -> str:
    """How `epochs=20` is written here; "" where `argument` is no setting of `command`."""
    name, equals, value = argument.partition("=")
    name = name.replace("_", "-").lower()
    if not equals or not name.replace("-", "").isalnum():
        return ""
    target = f"--{name}" if _has(f"--{name}", command) else OPTIONS.get(name)
    if target is None:
        return ""
    if target.isupper():
        known = target in (getattr(p, "metavar", None) or "" for p in command.params)
        return f"write {value}" if known else ""
    if not target:
        return "leave it out"
    if not _has(target.split()[0], command):
        return ""
    return f"write {target}" + ("" if " " in target else f" {value}")


def _has(option: str, command: Any) -> bool:
    return any(option in getattr(parameter, "opts", ()) for parameter in command.params)
