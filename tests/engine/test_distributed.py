from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from dino_core.engine import distributed

TWO_PROCESSES = """
import sys
import torch
import torch.distributed as dist
from dino_core.engine import distributed
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
mean = distributed.all_reduce_mean(torch.tensor([1.0, 10.0]) * (1 + 2 * rank))
flag = distributed.all_true(rank == 0, torch.device("cpu"))
model = torch.nn.Linear(1, 1, bias=False)
wrapped = distributed.wrap(model, torch.device("cpu"))
wrapped(torch.tensor([[1.0 + rank]])).sum().backward()
size = (distributed.rank(), distributed.world_size())
print(size, mean.tolist(), flag, float(model.weight.grad))
dist.destroy_process_group()
"""


def test_a_single_process_needs_nothing() -> None:
    tensor, model = torch.ones(2), nn.Linear(1, 1)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.all_reduce_mean(tensor) is tensor
    assert distributed.all_true(True, torch.device("cpu"))
    assert not distributed.all_true(False, torch.device("cpu"))
    assert distributed.wrap(model, torch.device("cpu")) is model


def test_two_processes_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", TWO_PROCESSES]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank, process in enumerate(processes):
        output = process.communicate(timeout=120)[0].strip()
        # Means of (1, 10) and (3, 30), and of the gradients 1 and 2.
        assert output == f"({rank}, 2) [2.0, 20.0] False 1.5"
