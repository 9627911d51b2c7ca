"""Becoming one of several processes that train together, as `torchrun` started them."""

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
"""The others wait so long for one process: it may be reading a large data set or writing a large
state, and a hang still ends before a night is lost."""


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[Store]:
    """Join the processes that torchrun started: NCCL between GPUs, gloo between CPUs.

    After success all leave together; after an error this one leaves at once, and the others'
    operations fail or are ended by torchrun.

    Args:
        device: "auto", "cpu" or "cuda": what each process computes on.

    Yields: the store that the processes share.

    Raises:
        ConfigError: there are fewer GPUs than processes here, or the device is one in particular.
    """
    store, own_rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    store = PrefixStore(_attempt(), store)
    where = device_of_process(device)
    cuda = where.type == "cuda"
    if cuda:
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
        dist.barrier()  # one that leaves earlier would end the others' operations
    finally:
        dist.destroy_process_group()


def torchruns_store() -> Store | None:
    """The store that the processes share before they are a group; None where torchrun has none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return PrefixStore(_attempt(), TCPStore(*place, timeout=timedelta(seconds=30)))
    except RuntimeError:  # it is gone, or was never there
        return None


def _attempt() -> str:
    """The part of torchrun's store for these processes: it still holds what earlier ones wrote."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return f"attempt {count} of {os.environ['WORLD_SIZE']}"


def device_of_process(name: str) -> torch.device:
    """The device of this process: of several, each one's own GPU. Raises ConfigError."""
    if not (is_distributed() or started_by_torchrun()):
        return resolve_device(name)
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"device '{name}' with several processes: each takes its own",
            "--device cuda or cpu; CUDA_VISIBLE_DEVICES chooses among GPUs",
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", rank()))
    check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)))
    return torch.device("cuda", local)


def check_gpus(processes: int) -> None:
    """Raises ConfigError where this machine has fewer GPUs than `processes`."""
    found = torch.cuda.device_count()
    if processes > found:
        raise ConfigError(
            f"{processes} processes, but torch {torch.__version__} sees {found} CUDA GPUs here",
            f"start {found}, one a GPU, or choose --device cpu" if found else "--device cpu",
        )


def launch_identity() -> dict[str, str]:
    """What tells the job of this process from others, also after torchrun has restarted it."""
    parent = os.getppid()
    try:  # in which clock tick the parent began: process numbers are used again
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        began = ""
    return {
        "agent": f"{socket.gethostname()}:{parent}:{began}",
        "run_id": os.environ.get("TORCHELASTIC_RUN_ID", "none"),
    }


def is_same_launch(earlier: dict[str, str]) -> bool:
    """Whether torchrun has started this process in place of the one that was `earlier`.

    Where a machine joins or leaves, torchrun does not count a restart: the same agent tells it.
    After a failure process 0 may be on another machine: the job's id tells it, where one was given.
    """
    now = launch_identity()
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    same_id = now["run_id"] == earlier.get("run_id") and now["run_id"] != "none"
    return now["agent"] == earlier.get("agent") or (restarted and same_id)
