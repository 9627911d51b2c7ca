"""Two processes end with the same weights, replicated or sharded, and any number can resume."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import TINY_INPUT, make_coco_dataset, tiny_config
from processes import two_processes

from dino_core.checkpoints.io import load_checkpoint
from dino_core.config import ResolvedConfig
from dino_core.data.dataset import DetectionDataset
from dino_core.data.load import load_dataset
from dino_core.data.loader import Loader, LoaderSettings
from dino_core.engine.build import accumulation
from dino_core.engine.events import RunPlanned
from dino_core.engine.fit import run_events
from dino_core.engine.model_setup import average_of
from dino_core.engine.optimizer import build_optimizer
from dino_core.engine.parallel.sharding import load_whole, whole
from dino_core.engine.request import RunRequest
from dino_core.engine.state import Counters, load_state
from dino_core.engine.step import Stepper
from dino_core.errors import ConfigError
from dino_core.models.dino import Dino

RECIPE = ResolvedConfig(
    steps=2, batch=2, accumulate=2, log_every_steps=1, dtype="fp32", device="cpu", lr=1e-3,
    augment="none", plots=False,
)  # fmt: skip


def trained(config: ResolvedConfig, index: str, rank: int) -> dict[str, torch.Tensor]:
    """Weights and their average after two steps, as `rank` of two processes sees them."""
    dataset = pickle.loads(Path(index).read_bytes())
    torch.manual_seed(0)
    network = Dino(tiny_config())
    network.backbone.fold_batch_norm()
    ema = average_of(network, config, torch.device("cpu"))
    assert ema is not None
    optimizer = build_optimizer(network, config)
    stepper = Stepper(config, network, ema, optimizer, torch.device("cpu"), torch.float32)
    images = DetectionDataset(dataset.splits["train"], TINY_INPUT)
    batches = list(Loader(images, LoaderSettings(2, rank=rank, world_size=2)).batches(0))
    assert len(batches) == 4
    for step in range(2):
        assert stepper.gradients(batches[2 * step : 2 * step + 2], step, 0.5).usable
        stepper.update()
    average = {f"ema.{name}": t for name, t in ema.model.state_dict(keep_vars=True).items()}
    return whole({**network.state_dict(keep_vars=True), **average})


TRAIN = """
import hashlib, sys
from dataclasses import replace
from pathlib import Path
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[6])
from test_sharding import RECIPE, trained
from dino_core.data.load import load_dataset
from dino_core.engine.fit import run_events
from dino_core.engine.request import RunRequest
rank, store, index, data, out = int(sys.argv[1]), *sys.argv[2:6]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
for shard in ("none", "fsdp"):
    weights = trained(replace(RECIPE, shard=shard), index, rank)
    print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in weights.values())).hexdigest())
    if rank == 0:
        torch.save(weights, f"{out}.{shard}")
loaded = load_dataset(data)
request = RunRequest(replace(RECIPE, shard="fsdp", steps=1), loaded, Path(out), model=sys.argv[7])
list(run_events(request))
for shard, steps in (("none", 2), ("fsdp", 3)):  # resumed with replicated, then sharded weights
    config = replace(RECIPE, shard=shard, steps=steps)
    list(run_events(replace(request, config=config, resume=True)))
sys.stdout.flush()
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_replicated_and_spread_weights_agree_and_any_number_goes_on(
    tmp_path: Path, start: str
) -> None:
    data = make_coco_dataset(tmp_path / "data", (("train", 16), ("val", 3)))
    index = tmp_path / "index"
    index.write_bytes(pickle.dumps(load_dataset(data)))
    store, out, here = tmp_path / "store", tmp_path / "out", Path(__file__).parent
    arguments = [str(p) for p in (store, index, data, out, here, start)]
    first, second = (output.split() for output in two_processes(TRAIN, *arguments))
    assert len(first) == 2 and first == second  # bit for bit

    replicated, spread = (torch.load(f"{out}.{form}") for form in ("none", "fsdp"))
    assert replicated.keys() == spread.keys()
    torch.manual_seed(0)
    before = Dino(tiny_config()).state_dict()
    moved = max(float((replicated[n] - t).abs().max()) for n, t in before.items())
    worst = max(float((replicated[n] - spread[n]).abs().max()) for n in replicated)
    assert moved > 1e-3 and worst < 1e-5, (moved, worst)

    state = load_state(out / "state/training.safetensors")
    assert (state.counters.step, state.counters.processes) == (3, 2)
    names = load_checkpoint(Path(start)).state_dict.keys()
    assert load_checkpoint(out / "last.safetensors").state_dict.keys() == names
    events = run_events(RunRequest(replace(RECIPE, steps=4), load_dataset(data), out, resume=True))
    planned, *_ = list(events)  # one process continues what two began
    assert isinstance(planned, RunPlanned) and planned.resumed_step == 3
    counters = load_state(out / "state/training.safetensors").counters
    assert (counters.step, counters.processes, counters.planned_processes) == (4, 1, 2)
    assert (counters.epoch, counters.batch) == (2, 0)  # a step has as many images as before


def test_other_numbers_of_processes() -> None:
    assert [accumulation(2, 2, n) for n in (1, 2, 3, 4, 8)] == [4, 2, 1, 1, 1]
    counters = Counters(batch=3, processes=2, planned_processes=2)
    counters.continue_with(1)
    assert (counters.batch, counters.processes, counters.planned_processes) == (6, 1, 2)
    counters.continue_with(4)
    assert (counters.batch, counters.processes) == (1, 4)  # two batches are seen again


def test_one_process_has_nothing_to_spread(tmp_path: Path) -> None:
    data = load_dataset(make_coco_dataset(tmp_path / "data"))
    with pytest.raises(ConfigError, match="nothing to shard over"):
        next(
            run_events(
                RunRequest(replace(RECIPE, shard="fsdp"), data, tmp_path / "run", weights="none")
            )
        )


def test_whole_tensors_stay_as_they_are() -> None:
    model = torch.nn.Linear(2, 2)
    state = whole({"a": model.weight, "b": model.weight})
    assert state["a"].data_ptr() == state["b"].data_ptr() == model.weight.data_ptr()
    load_whole(model, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)})
    assert torch.equal(model.weight, torch.ones(2, 2))
