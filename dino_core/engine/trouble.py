"""What a run does when memory is short, the loss diverges, or images cannot be read."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence

from dino_core.data.batching import Batch
from dino_core.engine.compiling import is_compiler_error
from dino_core.engine.events import Event, RolledBack, Warned
from dino_core.engine.parallel.collectives import gather_texts, is_distributed
from dino_core.engine.run import Run
from dino_core.engine.sentinel import BAD_STEPS, MAX_ROLLBACKS
from dino_core.engine.step import OutOfMemoryTogether, StepResult
from dino_core.errors import DataError, DinoError, is_out_of_memory


def gradients_in_memory(
    run: Run, batches: Sequence[Batch], progress: float
) -> Generator[Event, None, StepResult]:
    """The gradients of a step, computed again in smaller parts wherever memory is short.

    Raises:
        DinoError: a single image at a time does not fit, or torch.compile failed.
    """
    # Each turn halves what goes through at a time, down to single images.
    while True:
        try:
            return run.stepper.gradients(batches, run.counters.step, progress)
        except Exception as error:
            if is_compiler_error(error):
                raise DinoError(
                    # The first line names the failing operation; the rest is the compiler's own
                    # traceback.
                    f"torch.compile failed: {str(error).strip().splitlines()[0]}",
                    f"dino train --resume {run.folder.root} --set train.compile=false",
                ) from error
            if not is_out_of_memory(error):
                raise
            # With several processes, only an error that all of them raised can be handled: a
            # process that was alone with it would repeat the step without the others.
            together = not is_distributed() or isinstance(error, OutOfMemoryTogether)
        # Outside of the `except` block, where the error would keep the tensors of the pass alive.
        if not (together and run.stepper.halve(batches)):
            run.save_interrupted()
            raise DinoError(
                f"out of memory with {-(-run.config.batch // run.stepper.parts)} images at a time",
                "a smaller --batch or --image-size, or --set train.gradient_checkpointing=true",
            )
        yield Warned(
            f"out of memory: batches of {run.config.batch} go through in {run.stepper.parts} "
            "parts from here on; steps and results stay those of whole batches",
            run.counters.step,
        )


def roll_back(run: Run, reason: str) -> RolledBack:
    """Return to the last checkpoint and continue more carefully.

    Raises:
        DinoError: that has been done `MAX_ROLLBACKS` times already.
    """
    if run.counters.sentinel.rollbacks >= MAX_ROLLBACKS:
        raise DinoError(
            f"{reason}, although the run went back to its checkpoint {MAX_ROLLBACKS} times",
            "train again with a lower --lr and --dtype fp32, and see what `dino check` finds",
        )
    from_step = run.counters.step
    run.roll_back()
    # `roll_back` has counted this return already, so the scale is the lowered one.
    lr = run.config.lr * run.stepper.lr_scale
    return RolledBack(run.counters.step, from_step, reason, lr)


def check_not_diverged(run: Run) -> None:
    """Raises DinoError where the weights at the end of a run must not be shipped."""
    if run.counters.sentinel.high or not run.saver.weights_finite():
        raise DinoError(
            "the run ended with weights that are not finite or a loss that is far too high",
            f"lower --lr, then: dino train --resume {run.folder.root}",
        )


def newly_unreadable(run: Run, batches: Sequence[Batch]) -> dict[str, str]:
    """Images of these batches that some process could not read, and that were not known yet."""
    unread = {u.path: u.message for batch in batches for u in batch.unreadable}
    known = run.counters.unreadable
    return {path: what for path, what in merged(run, unread).items() if path not in known}


def merged(run: Run, own: Mapping[str, str]) -> dict[str, str]:
    """The findings of all processes, the same in each of them."""
    texts = gather_texts(json.dumps(own), run.stepper.device)
    # Sent as JSON text, since collectives exchange tensors only.
    return {path: what for text in texts for path, what in json.loads(text).items()}


def check_readable(run: Run) -> None:
    """Raises DataError where so many images are unreadable that training makes no sense."""
    records, counters = run.dataset.splits["train"], run.counters
    failed = sum(str(record.path) in counters.unreadable for record in records)
    # A few bad files are an accident of the data. Half of them, or ten steps without a single
    # image, mean that a disk is gone.
    if 2 * failed <= len(records) and counters.sentinel.unread < BAD_STEPS:
        return
    example = next(reversed(counters.unreadable.values()))
    raise DataError(
        f"{failed} of {len(records)} training images cannot be read, the last one: {example}",
        f"check that the disk is there, then: dino train --resume {run.folder.root}",
    )
