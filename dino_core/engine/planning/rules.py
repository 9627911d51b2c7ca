"""The rules by which a run's settings are chosen where nobody gave them.

All their numbers stand at the top, each with its source. A rule is a pure function that returns the
value and, in a few words for people, why.
"""

from __future__ import annotations

import math

from dino_core.config import AugmentName, ClassLossName, FreezeName
from dino_core.engine.planning.facts import DataFacts, Machine, ModelFacts

# Models under this size learn by the numbers that dino-nano was tuned with.
SMALL_MODEL_PARAMETERS = 20_000_000

# Images a step: the published total batch (ALGORITHM 26; detrex and mmdet use it too), and that
# which dino-nano was trained with.
LARGE_IMAGES_A_STEP = 16
SMALL_IMAGES_A_STEP = 8
# A small set takes smaller steps, so that a pass over it still is this many of them. Small models
# need fewer: with as many images seen, steps of 4 did a little better than steps of 8 on bccd, but
# with as many minutes steps of 8 did (RESULTS.md, "Fine-tuning"), as each has a cost of its own ...
LARGE_STEPS_AN_EPOCH, SMALL_STEPS_AN_EPOCH = 40, 10
# ... but none so small that the gradient is mostly noise.
LEAST_IMAGES_A_STEP = 4

# Learning rate: 6e-4 at 4 images is what fine-tuning dino-nano did best with (RESULTS.md,
# "Fine-tuning"), 1e-4 at 16 is the published one (ALGORITHM 26). Other sizes: times the square
# root of the ratio, which keeps the noise of Adam's steps (Granziol et al., arXiv 2006.09092;
# Malladi et al., arXiv 2205.10287).
SMALL_MODEL_LR, SMALL_MODEL_IMAGES = 6e-4, 4
LARGE_MODEL_LR, LARGE_MODEL_IMAGES = 1e-4, 16
# A backbone that was trained before: the published share, and what did better for dino-nano. A
# random one learns like the rest.
LARGE_BACKBONE_LR_FACTOR = 0.1
SMALL_BACKBONE_LR_FACTOR = 0.5

# The class loss: small models learn faster where a query's score is to say how well its box fits
# (RESULTS.md, "Fine-tuning": better on bccd and raccoon); large ones as published.
SMALL_CLASS_LOSS: ClassLossName = "mal"

# Length: so many steps, but within so many passes.
AIM_STEPS = 3000
MIN_EPOCHS, MAX_EPOCHS = 12, 100

# Steps until the full rate; `schedule.WARMUP_SHARE` keeps it within a tenth of a short run.
WARMUP_STEPS = 100
# Memory of the average: official config, `ema_decay`. It grows with the steps (engine/ema.py), so
# that it is at most a ninth of the run so far, and needs no rule for short runs.
EMA_DECAY = 0.9997

# Strong augmentation where an image is seen so often that it is learned by heart. bccd did no
# better with it in 35 passes (RESULTS.md, "Fine-tuning"); the training of dino-nano needed it after
# 15 passes of 4,727 images. How many passes fit into given minutes is not known yet then.
STRONG_FROM_EPOCHS = 50

# Input size: objects whose side is under this in the median get a larger input. Small models gain
# until about 40 px, 2.5 cells of dino-nano's finest map (RESULTS.md, "Which input size"); large
# ones, whose maps are twice as fine, were not measured ...
SMALL_MODEL_OBJECT_PX, LARGE_MODEL_OBJECT_PX = 40.0, 12.0
# ... by at most this factor (attention and backbone cost its square), and not beyond the images'
# own detail, in multiples of this.
MOST_GROWTH = 2.0
SIZE_MULTIPLE = 32

# With fewer training images than this the backbone stays as it is; 0: never by itself. Its rate is
# lower already, and the first stages are frozen in every variant.
FREEZE_BELOW_IMAGES = 0

# Loading processes for a GPU, which outruns one thread; on a CPU they would compete with the step.
MOST_WORKERS = 8
# A small set is not worth the seconds that each process takes to start.
WORKERS_FROM_IMAGES = 500

# Share of the time that evaluation may take.
EVALUATION_SHARE = 0.08


def images_per_step(data: DataFacts, model: ModelFacts, machine: Machine) -> tuple[int, str]:
    """The images of all processes that make one step."""
    least = min(LEAST_IMAGES_A_STEP, data.images)
    most, steps, usual = LARGE_IMAGES_A_STEP, LARGE_STEPS_AN_EPOCH, "the published total batch"
    if _is_small(model):
        most, steps, usual = SMALL_IMAGES_A_STEP, SMALL_STEPS_AN_EPOCH, "as dino-nano's"
    fitting = data.images // steps
    wanted = max(2 ** int(math.log2(fitting)) if fitting else 1, least)
    if wanted >= most:
        images, why = most, usual
    else:
        images = wanted
        why = f"{data.images} images still make {data.images // images} steps an epoch"
    if machine.processes > images:
        return machine.processes, "one of each process"
    each = -(-images // machine.processes)
    return each * machine.processes, why


def split(images: int, machine: Machine) -> tuple[int, int, str]:
    """Images a forward pass, passes a step, and why, for so many images a process and step."""
    batch, passes = images, 1
    while machine.fits is not None and batch > max(1, machine.fits):
        batch, passes = -(-batch // 2), passes * 2
    if passes > 1:
        return batch, passes, f"{images} at a time do not fit in memory"
    return batch, passes, "all at a time" if images > 1 else "one at a time"


def lr(images: int, model: ModelFacts) -> tuple[float, str]:
    """The rate of the head, two digits of it."""
    small = _is_small(model)
    rate, at = (
        (SMALL_MODEL_LR, SMALL_MODEL_IMAGES) if small else (LARGE_MODEL_LR, LARGE_MODEL_IMAGES)
    )
    value = float(f"{rate * math.sqrt(images / at):.1e}")
    source = "for small models" if small else "published"
    if images == at:
        return value, f"{source}, at {at} images a step"
    return value, f"{rate:g} at {at} images a step ({source}), times sqrt({images}/{at})"


def backbone_lr_factor(model: ModelFacts) -> tuple[float, str]:
    if not model.trained:
        return 1.0, "the backbone starts from random weights"
    if _is_small(model):
        return SMALL_BACKBONE_LR_FACTOR, "measured, for small models"
    return LARGE_BACKBONE_LR_FACTOR, "published share for a trained backbone"


def class_loss(model: ModelFacts) -> tuple[ClassLossName, str]:
    if _is_small(model):
        return SMALL_CLASS_LOSS, "measured, for small models: scores learn how well a box fits"
    return "focal", "published"


def _is_small(model: ModelFacts) -> bool:
    return model.parameters < SMALL_MODEL_PARAMETERS


def steps(steps_per_epoch: float, images: int) -> tuple[int, str]:
    """The length of a run that nobody gave one."""
    epochs = min(max(AIM_STEPS / steps_per_epoch, MIN_EPOCHS), MAX_EPOCHS)
    count = math.ceil(epochs * steps_per_epoch)
    return count, (
        f"{epochs:.0f} epochs of {images} images: about {AIM_STEPS} steps, within {MIN_EPOCHS} to "
        f"{MAX_EPOCHS} epochs"
    )


def augment(data: DataFacts, epochs: float | None) -> tuple[AugmentName, str]:
    """How much the images are changed; `epochs` is None where the clock decides."""
    if epochs is None:
        return "default", "learns fastest, and the clock is the limit"
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
    size = round(own * growth / SIZE_MULTIPLE) * SIZE_MULTIPLE
    if growth > 1.0 and size > own:
        times = (size / own) ** 2
        return size, f"{times:.1f} times the work of the model's own {own}, where {median}"
    no_more = data.detail <= 1.0 < wanted
    reason = "the images hold no more detail" if no_more else f"{median} there"
    return own, f"the model's own; {reason}"


def freeze(data: DataFacts, model: ModelFacts) -> tuple[FreezeName, str]:
    if model.trained and data.images < FREEZE_BELOW_IMAGES:
        return "backbone", f"{data.images} images are too few to adapt it"
    return "none", "every part learns, the backbone at its own rate"


def workers(data: DataFacts, machine: Machine) -> tuple[int, str]:
    """Processes that load images."""
    if machine.device != "cuda":
        return 0, "a thread; processes would compete with the step for the cores"
    if data.images < WORKERS_FROM_IMAGES:
        return 0, f"a thread; {data.images} images are not worth the start of processes"
    return min(MOST_WORKERS, machine.cores), f"{machine.cores} cores for this process"
