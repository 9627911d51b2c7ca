from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import TINY_INPUT, make_coco_dataset, tiny_config
from processes import two_processes
from torch import nn

from dino_core.config import ResolvedConfig
from dino_core.data.batching import Batch
from dino_core.data.dataset import DetectionDataset
from dino_core.data.load import load_dataset
from dino_core.data.loader import Loader, LoaderSettings
from dino_core.engine.optimizer import build_optimizer
from dino_core.engine.parallel import collectives as distributed
from dino_core.engine.step import Stepper
from dino_core.models.dino import Dino

TWO_PROCESSES = """
import sys
import torch
import torch.distributed as dist
from dino_core.engine.parallel import collectives as distributed
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
mean = distributed.all_reduce_mean(torch.tensor([1.0, 10.0]) * (1 + 2 * rank))
flag = distributed.all_true(rank == 0, torch.device("cpu"))
model = torch.nn.Linear(1, 1, bias=False)
wrapped = distributed.wrap(model, torch.device("cpu"))
wrapped(torch.tensor([[1.0 + rank]])).sum().backward()
gradient = float(model.weight.grad)
exchanges = []

def count(state, bucket):
    exchanges.append(bucket)
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future

wrapped.register_comm_hook(None, count)
for last in (False, False, True):
    with distributed.exchange(wrapped, last):
        wrapped(torch.ones(1, 1)).sum().backward()
assert len(exchanges) == 1, len(exchanges)
size = (distributed.rank(), distributed.world_size())
print(size, mean.tolist(), flag, gradient)
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
    outputs = two_processes(TWO_PROCESSES, str(tmp_path / "store"))
    # Means of (1, 10) and (3, 30), and of the gradients 1 and 2.
    assert outputs == [f"({rank}, 2) [2.0, 20.0] False 1.5" for rank in range(2)]


RECIPE = ResolvedConfig(dtype="fp32", device="cpu", clip_norm=1e9)


def stepper_of() -> Stepper:
    """One tiny model, without noise, which could not be the same in other batches."""
    torch.manual_seed(0)
    model = Dino(replace(tiny_config(), dn_number=0, dn_label_noise_ratio=0, dn_box_noise_scale=0))
    model.backbone.fold_batch_norm()
    optimizer = build_optimizer(model, RECIPE)
    return Stepper(RECIPE, model, None, optimizer, torch.device("cpu"), torch.float32)


def batches_of(index: str, size: int, **loader: int) -> list[Batch]:
    dataset = pickle.loads(Path(index).read_bytes())  # as it was before images were damaged
    images = DetectionDataset(dataset.splits["train"], TINY_INPUT)
    wanted = Loader(images, LoaderSettings(size, shuffle=False, skip_unreadable=True, **loader))
    return list(wanted.batches(0))


def gradients(stepper: Stepper) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in stepper.model.named_parameters() if p.grad is not None}


GRADIENTS = """
import sys
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[5])
from dino_core.engine.step import OutOfMemoryTogether
from test_collectives import batches_of, gradients, stepper_of
rank, store, index, out = int(sys.argv[1]), *sys.argv[2:5]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
stepper = stepper_of()
batches = batches_of(index, 2, rank=rank, world_size=2)
if sys.argv[6] == "short":
    def too_many(model, inputs):
        if rank == 1 and len(inputs[0]) > 1:
            raise torch.OutOfMemoryError
    stepper.model.register_forward_pre_hook(too_many)
    try:
        stepper.gradients(batches, 0, 0.0)
    except OutOfMemoryTogether:
        assert stepper.halve(batches)
    assert stepper.parts == 2
result = stepper.gradients(batches, 0, 0.0)
if rank == 0:
    torch.save(gradients(stepper), out)
print(len(batches), result.images, result.loss, flush=True)
dist.barrier()  # a process that leaves earlier than the other ends in gloo's abort
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "damaged", "memory"),
    [
        pytest.param(8, (), "enough", id="whole"),
        pytest.param(8, (2, 3), "enough", id="one-process-reads-nothing"),
        pytest.param(7, (), "short", id="one-process-is-short-of-memory"),
    ],
)
def test_two_processes_give_the_gradients_of_one(
    tmp_path: Path, images: int, damaged: tuple[int, ...], memory: str
) -> None:
    """2 processes x 2 micro-batches x 2 images are 1 process x 2 micro-batches x 4 images.

    The last image's absence leaves a process, which halves its batches as the other must, one part
    short.
    """
    data = make_coco_dataset(tmp_path / "data", (("train", images), ("val", 1)))
    index = tmp_path / "index"
    index.write_bytes(pickle.dumps(load_dataset(data)))
    for number in damaged:  # all that process 1 has in its first micro-batch
        (data / "train" / f"{number + 1:04d}.png").write_bytes(b"")
    out = tmp_path / "gradients.pt"
    here = str(Path(__file__).parent)
    arguments = (str(tmp_path / "store"), str(index), str(out), here, memory)
    outputs = [line.split() for line in two_processes(GRADIENTS, *arguments)]
    assert [line[:2] for line in outputs] == [["2", "4"], ["2", str(images - 4 - len(damaged))]]

    stepper = stepper_of()
    alone = stepper.gradients(batches_of(str(index), 4), 0, 0.0)
    assert [float(line[2]) for line in outputs] == [pytest.approx(alone.loss, rel=1e-5)] * 2
    ours, theirs = gradients(stepper), torch.load(out, weights_only=True)
    assert ours.keys() == theirs.keys() and len(ours) > 50
    scale = max(float(g.abs().max()) for g in ours.values())
    worst = max(float((ours[n] - theirs[n]).abs().max()) for n in ours)
    assert worst < 1e-5 * scale, (worst, scale)
