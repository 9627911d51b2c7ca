"""The rules that choose a run's settings where nothing was asked for.

All their numbers are at the top, each with its source. A rule is a pure function that returns a
value and a short reason for people to read.
"""

from __future__ import annotations

import math

from dino_core.config import AugmentName, ClassLossName, FreezeName
from dino_core.engine.planning.facts import DataFacts, Machine, ModelFacts

# Models below this size use the numbers that dino-nano was tuned with.
SMALL_MODEL_PARAMETERS = 20_000_000

# Images per step: the published total batch (ALGORITHM 26; detrex and mmdet use it, too), and the
# one that dino-nano was trained with.
LARGE_IMAGES_PER_STEP = 16
SMALL_IMAGES_PER_STEP = 8
# On a small data set, steps have fewer images, so that a pass still has this many steps. Small
# models need fewer steps: on bccd, 4 images per step did a little better than 8 for the same number
# of images, but 8 did better in the same time, since every step has a cost of its own (RESULTS.md,
# "Fine-tuning").
LARGE_STEPS_PER_EPOCH, SMALL_STEPS_PER_EPOCH = 40, 10
# Below this number of images, the gradient would be mostly noise.
LEAST_IMAGES_PER_STEP = 4

# Learning rate: 6e-4 at 4 images was the best for fine-tuning dino-nano (RESULTS.md,
# "Fine-tuning"); 1e-4 at 16 images is the published one (ALGORITHM 26). For other numbers of images
# it is scaled by the square root of their ratio, which keeps the noise of Adam's steps (Granziol et
# al., arXiv 2006.09092; Malladi et al., arXiv 2205.10287).
SMALL_MODEL_LR, SMALL_MODEL_IMAGES = 6e-4, 4
LARGE_MODEL_LR, LARGE_MODEL_IMAGES = 1e-4, 16
# Learning rate of a trained backbone as a factor of the head's: the published one, and one that did
# better for dino-nano. A backbone with random weights learns at the head's rate.
LARGE_BACKBONE_LR_FACTOR = 0.1
SMALL_BACKBONE_LR_FACTOR = 0.5

# Class loss: small models learn faster where a query's score must express how well its box fits
# (RESULTS.md, "Fine-tuning": better on bccd and raccoon). Large models use the published loss.
SMALL_CLASS_LOSS: ClassLossName = "mal"

# Length of a run: about this many steps, within this range of epochs.
AIM_STEPS = 3000
MIN_EPOCHS, MAX_EPOCHS = 12, 100

# Steps until the full learning rate; `schedule.WARMUP_SHARE` limits them in short runs.
WARMUP_STEPS = 100
# Decay of the weight average, from the official config (`ema_decay`). It starts lower and grows
# (engine/ema.py), so that the average covers a ninth of the run so far and short runs need no rule.
EMA_DECAY = 0.9997

# Strong augmentation where an image is seen so often that the model memorizes it. On bccd it made
# no difference in 35 epochs (RESULTS.md, "Fine-tuning"); training dino-nano needed it after 15
# epochs of 4,727 images. In a run with a time limit, the number of epochs is not known in advance.
STRONG_FROM_EPOCHS = 50

# Input size: it grows where the median side of an object is below this. Small models gain up to
# about 40 px, 2.5 cells of dino-nano's finest feature map (RESULTS.md, "Which input size"). Large
# models, whose maps are twice as fine, were not measured.
SMALL_MODEL_OBJECT_PX, LARGE_MODEL_OBJECT_PX = 40.0, 12.0
# It grows by at most this factor, since the cost grows with its square, and never beyond the detail
# of the images on disk.
MOST_GROWTH = 2.0
SIZE_MULTIPLE = 32

# Loading processes for a GPU, which one thread cannot keep busy. On a CPU they would compete with
# the training step for the cores.
MOST_WORKERS = 8
# With fewer images, an epoch is shorter than the start of the processes is worth.
WORKERS_FROM_IMAGES = 500

# Spare queries over the most objects in an image, and the multiple to which they are rounded up:
# several queries compete for an object, so as many queries as objects would miss some.
QUERIES_PER_OBJECT, QUERIES_MULTIPLE = 1.5, 50

# Share of the working time that evaluation may take.
EVALUATION_SHARE = 0.08


def images_per_step(data: DataFacts, model: ModelFacts, machine: Machine) -> tuple[int, str]:
    """Images per optimizer step, over all processes."""
    least = min(LEAST_IMAGES_PER_STEP, data.images)
    most, steps, usual = LARGE_IMAGES_PER_STEP, LARGE_STEPS_PER_EPOCH, "the published total batch"
    if _is_small(model):
        most, steps, usual = SMALL_IMAGES_PER_STEP, SMALL_STEPS_PER_EPOCH, "as for dino-nano"
    fitting = data.images // steps
    # A power of two, so that it can be halved evenly where memory is short.
    wanted = max(2 ** int(math.log2(fitting)) if fitting else 1, least)
    if wanted >= most:
        images, why = most, usual
    else:
        images = wanted
        why = f"so that {data.images} images make {_steps(data.images // images)} per epoch"
    if machine.processes > images:
        return machine.processes, "one per process"
    # Every process has the same number of images, rounded up.
    each = -(-images // machine.processes)
    return each * machine.processes, why


def split(images: int, machine: Machine) -> tuple[int, int, str]:
    """Images per forward pass, passes per step, and why.

    Args:
        images: Images per step of each process.
        machine: Knows how many of them fit in memory.
    """
    batch, passes = images, 1
    while machine.fits is not None and batch > max(1, machine.fits):
        batch, passes = -(-batch // 2), passes * 2
    if passes > 1:
        return batch, passes, f"{images} images at a time do not fit in memory"
    return batch, passes, "all at a time" if images > 1 else "one at a time"


def lr(images: int, model: ModelFacts) -> tuple[float, str]:
    """Learning rate of the head, with two digits."""
    small = _is_small(model)
    rate, at = (
        (SMALL_MODEL_LR, SMALL_MODEL_IMAGES) if small else (LARGE_MODEL_LR, LARGE_MODEL_IMAGES)
    )
    # Two digits, so that the plan shows the very number that is used.
    value = float(f"{rate * math.sqrt(images / at):.1e}")
    source = "for small models" if small else "published"
    if images == at:
        return value, f"{source}, at {at} images per step"
    return value, f"{rate:g} at {at} images per step ({source}), times sqrt({images}/{at})"


def backbone_lr_factor(model: ModelFacts) -> tuple[float, str]:
    """Learning rate of the backbone as a factor of the head's."""
    if not model.trained:
        return 1.0, "the backbone starts from random weights"
    if _is_small(model):
        return SMALL_BACKBONE_LR_FACTOR, "measured, for small models"
    return LARGE_BACKBONE_LR_FACTOR, "published factor for a trained backbone"


def class_loss(model: ModelFacts) -> tuple[ClassLossName, str]:
    """Loss of the class scores."""
    if _is_small(model):
        return SMALL_CLASS_LOSS, "measured, for small models: scores express how well a box fits"
    return "focal", "published"


def _is_small(model: ModelFacts) -> bool:
    return model.parameters < SMALL_MODEL_PARAMETERS


def steps(steps_per_epoch: float, images: int) -> tuple[int, str]:
    """Optimizer steps of the run."""
    # Small data sets would be seen hundreds of times, large ones not even once.
    epochs = min(max(AIM_STEPS / steps_per_epoch, MIN_EPOCHS), MAX_EPOCHS)
    count = math.ceil(epochs * steps_per_epoch)
    return count, (
        f"{epochs:.0f} epochs of {images} images: about {AIM_STEPS} steps, within {MIN_EPOCHS} to "
        f"{MAX_EPOCHS} epochs"
    )


def augment(data: DataFacts, epochs: float | None) -> tuple[AugmentName, str]:
    """Strength of augmentation; `epochs` is None in a run with a time limit."""
    if epochs is None:
        return "default", "learns fastest, and time is the limit"
    if epochs >= STRONG_FROM_EPOCHS:
        return "strong", f"each image is seen {epochs:.0f} times"
    return "default", f"each of {data.images} images is seen only {epochs:.0f} times"


def image_size(data: DataFacts, model: ModelFacts) -> tuple[int, str]:
    """Long side of the input in pixels."""
    own = model.input_px
    median = f"the median object is {data.object_px:.0f} px"
    least = SMALL_MODEL_OBJECT_PX if _is_small(model) else LARGE_MODEL_OBJECT_PX
    wanted = least / max(data.object_px, 1e-6)
    growth = min(wanted, MOST_GROWTH, data.detail)
    # Batches are padded to multiples of 32 anyway, so other sizes would compute on padding.
    size = round(own * growth / SIZE_MULTIPLE) * SIZE_MULTIPLE
    if growth > 1.0 and size > own:
        times = (size / own) ** 2
        return size, f"{times:.1f} times the cost of the model's own {own}, where {median}"
    no_more = data.detail <= 1.0 < wanted
    reason = "the images hold no more detail" if no_more else f"{median} there"
    return own, f"the model's own; {reason}"


def freeze() -> tuple[FreezeName, str]:
    """The part that stays as it is: none, since the backbone learns more slowly anyway."""
    return "none", "every part learns, the backbone at its own learning rate"


def workers(data: DataFacts, machine: Machine) -> tuple[int, str]:
    """Number of processes that load images; 0 is a thread."""
    if machine.device != "cuda":
        return 0, "a thread; processes would compete with the step for the cores"
    if data.images < WORKERS_FROM_IMAGES:
        return 0, f"a thread; too few images ({data.images}) to start processes for"
    return min(MOST_WORKERS, machine.cores), f"{machine.cores} cores for this process"


def suggested_queries(most_objects: int, num_queries: int) -> int | None:
    """Queries that suffice for the most objects in one image; None where the model has enough."""
    if most_objects <= num_queries:
        return None
    return math.ceil(QUERIES_PER_OBJECT * most_objects / QUERIES_MULTIPLE) * QUERIES_MULTIPLE


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"
