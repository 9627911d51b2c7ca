"""The loggers of one run: which ones there are, and that none of them can end it.

The tables of the run folder are always written. TensorBoard is used where it is installed, other
services where they are asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass, field

from dino_core.config import TrainConfig
from dino_core.engine.events import Event, Warned
from dino_core.engine.loggers.base import Logger, Opening
from dino_core.engine.loggers.table import LOGGER_NAMES, LOGGERS, TABLES_ONLY
from dino_core.errors import ConfigError, DinoError
from dino_core.suggestions import nearest_or_all

_DEFAULT = "tensorboard"


def check_loggers(config: TrainConfig) -> None:
    """Raises ConfigError where a logger that was asked for is unknown or not installed."""
    for name in config.loggers or ():
        if name not in LOGGER_NAMES:
            hint = nearest_or_all(name, LOGGER_NAMES)
            raise ConfigError(f"train.loggers: unknown logger '{name}'", hint)
        if name != TABLES_ONLY and not _is_installed(name):
            kind = LOGGERS[name]
            raise ConfigError(
                f"--logger {name}: the package '{kind.package}' is not installed",
                f"pip install 'dino-detector[{kind.extra}]', or leave it out",
            )


def chosen_loggers(config: TrainConfig) -> tuple[str, ...]:
    """The services of a run: those that were asked for, else TensorBoard if it is installed."""
    if config.loggers is not None:
        return tuple(dict.fromkeys(name for name in config.loggers if name != TABLES_ONLY))
    return (_DEFAULT,) if _is_installed(_DEFAULT) else ()


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(LOGGERS[name].package) is not None


def open_loggers(opening: Opening) -> LoggerGroup:
    """Start the loggers of a run.

    Raises:
        DinoError: one that was asked for cannot start. TensorBoard by default only warns.
    """
    config, group = opening.planned.config, LoggerGroup()
    for name in chosen_loggers(config):
        try:
            group.members[name] = LOGGERS[name].open(opening)
        except Exception as error:
            if config.loggers is not None:
                group.close()
                hint = "check its settings, or leave it out of --logger"
                raise DinoError(f"--logger {name}: {_reason(error)}", hint) from error
            # Kept until the first event, because a logger cannot warn before there is a stream of
            # events.
            group.failures.append(_goodbye(name, error))
    return group


@dataclass
class LoggerGroup:
    """All loggers of a run, none of which can end it.

    Attributes:
        members: Name to logger.
        failures: What the next event must warn of.
    """

    members: dict[str, Logger] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def log(self, event: Event) -> list[Warned]:
        """Hand an event to all loggers. One that fails is dropped, with a warning."""
        # A copy, since loggers that fail are removed during the loop.
        for name, logger in list(self.members.items()):
            try:
                logger.log(event)
            except Exception as error:
                del self.members[name]
                self.failures.append(_goodbye(name, error))
                _close(logger)
        failures, self.failures = self.failures, []
        return [Warned(message, getattr(event, "step", 0)) for message in failures]

    def close(self) -> None:
        """Close all loggers, whatever happens in one of them."""
        members, self.members = self.members, {}
        for logger in members.values():
            _close(logger)


def _close(logger: Logger) -> None:
    with contextlib.suppress(Exception):
        logger.close()


def _goodbye(name: str, error: Exception) -> str:
    return f"{name}: {_reason(error)}; the run continues without it"


def _reason(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return error.message if isinstance(error, DinoError) else first
