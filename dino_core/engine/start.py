"""What a run starts from: a network for the data's classes, its weights and their origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dino_core.checkpoints.class_names import parse_aliases
from dino_core.checkpoints.io import Checkpoint
from dino_core.checkpoints.surgery import TransferReport, transfer
from dino_core.checkpoints.zoo import history, load, resolve
from dino_core.config import ModelConfig, PreprocessConfig
from dino_core.detections import ClassMap
from dino_core.errors import ConfigError
from dino_core.metadata import CheckpointMeta
from dino_core.models.dino import Dino
from dino_core.processing.preprocess import at_image_size
from dino_core.provenance import Ancestor
from dino_core.variants import VARIANTS

FROM_SCRATCH = "none"
"""As `weights`: random initialization."""


@dataclass(frozen=True)
class Start:
    """A network that is ready to train.

    Attributes:
        model: The network with its starting weights.
        preprocess: How an image becomes its input.
        report: What was copied from a model file; None from scratch and on resume.
        origin: What a person typed: a name, a file, or "none".
        history: The model files from which the weights descend, oldest first (`zoo.history`).
    """

    model: Dino
    preprocess: PreprocessConfig
    report: TransferReport | None
    origin: str
    history: tuple[Ancestor, ...] = ()

    def at_size(self, image_size: int | None) -> Start:
        """The same start with an input whose long side is `image_size`; None changes nothing."""
        return replace(self, preprocess=at_image_size(self.preprocess, image_size))


def start_from(
    name: str,
    weights: str | Path | None,
    classes: ClassMap,
    model_config: ModelConfig | None = None,
    class_aliases: Sequence[str] = (),
) -> Start:
    """Build the network for `classes` and give it its starting weights, at its own input size.

    Args:
        name: A variant's name or a model file.
        weights: A model file, "none" for random weights, or None for those that `name` stands for.
        classes: The data's classes.
        model_config: Replaces the network's settings; its number of classes is ignored.
        class_aliases: `NEW=OLD` copies the rows of the model's class OLD to the data's class NEW.

    Raises:
        CheckpointError, ConfigError: the model or its weights do not exist or do not fit.
    """
    path, source = Path(), None
    if str(weights) != FROM_SCRATCH:
        path = resolve(str(weights) if weights is not None else name)
        source = load(path)
    base, preprocess = _own_settings(name, weights, source)
    model = Dino(replace(model_config or base, num_classes=len(classes)))
    # Training resizes with antialiasing, so prediction with the new weights must do the same.
    preprocess = replace(preprocess, interpolation="antialiased")
    if source is None:
        if class_aliases:
            raise ConfigError(
                "class aliases need starting weights, whose classes they name",
                "leave out --weights none, or --class-alias",
            )
        return Start(model, preprocess, None, FROM_SCRATCH)
    old = source.meta.classes
    aliases = parse_aliases(class_aliases, classes.names, old.names)
    report = transfer(model, source.state_dict, old, classes, aliases)
    return Start(model, preprocess, report, str(weights or name), history(path, source.meta))


def resumed_start(meta: CheckpointMeta) -> Start:
    """The network of a saved state. Its weights come with the rest of the state."""
    origin = meta.provenance.start or "resume"
    return Start(Dino(meta.model), meta.preprocess, None, origin, meta.provenance.history)


def _own_settings(
    name: str, weights: str | Path | None, source: Checkpoint | None
) -> tuple[ModelConfig, PreprocessConfig]:
    """Network and input that `name` stands for, given its weights where there are some."""
    if source is not None and weights is None:
        return source.meta.model, source.meta.preprocess
    if name not in VARIANTS:
        named = load(name).meta
        return named.model, named.preprocess
    variant = VARIANTS[name]
    if source is not None and source.meta.variant == name:
        # An imported file may differ from its variant, e.g. in its heads or in its positions.
        return source.meta.model, variant.preprocess
    return variant.model, variant.preprocess
