"""Evaluation by two processes gives the numbers of one, exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import make_coco_dataset
from processes import two_processes

from dino_core.checkpoints.io import build_model, load_checkpoint
from dino_core.data.load import load_dataset
from dino_core.engine.parallel.evaluate import gather_predictions
from dino_core.evaluation.evaluate import Evaluation
from dino_core.inference.pipeline import Pipeline
from dino_core.inference.torch_runtime import run_model
from dino_core.processing.postprocess import Decoded

EVALUATE = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
import torch.distributed as dist
from dino_core.checkpoints.io import build_model, load_checkpoint
from dino_core.data.load import load_dataset
from dino_core.engine.parallel.collectives import gather_rows, gather_texts, sums
from dino_core.engine.parallel.evaluate import evaluate_together
from dino_core.errors import DataError
rank, store, data, start = int(sys.argv[1]), *sys.argv[2:5]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
cpu = torch.device("cpu")
assert gather_texts("\u00e9" * rank, cpu) == ["", "\u00e9"] and gather_texts("", cpu) == ["", ""]
rows = gather_rows(torch.arange(3 * rank).view(-1, 3))
assert [r.tolist() for r in rows] == [[], [[0, 1, 2]]], rows
assert sums([1.0, 10.0 * rank], cpu) == [2.0, 10.0]

checkpoint = load_checkpoint(Path(start))
model, dataset = build_model(checkpoint).train(), load_dataset(data)
records, settings = dataset.splits["val"], checkpoint.meta.preprocess

def evaluated(records, **more):
    return evaluate_together(
        model, records, dataset.classes, settings, batch=2, device=cpu, **more
    )

def numbers(result):
    return [replace(result.metrics, ms_per_image=None).to_dict(), result.to_coco()]

all_of_them = numbers(evaluated(records))
assert model.training
alone = numbers(evaluated(records[:1]))  # process 1 has no share
try:
    evaluated(records, interrupted=lambda: rank == 1)
    stopped = False
except KeyboardInterrupt:
    stopped = True
lost = replace(records[0], path=records[0].path.with_name("lost.png"))
try:
    evaluated((lost, *records[1:]))
    failed = ""
except DataError as error:
    failed = error.message
print(json.dumps([all_of_them, alone, stopped, failed]), flush=True)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path, start: str) -> None:
    data = make_coco_dataset(tmp_path / "data", (("train", 2), ("val", 7)))
    outputs = two_processes(EVALUATE, str(tmp_path / "store"), str(data), start)
    first, second = (json.loads(output) for output in outputs)
    assert first[:3] == second[:3] and first[2] is True
    assert "lost.png" in first[3] and second[3] == "another process cannot read a validation image"

    checkpoint, dataset = load_checkpoint(Path(start)), load_dataset(data)
    model, records = build_model(checkpoint).eval(), dataset.splits["val"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: sums are then made in the same order
    try:
        for wanted, found in ((records, first[0]), (records[:1], first[1])):
            run = partial(run_model, model, device=torch.device("cpu"), dtype=torch.float32)
            pipeline = Pipeline(run, checkpoint.meta.preprocess, None)
            result = Evaluation(pipeline, wanted, dataset.classes, batch=2).finish()
            metrics = replace(result.metrics, ms_per_image=None).to_dict()
            assert found == json.loads(json.dumps([metrics, result.to_coco()]))
            assert len(found[1]) == 40 * len(wanted)  # 20 queries, 2 classes
    finally:
        torch.set_num_threads(threads)


def test_predictions_come_back_in_order() -> None:
    rng = np.random.default_rng(0)
    whole = [
        Decoded(rng.random((n, 4), np.float32), rng.random(n, np.float32), rng.integers(0, 9, n))
        for n in (2, 0, 3, 0)
    ]
    found = gather_predictions({i: whole[i] for i in (3, 2, 0, 1)}, 4, torch.device("cpu"))
    assert len(found) == 4
    for a, b in zip(whole, found, strict=True):
        assert np.array_equal(a.boxes_xyxy_px, b.boxes_xyxy_px)
        assert np.array_equal(a.scores, b.scores)
        assert np.array_equal(a.class_indices, b.class_indices)
        assert b.class_indices.dtype == np.int64 and b.scores.dtype == np.float32
