"""Logs a run to MLflow: to the server or the folder that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import re
import time
from typing import Any

from dino_core.engine.events import Event, PicturesDrawn, RunFinished
from dino_core.engine.loggers.base import Opening, hyper_parameters, remembered_id, scalars
from dino_core.errors import DinoError
from dino_core.network import is_offline

_EXPERIMENT = "dino"
_METRICS_A_CALL, _PARAMS_A_CALL, _PARAM_LETTERS = 1000, 100, 500  # MLflow's limits of log_batch
_REMOTE = ("http:", "https:", "databricks", "postgresql", "mysql", "mssql")
_FOREIGN = re.compile(r"[^\w\-./ ]")  # characters that a metric's name may not contain


class MlflowLogger:
    """One MLflow run, which a resumed run continues."""

    def __init__(self, opening: Opening) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        uri = str(mlflow.get_tracking_uri())
        if is_offline() and uri.startswith(_REMOTE):
            raise DinoError(f"DINO_OFFLINE forbids the network, and MLflow logs to {uri}")
        self._mlflow: Any = mlflow
        self._client: Any = mlflow.MlflowClient()
        self._folder = opening.folder
        self._step = opening.planned.resumed_step
        self._status = "KILLED"
        self._id, new = remembered_id(
            opening.folder, "mlflow", lambda: self._create(opening.folder.root.name)
        )
        if new:
            self._log_parameters(hyper_parameters(opening))
        else:
            self._client.update_run(self._id, status="RUNNING")

    def log(self, event: Event) -> None:
        """Take one event."""
        self._step = getattr(event, "step", self._step)
        now = int(1000 * time.time())
        metric = self._mlflow.entities.Metric
        metrics = [
            metric(_FOREIGN.sub("_", name), value, now, self._step)
            for name, value in scalars(event).items()
        ]
        for start in range(0, len(metrics), _METRICS_A_CALL):
            self._client.log_batch(self._id, metrics=metrics[start : start + _METRICS_A_CALL])
        if isinstance(event, PicturesDrawn):
            for path in event.paths:
                place = path.parent.relative_to(self._folder.root).as_posix()
                self._client.log_artifact(self._id, str(path), place)
        if isinstance(event, RunFinished):
            self._status = "FINISHED"

    def close(self) -> None:
        """Report whether the run finished."""
        self._client.set_terminated(self._id, self._status)

    def _create(self, name: str) -> str:
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = self._client.get_experiment_by_name(wanted)
        place = experiment.experiment_id if experiment else self._client.create_experiment(wanted)
        return str(self._client.create_run(place, run_name=name).info.run_id)

    def _log_parameters(self, values: dict[str, Any]) -> None:
        param = self._mlflow.entities.Param
        params = [param(name, str(v)[:_PARAM_LETTERS]) for name, v in values.items()]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self._client.log_batch(self._id, params=params[start : start + _PARAMS_A_CALL])
