"""How fast is dino-r50-4scale on a CPU, how much memory does it need, and what do the kernels give?

    python benchmarks/model.py                 # minutes; wants a quiet machine
    python benchmarks/model.py --tiny          # seconds; tries the script itself

Measured, each in a process of its own: the forward pass of one 800x1066 image in fp32 (median,
peak memory), and one training step of two 480x640 images (forward, losses, backward, clipping,
optimiser). The compiled deformable attention and the reference alternate within one more process.
The official code's figures are quoted, not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUOTED_OFFICIAL = {
    "source": "quoted: official code (IDEA-Research/DINO), same kind of machine, 2 CPU threads",
    "forward": {"median_s": 10.4, "peak_gb": 2.3},
    "train": {"median_s": 16.5, "peak_gb": 7.3},
}
FORWARD_HW, TRAIN_HW, TRAIN_BATCH, BOXES = (800, 1066), (480, 640), 2, 10
TINY_HW = (96, 128)


def measure_forward(args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds and peak memory of one image's forward pass."""
    import torch

    model, images, padding_mask = _model_and_input(args, FORWARD_HW, 1)
    model.eval()
    model.backbone.fold_batch_norm(keep=True)  # as prediction does
    with torch.inference_mode():
        times = _repeat(lambda: model(images, padding_mask), args.repeats)
    return _result(times, images.shape)


def measure_train(args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds and peak memory of one optimiser step."""
    import torch

    from dino_core.config import TrainConfig
    from dino_core.engine.optimizer import build_optimizer
    from dino_core.losses.criterion import Criterion
    from dino_core.targets import Target

    model, images, padding_mask = _model_and_input(args, TRAIN_HW, TRAIN_BATCH)
    model.train()
    model.backbone.fold_batch_norm()  # as fit() does
    config = TrainConfig()
    optimizer = build_optimizer(model, config)
    criterion = Criterion(config.loss)
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(TRAIN_BATCH):
        centres = torch.rand(BOXES, 2, generator=generator) * 0.6 + 0.2
        sizes = torch.rand(BOXES, 2, generator=generator) * 0.3 + 0.05
        labels = torch.randint(model.config.num_classes, (BOXES,), generator=generator)
        targets.append(Target(labels, torch.cat([centres, sizes], dim=1)))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model(images, padding_mask, targets, generator)
        criterion(output, targets).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()

    return _result(_repeat(step, args.repeats), images.shape)


def measure_backends(args: argparse.Namespace) -> dict[str, Any]:
    """Forward pass with compiled and reference attention in turn, so that load hits both alike."""
    import torch

    from dino_core.ops.backend import use_backend

    model, images, padding_mask = _model_and_input(args, FORWARD_HW, 1)
    model.eval()
    model.backbone.fold_batch_norm(keep=True)
    times: dict[str, list[float]] = {"compiled": [], "reference": []}
    outputs = {}
    with torch.inference_mode():
        for repeat in range(args.repeats + 1):
            for name in times:
                with use_backend(name):  # type: ignore[arg-type]
                    start = time.perf_counter()
                    outputs[name] = model(images, padding_mask)
                    if repeat:  # the first is warm-up
                        times[name].append(time.perf_counter() - start)
    medians = {f"{name}_median_s": statistics.median(t) for name, t in times.items()}
    ratio = medians["reference_median_s"] / medians["compiled_median_s"]
    return {**medians, "reference_over_compiled": ratio, "times_s": times}


def _model_and_input(args: argparse.Namespace, size_hw: tuple[int, int], batch: int) -> Any:
    """The model with random weights, and pictures of noise without padding."""
    import torch

    from dino_core.engine.memory import keep_freed_memory
    from dino_core.models.dino import Dino
    from dino_core.variants import find_variant

    if args.allocator == "kept" and not keep_freed_memory():
        raise SystemExit("this C library cannot be told to keep freed memory: --allocator default")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.tiny:
        from tiny import TINY

        config, size_hw = TINY, TINY_HW
    else:
        config = find_variant(args.model).model
    images = torch.randn(batch, 3, *size_hw)
    return Dino(config), images, torch.zeros(batch, *size_hw, dtype=torch.bool)


def _repeat(run: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each run after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times[1:]


def _result(times: list[float], shape: Any) -> dict[str, Any]:
    from dino_core.engine.memory import peak_memory_mb

    peak_gb = peak_memory_mb() * 2**20 / 1e9
    median = statistics.median(times)
    return {"median_s": median, "peak_gb": peak_gb, "input": list(shape), "times_s": times}


MEASURES = {"forward": measure_forward, "train": measure_train, "backends": measure_backends}


def run_apart(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a fresh process, so that peak memory is its own."""
    command = [sys.executable, __file__, "--measure", name, "--model", args.model]
    command += ["--repeats", str(args.repeats), "--threads", str(args.threads)]
    command += ["--allocator", args.allocator] + (["--tiny"] if args.tiny else [])
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def table(results: dict[str, Any], tiny: bool) -> str:
    """The figures, beside the quoted ones where the sizes are the same."""
    lines = [f"{'':34}{'time':>9}{'memory':>10}{'official':>11}{'memory':>10}{'time ratio':>12}"]
    rows = {"forward": "forward, 1 image, fp32", "train": "training step, 2 images, fp32"}
    for name, title in rows.items():
        ours, quoted = results[name], QUOTED_OFFICIAL[name]
        assert isinstance(quoted, dict)
        size = "x".join(map(str, ours["input"][2:]))
        line = f"{title + ' ' + size:34}{ours['median_s']:>7.2f} s{ours['peak_gb']:>7.2f} GB"
        if not tiny:
            ratio = quoted["median_s"] / ours["median_s"]
            line += f"{quoted['median_s']:>9.1f} s{quoted['peak_gb']:>7.1f} GB{ratio:>11.1f}x"
        lines.append(line)
    backends = results["backends"]
    lines.append(
        f"forward by attention backend: compiled {backends['compiled_median_s']:.2f} s, reference "
        f"{backends['reference_median_s']:.2f} s, {backends['reference_over_compiled']:.1f}x"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="dino-r50-4scale", help="a variant's name")
    parser.add_argument("--repeats", type=int, default=5, help="measured runs after a warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--allocator", choices=("kept", "default"), default="kept",
        help="kept: glibc keeps freed memory, as the dino command asks it to",
    )  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="a tiny model: tries the script")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](args)))
        return
    import torch

    results: dict[str, Any] = {name: run_apart(name, args) for name in MEASURES}
    print(
        f"{'dino-tiny' if args.tiny else args.model}, {args.threads} threads, {platform.machine()}"
    )
    print(f"torch {torch.__version__}, allocator {args.allocator}, median of {args.repeats}")
    print(table(results, args.tiny))
    if not args.tiny:
        print(f"official: {QUOTED_OFFICIAL['source']}")
    if args.out:
        setting = {"model": args.model, "tiny": args.tiny, "threads": args.threads}
        setting |= {"allocator": args.allocator, "repeats": args.repeats}
        setting |= {"torch": torch.__version__, "quoted_official": QUOTED_OFFICIAL}
        args.out.write_text(json.dumps({**setting, **results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
