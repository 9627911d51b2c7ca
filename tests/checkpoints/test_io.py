from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from factories import CLASS_NAMES, TINY_INPUT, tiny_checkpoint, tiny_config

from dino_core.checkpoints.io import (
    Checkpoint,
    build_model,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from dino_core.detections import ClassMap
from dino_core.errors import CheckpointError
from dino_core.metadata import METADATA_KEY, CheckpointMeta, from_json, to_json
from dino_core.models.dino import Dino

META = CheckpointMeta(
    "dino-tiny",
    tiny_config(),
    TINY_INPUT,
    ClassMap(CLASS_NAMES, (7, 3)),
    training={"steps": 3},
    metrics={"ap": 0.25, "ap_small": None},
    provenance={"start": "größe"},
)


class TestRoundTrip:
    def test_everything_comes_back(self, tmp_path: Path) -> None:
        state = Dino(META.model).state_dict()
        save_checkpoint(tmp_path / "m.safetensors", state, META)
        loaded = load_checkpoint(tmp_path / "m.safetensors")
        assert loaded.meta == META
        assert loaded.state_dict.keys() == state.keys()
        assert all(torch.equal(loaded.state_dict[n], t) for n, t in state.items())
        assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_storage_comes_back_as_float32(self, tmp_path: Path, dtype: torch.dtype) -> None:
        state = {"w": torch.tensor([1.0, 1 / 3]), "n": torch.tensor([2**40 + 1])}
        save_checkpoint(tmp_path / "m.safetensors", state, META, storage_dtype=dtype)
        loaded = load_checkpoint(tmp_path / "m.safetensors").state_dict
        assert loaded["w"].dtype == torch.float32
        assert torch.equal(loaded["w"], state["w"].to(dtype).float())
        assert torch.equal(loaded["n"], state["n"])
        assert safetensors.torch.load_file(tmp_path / "m.safetensors")["w"].dtype == dtype

    def test_tied_tensors_are_stored_once_and_stay_tied(self, tmp_path: Path) -> None:
        shared = torch.arange(6.0)
        path = tmp_path / "t.safetensors"
        write_tensors(path, {"a": shared, "b": shared, "part": shared[:3]}, {"k": "v"})
        assert set(safetensors.torch.load_file(path)) == {"a", "part"}
        tensors, metadata = read_tensors(path)
        assert tensors["a"].data_ptr() == tensors["b"].data_ptr()
        assert torch.equal(tensors["part"], torch.arange(3.0))
        assert metadata == {"k": "v"}

    def test_build_model_predicts_like_the_saved_one(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        model = Dino(META.model).eval()
        save_checkpoint(tmp_path / "m.safetensors", model.state_dict(), META)
        again = build_model(load_checkpoint(tmp_path / "m.safetensors"))
        assert not again.training
        images, mask = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
        with torch.inference_mode():
            assert torch.equal(model(images, mask).logits, again(images, mask).logits)

    def test_build_model_refuses_other_weights(self) -> None:
        state = Dino(META.model).state_dict()
        other = replace(META, model=replace(META.model, hidden_dim=64))
        with pytest.raises(CheckpointError, match="do not fit"):
            build_model(Checkpoint(other, state))
        del state["level_embed"]
        with pytest.raises(CheckpointError, match="level_embed"):
            build_model(Checkpoint(META, state))


class TestMetadata:
    def test_json_round_trip(self) -> None:
        assert from_json(to_json(META)) == META

    def test_class_count_must_be_the_models(self) -> None:
        with pytest.raises(CheckpointError, match="3 class names for a model with 2"):
            replace(META, classes=ClassMap.from_names("abc"))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"format": 99}, "format 99"),
            ({"format": None}, "no format version"),
            ({"classes": None}, "classes must be lists"),
            ({"model": {"hidden_dims": 3}}, "hidden_dims"),
            ({"classes": {"names": ["a"], "source_ids": [1]}}, "1 class names"),
        ],
    )
    def test_malformed(self, change: dict[str, object], words: str) -> None:
        text = json.dumps({**json.loads(to_json(META)), **change})
        with pytest.raises(CheckpointError, match=words):
            from_json(text, "m.safetensors")

    def test_not_json_or_incomplete(self) -> None:
        with pytest.raises(CheckpointError, match="not JSON"):
            from_json("{")
        with pytest.raises(CheckpointError, match="not a JSON object"):
            from_json("[]")
        with pytest.raises(CheckpointError, match="lacks 'variant'"):
            from_json('{"format": 1}')


class TestBadFiles:
    def test_missing_folder_or_empty(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no such file"):
            load_checkpoint(tmp_path / "gone.safetensors")
        with pytest.raises(CheckpointError, match="a folder"):
            load_checkpoint(tmp_path)
        empty = tmp_path / "empty.safetensors"
        empty.touch()
        with pytest.raises(CheckpointError, match="truncated"):
            load_checkpoint(empty)

    @pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
    def test_truncated(self, tmp_path: Path, share: float) -> None:
        path = tiny_checkpoint(tmp_path / "m.safetensors")
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(CheckpointError, match="truncated"):
            load_checkpoint(path)

    def test_not_a_model_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "noise.safetensors"
        path.write_bytes(b"\xff\xd8\xfe\xe0" * 1000)
        with pytest.raises(CheckpointError, match="not a safetensors file") as error:
            load_checkpoint(path)
        assert "dino models import" in error.value.hint

    def test_somebody_elses_safetensors(self, tmp_path: Path) -> None:
        safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match="without the metadata of a dino model"):
            load_checkpoint(tmp_path / "other.safetensors")

    def test_newer_format(self, tmp_path: Path) -> None:
        text = to_json(META).replace('"format": 1', '"format": 2')
        write_tensors(tmp_path / "m.safetensors", {"w": torch.zeros(2)}, {METADATA_KEY: text})
        with pytest.raises(CheckpointError, match="format 2") as error:
            load_checkpoint(tmp_path / "m.safetensors")
        assert "upgrade" in error.value.hint


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from dino_core.checkpoints.io import write_tensors
from dino_core.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_tensors(Path(sys.argv[1]), {"w": torch.zeros(100_000)}, {})
except CheckpointError as error:
    print(error.message)
"""


class TestWriting:
    def test_full_disk_keeps_the_previous_file(self, tmp_path: Path) -> None:
        path = tmp_path / "m.safetensors"
        write_tensors(path, {"w": torch.ones(3)}, {})
        # A limit on file sizes fails in the same place as a full disk, with an errno of its own.
        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(path)],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert "the disk is full" in done.stdout
        assert torch.equal(read_tensors(path)[0]["w"], torch.ones(3))
        assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]

    def test_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_tensors(tmp_path / "gone" / "m.safetensors", {"w": torch.ones(3)}, {})

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "m.safetensors", {"w": torch.ones(3)}, {})
        (tmp_path / "plain").touch()
        assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_weights_stay_on_disk_until_they_are_used(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    save_checkpoint(tmp_path / "m.safetensors", {"w": torch.ones(32 << 20)}, META)  # 128 MB
    before = resident()
    state = load_checkpoint(tmp_path / "m.safetensors").state_dict
    assert resident() - before < 32 << 20
    assert float(state["w"].sum()) == 32 << 20
    assert resident() - before > 100 << 20


def changed(path: Path, part: str, setting: str, value: object) -> Path:
    """Set one value of the metadata of a model file; `value` may be JSON as text."""
    tensors, metadata = read_tensors(path)
    described = json.loads(metadata[METADATA_KEY])
    described[part][setting] = "@"
    text = value.decode() if isinstance(value, bytes) else json.dumps(value)
    text = json.dumps(described).replace('"@"', text)
    write_tensors(path, tensors, {METADATA_KEY: text})
    return path


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("encoder_layers", 10**9, "encoder_layers is 1000000000"),
        ("encoder_layers", -1, "encoder_layers is -1"),
        ("decoder_layers", 0, "decoder_layers is 0"),
        ("backbone", "hf-hub:someone/model", "is a location"),
        ("backbone", "no_such_net", "no_such_net"),
        ("backbone_out_indices", [], r"backbone_out_indices is \[\]"),
        ("backbone_out_indices", [2, 2], r"backbone_out_indices is \[2, 2\]"),
        ("backbone_out_indices", [-1, 2], r"backbone_out_indices is \[-1, 2\]"),
        ("backbone_frozen_stages", -9, "backbone_frozen_stages is -9"),
        ("num_queries", 10**12, "num_queries is 1000000000000"),
        ("num_queries", -1, "num_queries is -1"),
        ("num_heads", 0, "num_heads is 0"),
        ("num_points", -1, "num_points is -1"),
        ("ffn_dim", -1, "ffn_dim is -1"),
        ("ffn_dim", 2**61, "ffn_dim is 2305843009213693952"),
        ("ffn_dim", b"1" * 5000, "a number is too long"),
        ("position_temperature", b"NaN", "position_temperature is nan"),
        ("position_temperature", 0, "position_temperature is 0"),
        ("position_temperature", 10**400, "position_temperature: expected a number"),
        ("box_eps", b"Infinity", "box_eps is inf"),
        ("variant", b'"\\ud800"', "which is no character"),
        ("hidden_dim", 64, "do not fit"),
    ],
)
def test_a_file_that_claims_another_network(
    tmp_path: Path, setting: str, value: object, words: str
) -> None:
    path = changed(tiny_checkpoint(tmp_path / "m.safetensors"), "model", setting, value)
    with pytest.raises(CheckpointError, match=words) as error:
        build_model(load_checkpoint(path), path)
    assert str(path) in error.value.message


@pytest.mark.parametrize(
    ("part", "setting", "value", "words"),
    [
        ("preprocess", "max_side", 0, "max_side is 0"),
        ("preprocess", "max_side", 60_000, "max_side is 60000"),
        ("preprocess", "canvas", [0, 0], r"canvas is \[0, 0\]"),
        ("preprocess", "canvas", [32, 200_000], r"canvas is \[32, 200000\]"),
        ("preprocess", "std", [1, 1, -1], r"std is \[1.0, 1.0, -1.0\]"),
        ("preprocess", "mean", b"[NaN, 0, 0]", r"mean is \[nan, 0.0, 0.0\]"),
        ("classes", "source_ids", b"[Infinity, 1]", "a class id is inf"),
        ("classes", "source_ids", [10**30, 1], "a class id is 1000000000000000000000000000000"),
        ("classes", "source_ids", ["1", 2], "a class id is '1'"),
        ("classes", "source_ids", [1, 1], "class ids are not unique"),
        ("classes", "names", [["a"], "b"], r"a class name is \['a'\]"),
        ("classes", "names", ["", ""], "no class has a name"),
        ("classes", "names", b'["\\udcff", "b"]', "which is no character"),
    ],
)
def test_a_file_that_claims_another_input_or_impossible_classes(
    tmp_path: Path, part: str, setting: str, value: object, words: str
) -> None:
    path = changed(tiny_checkpoint(tmp_path / "m.safetensors"), part, setting, value)
    with pytest.raises(CheckpointError, match=words) as error:
        load_checkpoint(path)
    assert str(path) in error.value.message


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool])
def test_weights_that_are_no_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, metadata = read_tensors(tiny_checkpoint(tmp_path / "m.safetensors"))
    tensors["level_embed"] = tensors["level_embed"].to(dtype)
    write_tensors(tmp_path / "x.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=f"level_embed has values of {dtype}"):
        build_model(load_checkpoint(tmp_path / "x.safetensors"))


def test_metadata_in_endless_brackets(tmp_path: Path) -> None:
    tensors, _ = read_tensors(tiny_checkpoint(tmp_path / "m.safetensors"))
    write_tensors(tmp_path / "x.safetensors", tensors, {METADATA_KEY: "[" * 100_000})
    with pytest.raises(CheckpointError, match="not JSON"):
        load_checkpoint(tmp_path / "x.safetensors")
    write_tensors(tmp_path / "y.safetensors", tensors, {METADATA_KEY: "{}", "aliases": "[1]"})
    with pytest.raises(CheckpointError, match="shared tensors is damaged"):
        read_tensors(tmp_path / "y.safetensors")
