"""Training in several processes: starts them on this machine, and lets one of them speak."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dino_cli import errors, render
from dino_core.errors import ConfigError, DinoError
from dino_core.process import started_by_torchrun, usable_cores

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

# torchrun's default of 30 seconds may end a process in the middle of writing a large state.
_SHUTDOWN_S = "60"  # a stopping run finishes its step and writes its state within this time


def launch(devices: int, device: str, argv: Sequence[str]) -> int:
    """Start `dino` with `argv` in `devices` processes here, as torchrun does; returns its code.

    Raises: ConfigError where the machine has fewer devices.
    """
    import logging

    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from dino_core.engine.parallel.group import check_gpus

    # Asked before anything starts: otherwise each process would fail with an error of its own.
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        check_gpus(devices)
    elif "OMP_NUM_THREADS" not in os.environ:  # else each process would use every core
        os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // devices))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SHUTDOWN_S)
    # Its summary of failed processes repeats what they have printed already.
    logging.getLogger("torch.distributed").setLevel(
        logging.CRITICAL
    )  # the processes report their errors themselves
    config = LaunchConfig(
        # One machine, with a rendezvous on a free port (0), so that several runs can be started
        # side by side. A failed run is not restarted: its error would only come again.
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        # -u, so that lines appear at once where the output is no terminal.
        elastic_launch(config, sys.executable)("-u", "-m", "dino_cli", *argv)
    except SignalException:
        return errors.INTERRUPTED
    except ChildFailedError as error:
        # A negative code is the number of a signal. The processes that were ended by torchrun
        # because of another one's failure have such codes as well, hence the search for a positive
        # one.
        codes = [failure.exitcode for failure in error.failures.values()]
        if all(code < 0 for code in codes):  # all of them were killed, so none could report it
            render.note(f"error: the processes were killed by signal {-codes[0]}")
        return next((code for code in codes if code > 0), errors.FAILED)
    return 0


@contextlib.contextmanager
def one_of_several(device: str) -> Iterator[None]:
    """Join the other processes where torchrun started this one; otherwise do nothing.

    Only rank 0 prints. An error that ends all processes is printed by the first that meets it.
    """
    if not started_by_torchrun():
        yield
        return
    from dino_core.engine.parallel.collectives import rank
    from dino_core.engine.parallel.group import process_group

    with process_group(device) as store:
        try:
            # Every process runs the whole command, so without this each line would appear once per
            # process.
            if rank() == 0:
                yield
            else:
                with (
                    open(os.devnull, "w") as nowhere,
                    contextlib.redirect_stderr(nowhere),
                    contextlib.redirect_stdout(nowhere),
                ):
                    yield
        # An exit with a code of its own is no error to report, e.g. a gate that was not met.
        except typer.Exit:
            raise
        except BaseException as error:
            # The first process to fail makes the collective operations of the others fail, too.
            # Their errors are only consequences.
            error = _explained(error)
            code = _reported_by_another(store, error)  # before the others see this one end
            if code is None:
                # Wrapped, so that `app.run` prints it although this process is one of several.
                raise Reported(error) from error
            raise typer.Exit(code) from None


class Reported(Exception):
    """An error that this process, of several, has to print."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def reported_by_another(error: BaseException) -> int | None:
    """The exit code where another process prints the error; None where this one has to.

    This is for errors before the processes have joined, such as a wrong option, which all meet.
    """
    if not started_by_torchrun():
        return None
    from dino_core.engine.parallel.group import torchruns_store

    store = torchruns_store()
    return None if store is None else _reported_by_another(store, error)


def _reported_by_another(store: Store, error: BaseException) -> int | None:
    code = errors.exit_code(error)
    try:
        # The store's counter is atomic, so exactly one process sees 1, whichever comes first.
        if store.add("dino/reported", 1) == 1:
            store.set("dino/code", str(code))
            return None
        # Waits until the first process has set it.
        return int(store.get("dino/code"))
    except RuntimeError:  # the store is gone with its machine
        return None


def _explained(error: BaseException) -> BaseException:
    """The cause of an error: a collective operation fails where another process has ended."""
    from dino_core.engine.parallel.collectives import is_lost_peer

    if not is_lost_peer(error):
        return error
    return DinoError(
        "another process of this run is gone (killed, or its machine is lost)",
        "resume with dino train --resume RUN; torchrun --max-restarts 3 does so by itself",
    )


def decided_once(decide: Callable[[], str], device: str) -> str:
    """What rank 0 decides, in all processes."""
    if not started_by_torchrun():
        return decide()
    from dino_core.engine.parallel.collectives import gather_texts, rank
    from dino_core.engine.parallel.group import device_of_process

    # The decision may have side effects, such as creating a folder, which must happen once.
    own = decide() if rank() == 0 else ""
    return gather_texts(own, device_of_process(device))[0]


def restarted_run(out: Path | None) -> str:
    """The folder of the run that this process was training before torchrun restarted it, or ""."""
    if not started_by_torchrun():
        return ""
    from dino_core.engine.parallel.group import is_same_launch
    from dino_core.engine.run_folder import RunFolder

    # Without --out the folder was chosen by the process that is gone, so it has to be found again.
    candidates = [out] if out is not None else sorted(Path("runs").glob("train*"))
    for path in candidates:
        folder = RunFolder(path)
        # A run of another launch is never resumed by accident, and one without a state cannot be.
        if is_same_launch(folder.launched_as()) and folder.state.is_file():
            return str(path)
    return ""


def check_devices(devices: int) -> None:
    """Raises ConfigError where torchrun started another number of processes than `devices`."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    if local != str(devices):
        raise ConfigError(
            f"--devices {devices}, but torchrun started {local} processes here",
            "torchrun's --nproc-per-node decides; leave out --devices",
        )
