"""Joins the processes that `torchrun` started into a group that trains together."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from dino_core.engine.parallel.collectives import is_distributed, rank
from dino_core.errors import ConfigError
from dino_core.inference.torch_runtime import resolve_device
from dino_core.process import started_by_torchrun

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another one. It is long enough to read a large data set or to write
a large state, and short enough that a hanging run does not waste a night."""


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[Store]:
    """Join the processes that torchrun started: NCCL between GPUs, gloo between CPUs.

    After success all processes leave together. After an error this process leaves at once; the
    operations of the others then fail, or torchrun ends them.

    Args:
        device: "auto", "cpu" or "cuda", for every process.

    Yields:
        The store that the processes share.

    Raises:
        ConfigError: there are fewer GPUs than processes here, or `device` names a single GPU.
    """
    store, own_rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    # Keys of an earlier attempt are still in the store after a restart and would be taken for this
    # one's.
    store = PrefixStore(_attempt(), store)
    where = device_of_process(device)
    cuda = where.type == "cuda"
    if cuda:
        # Before NCCL is initialized, or all processes would open a context on GPU 0.
        torch.cuda.set_device(where)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=PrefixStore("group", store),
        rank=own_rank,
        world_size=size,
        timeout=TIMEOUT,
        device_id=where if cuda else None,
    )
    try:
        yield store
        dist.barrier()  # a process that left earlier would break the operations of the others
    finally:
        dist.destroy_process_group()


def torchruns_store() -> Store | None:
    """The store that processes share before they form a group; None where torchrun has none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return PrefixStore(_attempt(), TCPStore(*place, timeout=timedelta(seconds=30)))
    except RuntimeError:  # the store is gone, or never existed
        return None


def _attempt() -> str:
    """Prefix of the keys of these processes in torchrun's store, which outlives a restart."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    # A membership change restarts the processes without counting, but with another world size.
    return f"attempt {count} of {os.environ['WORLD_SIZE']}"


def device_of_process(name: str) -> torch.device:
    """The device of this process; several processes have a GPU each. Raises ConfigError."""
    if not (is_distributed() or started_by_torchrun()):
        return resolve_device(name)
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"device '{name}' with several processes: each of them uses its own",
            "--device cuda or cpu; CUDA_VISIBLE_DEVICES chooses among GPUs",
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    # torchrun sets it; other launchers may not, and then ranks count GPUs of one machine.
    local = int(os.environ.get("LOCAL_RANK", rank()))
    check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)))
    return torch.device("cuda", local)


def check_gpus(processes: int) -> None:
    """Raises ConfigError where this machine has fewer GPUs than `processes`."""
    found = torch.cuda.device_count()
    if processes > found:
        raise ConfigError(
            f"{processes} processes, but torch {torch.__version__} finds {found} CUDA GPUs here",
            f"start {found}, one per GPU, or choose --device cpu" if found else "--device cpu",
        )


def launch_identity() -> dict[str, str]:
    """What identifies the job of this process, also after torchrun has restarted the process."""
    parent = os.getppid()
    try:  # the clock tick in which the parent started, since process ids are reused
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        began = ""
    return {
        "agent": f"{socket.gethostname()}:{parent}:{began}",
        "run_id": os.environ.get("TORCHELASTIC_RUN_ID", "none"),
    }


def is_same_launch(earlier: dict[str, str]) -> bool:
    """Whether torchrun has started this process in place of the one that noted `earlier`.

    Where a machine joins or leaves, torchrun does not count a restart, but the agent is the same.
    After a failure, rank 0 may be on another machine with another agent, but the job's id is the
    same, where one was given.
    """
    now = launch_identity()
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    same_id = now["run_id"] == earlier.get("run_id") and now["run_id"] != "none"
    return now["agent"] == earlier.get("agent") or (restarted and same_id)
