"""Feeds damaged and hostile model files, metadata and settings to their readers.

Every reader may refuse its input with a DinoError, whose message is one line that can be printed.
Any other exception is a fault. Run it for any time:

    python tests/fuzz/fuzz_metadata.py --seconds 600 --seed 1
"""

# ruff: noqa: E402 - a script finds the tests' folder only after a line of code

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from factories import TINY_INPUT, tiny_checkpoint, tiny_config

from dino_cli import model_view
from dino_cli.settings import resolve_settings
from dino_core.checkpoints.foreign.convert import import_checkpoint
from dino_core.checkpoints.io import build_model, load_checkpoint
from dino_core.checkpoints.published.names import find_model
from dino_core.checkpoints.zoo import history, load, verify_file
from dino_core.config import LossConfig, ModelConfig, PreprocessConfig, TrainConfig, from_dict
from dino_core.detections import ClassMap
from dino_core.errors import DinoError
from dino_core.metadata import CheckpointMeta, from_json, to_json

MAX_MESSAGE = 5000  # characters, of which a path may take 4096

META = CheckpointMeta(
    "dino-tiny", tiny_config(), TINY_INPUT, ClassMap(("square", "größe"), (7, 3)),
    training={"steps": 3, "data": "d"}, metrics={"ap": 0.25}, provenance={"notes": ["a"]},
)  # fmt: skip

TOKENS = (
    "0", "-1", "1e400", "-0.0", "NaN", "Infinity", "-Infinity", "true", "null", '""', "[]", "{}",
    str(2**31), str(2**61), str(2**63), str(10**30), str(10**400), "9" * 5000, "1.5", '"1"',
    '"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"' + "x" * 100_000 + '"', "[" * 2000 + "]" * 2000,
    "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "[1, [2]]", '{"names": 3}', "[[]]",
    '"hf-hub:x/y"', '"resnet18"', '"../../x"', '"' + "é" * 50 + '"', "²", "\udcff",
)  # fmt: skip
"""Pieces of JSON (or not) that take the place of a value."""

VALUES: tuple[Any, ...] = (
    0, -1, 2**61, 10**400, 10**5000, -1.0, float("nan"), float("inf"), True, None, "", "x" * 10**5,
    "\ud800", "\0", b"x", [], [0], [10**400], [None], {}, {"a": {}}, (1, 2, 3), ["a", "b"], object,
)  # fmt: skip


@dataclass
class Report:
    """What a run of the fuzzer found.

    Attributes:
        refused: Inputs that each reader refused with an error of ours.
        accepted: Inputs that it read.
        faults: Traceback and input of each other exception.
    """

    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Fuzzer:
    """Makes inputs in a folder, and reads them.

    Args:
        folder: Where the files are written.
        seed: Equal seeds give equal inputs.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.input: Any = None
        self.model = tiny_checkpoint(folder / "m.safetensors").read_bytes()
        pickled = folder / "m.pth"
        torch.save(self._foreign(), pickled)
        self.pickled = pickled.read_bytes()
        self.targets: list[Callable[[], None]] = [
            self.metadata, self.metadata, self.header, self.weights, self.raw_file, self.pickle,
            self.pickled_bytes, self.config, self.toml, self.name, *self._onnx_targets(),
        ]  # fmt: skip

    def run(self, seconds: float) -> Report:
        report, end = Report(), time.monotonic() + seconds
        while time.monotonic() < end:
            target = self.random.choice(self.targets)
            name = target.__name__
            try:
                target()
                report.accepted[name] += 1
            except DinoError as error:
                report.refused[name] += 1
                if reason := unprintable(error):
                    report.faults.append(f"{name}: {reason}: {error.message[:300]!r}")
            except Exception:
                shown = repr(self.input)[:2000] if not _is_large(self.input) else "a large number"
                report.faults.append(f"{name}: {traceback.format_exc()}\ninput: {shown}")
        return report

    def _token(self) -> str:
        return self.random.choice(TOKENS)

    def _changed_json(self, value: Any, changes: int) -> str:
        """JSON text of `value`, in which some of its parts are replaced or removed."""
        value = json.loads(json.dumps(value))
        for _ in range(changes):
            node, key = value, None
            while True:
                keys = list(node) if isinstance(node, dict) else list(range(len(node)))
                if not keys:
                    break
                key = self.random.choice(keys)
                if not isinstance(node[key], (dict, list)) or self.random.random() < 0.2:
                    break
                node = node[key]
            if key is None or not node:
                continue
            if isinstance(node, dict) and self.random.random() < 0.1:
                del node[key]
            else:
                node[key] = f"@{self.random.randrange(len(TOKENS))}@"
        text = json.dumps(value, ensure_ascii=False)
        for index, token in enumerate(TOKENS):
            text = text.replace(f'"@{index}@"', token)
        return text

    def _damaged(self, data: bytes) -> bytes:
        """`data` with some bytes changed, a piece cut out, or the end missing."""
        result = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 8, 64))):
            result[self.random.randrange(len(result))] = self.random.randrange(256)
        kind = self.random.random()
        if kind < 0.1:
            start = self.random.randrange(len(result))
            del result[start : start + self.random.randrange(100)]
        elif kind < 0.2:
            del result[self.random.randrange(len(result)) :]
        return bytes(result)

    def _file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def _use(self, meta: CheckpointMeta) -> None:
        """Do with metadata what commands do after reading them."""
        text = to_json(meta)
        assert from_json(text) == meta or "nan" in text.lower()
        text.encode()
        np.array(meta.classes.source_ids, np.int64)
        meta.classes.indices_of([name for name in meta.classes.names if name])

    def metadata(self) -> None:
        self.input = text = self._changed_json(
            json.loads(to_json(META)), self.random.choice((1, 3))
        )
        self._use(from_json(text, "file"))

    def header(self) -> None:
        end = 8 + struct.unpack("<Q", self.model[:8])[0]
        parsed = json.loads(self.model[8:end])
        if self.random.random() < 0.5:
            described = json.loads(parsed["__metadata__"]["dino"])
            parsed["__metadata__"]["dino"] = self._changed_json(described, 1)
            text = json.dumps(parsed)
        else:
            text = self._changed_json(parsed, 1)
        header = text.encode("utf-8", "surrogatepass")
        length = self.random.choice((len(header),) * 9 + (0, 2**63))
        self.input = text
        self._open(struct.pack("<Q", length) + header + self.model[end:])

    def weights(self) -> None:
        """Tensors of another dtype or shape, or other names."""
        from safetensors.torch import load, save

        tensors = dict(load(self.model))
        name = self.random.choice(sorted(tensors))
        one = tensors.pop(name)
        kinds = [torch.complex64, torch.int32, torch.bool, torch.float8_e4m3fn, torch.float16]
        self.input = change = self.random.choice(["drop", "reshape", "rename", *kinds])
        if isinstance(change, torch.dtype):
            tensors[name] = one.to(change)
        elif change == "reshape":
            tensors[name] = one.reshape(-1)[: self.random.randrange(1 + one.numel())]
        elif change == "rename":
            tensors[self.random.choice(["", "\0", "x" * 1000, "é"])] = one
        self._open(save(tensors, {"dino": to_json(META)}))

    def raw_file(self) -> None:
        self._open(self._damaged(self.model))

    def _open(self, content: bytes) -> None:
        path = self._file("x.safetensors", content)
        build_model(load_checkpoint(path))
        model_view.describe(find_model(path))
        history(path, load(path).meta)
        verify_file(path)

    def _foreign(self) -> dict[str, Any]:
        """A checkpoint with official names and shapes; each tensor is one value."""
        golden = Path(__file__).parents[1] / "golden" / "keys_4scale_r50.json"
        shapes = json.loads(golden.read_text())
        state = {name: torch.zeros(1).expand(*shape) for name, shape in shapes.items()}
        text = "positional_encoding=dict(num_feats=128, temperature=20, offset=0.0)"
        return {"model": state, "meta": {"cfg": text, "dataset_meta": {"CLASSES": ("a", "b")}}}

    def pickle(self) -> None:
        """A checkpoint in which something is of another kind."""
        content = self._foreign()
        state, choice = content["model"], self.random.choice
        name = choice(sorted(state))
        hostile: tuple[Any, ...] = (
            *VALUES[:-1], torch.zeros(1, dtype=torch.complex64).expand(3), torch.tensor(3),
            torch.zeros(0), torch.zeros(2, 0, 3), np.array(["a"]), np.zeros(3, np.complex64),
            torch.zeros(1).half().expand(1 << 12, 1 << 13), torch.zeros(3, dtype=torch.uint8),
        )  # fmt: skip
        self.input = (name, value := choice(hostile))
        number = choice(("1e999", "-1", "nan", "1.2.3", "0", "9" * 400, "."))
        change = self.random.randrange(7)
        if change == 0:
            state[name] = value
        elif change == 1:
            content["meta"] = {"cfg": value, "dataset_meta": value}
        elif change == 2:
            content["meta"]["dataset_meta"] = {choice(("classes", 3, "CLASSES")): [value] * 91}
        elif change == 3:
            content["meta"]["cfg"] = f"positional_encoding=dict(temperature={number}, offset=1)"
        elif change == 4:
            content[choice(("ema_model", "state_dict", "model"))] = choice((state, value, {}))
        elif change == 5:
            state.update({key: state.pop(name) for key in [value] if _hashable(key)})
        else:
            content = value
        torch.save(content, self.folder / "x.pth")
        checkpoint = import_checkpoint(self.folder / "x.pth")
        self._use(checkpoint.meta)
        build_model(checkpoint)

    def pickled_bytes(self) -> None:
        import_checkpoint(self._file("x.pth", self._damaged(self.pickled)))

    def config(self) -> None:
        cls: Any = self.random.choice((ModelConfig, PreprocessConfig, TrainConfig, LossConfig))
        names = [*cls.__dataclass_fields__, "x", "\ud800"]
        self.input = given = {
            self.random.choice(names): self.random.choice(VALUES) for _ in range(2)
        }
        from_dict(cls, given, "file")

    def toml(self) -> None:
        keys = (
            "train.lr",
            "train",
            "model.num_heads",
            "x.y",
            "",
            "train.loss.cost_bbox",
            "a" * 999,
        )
        key = self.random.choice((*keys, "model." + "a." * 3000 + "b", "data", "recipe.name"))
        tokens = [*TOKENS, "0x" + "f" * 5000, "1979-05-27", "'''", '"\\uD800"', "inf", "-nan"]
        self.input = assignment = f"{key}={self.random.choice(tokens)}"
        if self.random.random() < 0.5:
            resolve_settings(None, {}, [assignment])
        else:
            path = self._file("x.toml", assignment.encode("utf-8", "surrogateescape"))
            resolve_settings(path, {}, [])

    def name(self) -> None:
        names = (
            "dino-nano",
            "\0",
            "a" * 300,
            "a/" * 3000,
            "\udcff",
            "yolo.pt",
            "",
            ".",
            "x\n",
            "²",
        )
        self.input = name = "".join(self.random.choices(names, k=self.random.choice((1, 2))))
        if find_model(name).path is None:
            load(name)

    def _onnx_targets(self) -> list[Callable[[], None]]:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        except ImportError:
            return []
        return [self.onnx]

    def onnx(self) -> None:
        """A file whose outputs and inputs have any shape, or whose metadata lie."""
        from inference.onnx_files import write_constant_onnx

        from dino_core.inference.onnx_runtime import OnnxRuntime

        sizes = (0, 1, 2, 3, 4, 5, 7)
        free = ("a", "b", 8, 16, 0, 10**9, 2**40)
        logits, boxes = ([*self.random.choices(sizes, k=2), last] for last in (2, 4))
        if self.random.random() < 0.5:
            logits, boxes = [1, 5, 2], [1, 5, 4]
        images = [self.random.choice((1, "n", 10**9)), 3, *self.random.choices(free, k=2)]
        self.input = (logits, boxes, images)
        path = write_constant_onnx(
            self.folder / "x.onnx", tuple(logits), tuple(boxes), tuple(images),
            declared=self.random.random() < 0.5,
        )  # fmt: skip
        if self.random.random() < 0.3:
            text = self._changed_json(json.loads(to_json(META)), 1)
            _set_metadata(path, text.encode("utf-8", "replace").decode())
        runtime = OnnxRuntime(path, threads=1)
        height, width = runtime.input_hw or (8, 16)
        runtime.run(
            np.zeros((1, 3, height, width), np.float32), np.zeros((1, height, width), np.bool_)
        )


def _set_metadata(path: Path, text: str) -> None:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"dino": text})
    onnx.save(model, str(path))


def _hashable(value: Any) -> bool:
    return isinstance(value, (str, int, float, bytes, type(None)))


def _is_large(value: Any) -> bool:
    try:
        repr(value)
    except (ValueError, RecursionError):
        return True
    return False


def unprintable(error: DinoError) -> str:
    """What is wrong with an error's message; empty if nothing is."""
    try:
        error.message.encode("utf-8", "surrogateescape")  # a path may have bytes that are no UTF-8
    except UnicodeEncodeError:
        return "a message that cannot be printed"
    return "a long message" if len(error.message) > MAX_MESSAGE else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz model files, metadata and settings.")
    parser.add_argument("--seconds", type=float, default=60.0, help="Duration.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Fuzzer(Path(folder), options.seed).run(options.seconds)
    for name in sorted(report.refused | report.accepted):
        print(f"{name}: {report.refused[name]} refused, {report.accepted[name]} read")
    print("\n\n".join(report.faults[:20]))
    print(f"{len(report.faults)} faults in {report.refused.total() + report.accepted.total()}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
