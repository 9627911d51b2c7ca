"""torch.compile changes neither results nor names; without a compiler it says so at once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from factories import make_coco_dataset, tiny_config

from dino_core.config import TrainConfig
from dino_core.data.load import load_dataset
from dino_core.engine.compiling import compile_parts, is_compiler_error
from dino_core.engine.fit import run_events
from dino_core.engine.request import RunRequest
from dino_core.errors import ConfigError
from dino_core.models.dino import Dino


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of itself
def test_compiled_parts_compute_the_same() -> None:
    """Traced and differentiated by torch.compile, run without its code generator (minutes here)."""
    torch.manual_seed(0)
    model = Dino(tiny_config()).train()
    model.backbone.fold_batch_norm()
    compiled = copy.deepcopy(model)
    compile_parts(compiled, backend="aot_eager")
    assert list(compiled.state_dict()) == list(model.state_dict())
    for size in ((64, 64), (64, 96), (96, 64)):  # sizes change from batch to batch
        images = torch.randn(2, 3, *size)
        mask = torch.zeros(2, *size, dtype=torch.bool)
        tokens = model(images, mask).encoder.token_indices  # near-ties may be chosen otherwise
        for network in (model, compiled):
            network.zero_grad()
            output = network(images, mask, forced_tokens=tokens)
            (output.layer_logits.square().mean() + output.layer_boxes_cxcywh.mean()).backward()
        pairs = zip(model.parameters(), compiled.parameters(), strict=True)
        grads = [(a.grad, b.grad) for a, b in pairs if a.grad is not None]
        assert len(grads) > 50
        scale = max(float(a.abs().max()) for a, _ in grads)
        worst = max(float((a - b).abs().max()) for a, b in grads if b is not None)
        assert all(b is not None for _, b in grads) and worst < 1e-5 * scale, (worst, scale)
    assert isinstance(copy.deepcopy(compiled), Dino)  # an average can be made of it


def test_no_compiler_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset(make_coco_dataset(tmp_path / "data"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = TrainConfig(compile=True, device="cpu", steps=1)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler") as raised:
        next(run_events(RunRequest(config, data, tmp_path / "run", weights="none")))
    assert "g++" in raised.value.hint
    assert not (tmp_path / "run").exists()


def test_errors_of_the_compiler_are_told_apart() -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    assert is_compiler_error(BackendCompilerFailed("inductor", RuntimeError("g++ failed"), None))
    assert not is_compiler_error(RuntimeError("out of memory"))
