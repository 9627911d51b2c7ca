"""What the package is made of: the build's choices and the wheel's content."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source tree"),
    pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="no setuptools"),
]


def run_setup(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def build_wheel(tmp_path: Path, **environment: str) -> zipfile.ZipFile:
    done = run_setup(
        *["build", "--build-base", str(tmp_path / "build")],
        *["egg_info", "--egg-base", str(tmp_path)],
        *["bdist_wheel", "--bdist-dir", str(tmp_path / "bdist"), "--dist-dir", str(tmp_path)],
        **environment,
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(tmp_path.glob("*.whl")))


def test_an_unknown_build_is_refused() -> None:
    done = run_setup("build_ext", DINO_BUILD="gpu")
    assert done.returncode != 0
    assert "DINO_BUILD is 'gpu', it must be auto, cpu, cuda or none" in done.stderr


def test_a_failed_build_shows_the_compilers_words(tmp_path: Path) -> None:
    temporary = ["--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    done = run_setup("build_ext", *temporary, DINO_BUILD="cpu", CXXFLAGS="-include no-such.h")
    assert done.returncode != 0
    assert "error: no-such.h: No such file or directory" in done.stderr
    assert "DINO_BUILD=none installs without compiled operators" in done.stderr
    absent = run_setup("build_ext", *temporary, DINO_BUILD="cpu", CXX="no-such-compiler")
    assert absent.returncode != 0
    assert "cannot run no-such-compiler" in absent.stderr


def test_the_pure_wheel_holds_no_library(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, DINO_BUILD="none")
    assert str(wheel.filename).endswith("-py3-none-any.whl")
    names = wheel.namelist()
    assert not [name for name in names if name.endswith((".so", ".cpp", ".cu"))]
    assert "dino_core/py.typed" in names
    assert "dino_core/ops/reference.py" in names
    assert "dino_core/recipes/r50-4scale-12ep.toml" in names
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert b"dino = dino_cli.__main__:main" in wheel.read(entry_points)


@pytest.mark.slow
def test_the_compiled_wheel_names_no_python_and_no_torch(tmp_path: Path) -> None:
    # Neither the tag nor what is linked depends on optimization, which takes most of the build.
    wheel = build_wheel(tmp_path, DINO_BUILD="cpu", CXXFLAGS="-O0")
    assert "-py3-none-linux_" in str(wheel.filename)
    libraries = [name for name in wheel.namelist() if name.endswith(".so")]
    assert libraries == ["dino_core/ops/libdino_ops.so"]
    wheel.extractall(tmp_path / "installed")
    library = str(tmp_path / "installed" / libraries[0])
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
    wanted = [line.split()[1] for line in symbols.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in wanted)  # torch's stable ABI
    unstable = ("Py", "_Py", "_ZN2at", "_ZN3c10", "_ZN5torch", "_ZNK2at", "_ZNK3c10", "_ZNK5torch")
    assert not [name for name in wanted if name.startswith(unstable)]
    needed = subprocess.check_output(["readelf", "-d", library], text=True)
    assert "libtorch.so" in needed and "libpython" not in needed
    code = (
        "import torch, dino_core.ops.backend as b;"
        f"assert b.__file__.startswith(r'{tmp_path}'), b.__file__;"
        "from dino_core.ops.ms_deform_attn import ms_deform_attn;"
        "v = torch.ones(1, 4, 1, 8); x = torch.full((1, 1, 1, 1, 1, 2), 0.5);"
        "assert (ms_deform_attn(v, [(2, 2)], x, torch.ones(1, 1, 1, 1, 1)) == 1).all()"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "DINO_OPS": "compiled"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
