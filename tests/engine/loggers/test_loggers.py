"""What TensorBoard, MLflow and W&B have after real tiny runs, read back with their own readers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dino_core.config import TrainConfig
from dino_core.data.records import DatasetIndex
from dino_core.engine.events import Event, RolledBack, RunPlanned, StepDone, Warned
from dino_core.engine.fit import run_events
from dino_core.engine.loggers.group import LoggerGroup, chosen_loggers
from dino_core.engine.loggers.table import LOGGERS
from dino_core.engine.request import RunRequest
from dino_core.errors import ConfigError

RECIPE = TrainConfig(
    steps=4, batch=2, log_every_steps=1, dtype="fp32", device="cpu", augment="none",
    loggers=("tensorboard",), plots=False,
)  # fmt: skip


def tensorboard(out: Path) -> Any:
    """TensorBoard's own view of the run, with its handling of restarts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return seen.Reload()


def rows(out: Path, event: str) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


def test_tensorboard_holds_what_the_tables_hold(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    out = tmp_path / "run"
    list(run_events(RunRequest(replace(RECIPE, plots=True), data, out, model=start)))
    seen = tensorboard(out)
    loss = seen.Scalars("loss/total")
    assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in loss] == [
        (row["step"], row["loss"]) for row in rows(out, "step")
    ]
    assert [e.value for e in seen.Scalars("train/lr")] == pytest.approx(
        [row["lr"] for row in rows(out, "step")]
    )
    evaluations = rows(out, "evaluation")
    assert [e.value for e in seen.Scalars("val/ap50")] == pytest.approx(
        [row["ap50"] for row in evaluations]
    )
    assert {"val_ap/square", "val_ap/disc", "speed/memory_mb"} <= set(seen.Tags()["scalars"])
    assert {"plots/labels", "plots/pr", "samples/0001"} <= set(seen.Tags()["images"])
    picture = seen.Images("plots/labels")[-1]
    assert picture.encoded_image_string == (out / "plots" / "labels.png").read_bytes()
    plugin = seen.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert plugin.plugin_name == "hparams" and b"dino-tiny" in plugin.content
    assert not list(out.glob("1*"))  # `add_hparams` would have made another run


def test_tensorboard_goes_on_after_a_resume_without_double_steps(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    out = tmp_path / "run"
    recipe = replace(RECIPE, checkpoint_every_steps=2)
    events = run_events(RunRequest(recipe, data, out, model=start))
    for event in events:
        if isinstance(event, StepDone) and event.step == 3:
            kept = {p: p.read_bytes() for p in (out / "state").iterdir()}
            break
    events.close()  # saves step 3
    for path, content in kept.items():
        path.write_bytes(content)  # a kill -9 would have left the state of step 2
    list(run_events(RunRequest(recipe, data, out, model=start, resume=True)))
    assert len(list((out / "tensorboard").iterdir())) == 2
    assert [e.step for e in tensorboard(out).Scalars("loss/total")] == [1, 2, 3, 4]


def test_tensorboard_forgets_steps_that_were_rolled_back(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    from dino_core.engine.loggers.base import Opening
    from dino_core.engine.loggers.tensorboard import TensorBoardLogger
    from dino_core.engine.run_folder import RunFolder

    planned = next(run_events(RunRequest(RECIPE, data, tmp_path / "run", model=start)))
    assert isinstance(planned, RunPlanned)
    opening = Opening(planned, RunFolder(tmp_path / "run"), data.classes.names, "data")
    logger = TensorBoardLogger(opening)

    def step(number: int, loss: float) -> StepDone:
        return StepDone(number, 9, 0, 0.1, {"total": loss}, 1e-4, 1.0, 1.0, 1.0, 1.0)

    for number in (1, 2, 3, 4):
        logger.log(step(number, 1.0))
    logger.log(RolledBack(2, 4, "the loss explodes", 1e-4))
    for number in (3, 4, 5):
        logger.log(step(number, 2.0))
    logger.close()
    seen = tensorboard(tmp_path / "run").Scalars("loss/total")
    assert [(e.step, e.value) for e in seen] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]


def test_choice_of_loggers() -> None:
    assert chosen_loggers(TrainConfig()) == ("tensorboard",)  # the tests' extra has it
    assert chosen_loggers(TrainConfig(loggers=("csv",))) == ()
    assert chosen_loggers(TrainConfig(loggers=("tensorboard", "csv", "mlflow"))) == (
        "tensorboard",
        "mlflow",
    )


def test_an_unknown_logger_fails_before_anything_is_written(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    recipe = replace(RECIPE, loggers=("tensorboard", "mlflov"))
    with pytest.raises(ConfigError, match="unknown logger 'mlflov'") as caught:
        next(run_events(RunRequest(recipe, data, tmp_path / "run", model=start)))
    assert caught.value.hint == "did you mean 'mlflow'?"
    assert not (tmp_path / "run").exists()


def test_every_logger_has_an_extra_that_installs_its_package() -> None:
    """As pyproject.toml declares them; the package's requirements are what pip would install."""
    requirements = importlib.metadata.requires("dino-detector") or []
    for name, kind in LOGGERS.items():
        wanted = [r for r in requirements if f'extra == "{kind.extra}"' in r]
        assert any(r.startswith(kind.package) for r in wanted), (name, wanted)


def test_the_table_imports_no_torch() -> None:
    """The command line reads its help from it, and must answer at once."""
    code = (
        "import sys; from dino_core.engine.loggers.table import LOGGER_NAMES\n"
        "assert not {'torch', 'torchvision', 'matplotlib', *LOGGER_NAMES[1:]} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_fails_before_anything_is_written(
    name: str, tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    recipe = replace(RECIPE, loggers=("csv", name))
    with pytest.raises(ConfigError, match=name) as caught:
        next(run_events(RunRequest(recipe, data, tmp_path / "run", model=start)))
    assert f"dino-detector[{name}]" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_logger_that_cannot_write_ends_itself_and_not_the_run(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    out = tmp_path / "run"
    recipe = replace(RECIPE, loggers=None)  # TensorBoard by default: nobody asked for it
    events: list[Event] = []
    for event in run_events(RunRequest(recipe, data, out, model=start)):
        if not events:
            out.mkdir()
            (out / "tensorboard").write_text("a file in the way")
        events.append(event)
    warned = [e for e in events if isinstance(e, Warned)]
    assert len(warned) == 1 and "tensorboard" in warned[0].message
    assert len(rows(out, "step")) == 4


def test_a_group_lets_go_of_a_failing_logger() -> None:
    class Failing:
        closed = 0

        def log(self, event: Event) -> None:
            raise OSError("no space left")

        def close(self) -> None:
            Failing.closed += 1

    group = LoggerGroup({"failing": Failing()})
    (warning,) = group.log(Warned("anything", 7))
    assert warning.step == 7 and "failing: no space left" in warning.message
    assert group.log(Warned("anything", 8)) == []
    assert Failing.closed == 1


def test_mlflow_holds_the_run_and_its_resume(
    tmp_path: Path, data: DatasetIndex, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("DINO_OFFLINE", "1")
    out = tmp_path / "run"
    recipe = replace(RECIPE, loggers=("mlflow",), plots=True)
    events = run_events(RunRequest(recipe, data, out, model=start))
    for event in events:
        if isinstance(event, StepDone) and event.step == 2:
            break
    events.close()
    list(run_events(RunRequest(recipe, data, out, model=start, resume=True)))
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("dino")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert (
        run.data.params["variant"] == "dino-tiny" and run.data.params["loss.weight_bbox"] == "5.0"
    )
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [m.step for m in history] == [1, 2, 3, 4]
    assert [m.value for m in history] == pytest.approx([r["loss"] for r in rows(out, "step")])
    plots = {a.path for a in client.list_artifacts(run.info.run_id, "plots")}
    assert {"plots/labels.png", "plots/pr.png"} <= plots


def test_wandb_keeps_an_offline_run(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    """In a process of its own, since W&B starts a service."""
    pytest.importorskip("wandb")
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from dino_core.config import TrainConfig; from dino_core.data.load import load_dataset\n"
        "from dino_core.engine.fit import run_events\n"
        "recipe = TrainConfig(steps=2, batch=2, log_every_steps=1, dtype='fp32', device='cpu',"
        " augment='none', loggers=('wandb',), plots=False)\n"
        "data, out = load_dataset(sys.argv[1]), Path(sys.argv[2])\n"
        "list(run_events(RunRequest(recipe, data, out, model=sys.argv[3])))\n"
    )
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", code, str(data.root), str(out), start],
        env={**os.environ, "WANDB_MODE": "offline"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_id = (out / "state" / "wandb.txt").read_text().strip()
    (folder,) = (out / "wandb").glob("offline-run-*")
    content = (folder / f"run-{run_id}.wandb").read_bytes()
    assert b"loss/total" in content and b"dino-tiny" in content
