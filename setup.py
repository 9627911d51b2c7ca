"""Builds the operators in csrc/; everything else about the package is in pyproject.toml.

The environment variable DINO_BUILD chooses what is built: `auto` (the default: for CPUs, and for
CUDA if there are nvcc and a CUDA torch), `cpu`, `cuda` (both), or `none` (pure Python). If a
requested build fails, so does the installation. For development run
`python setup.py build_ext --inplace`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
CPU_SOURCES = [
    "csrc/ms_deform_attn.cpp",
    "csrc/cpu/ms_deform_attn.cpp",
    "csrc/cpu/depthwise.cpp",
]
CUDA_SOURCES = ["csrc/cuda/ms_deform_attn.cu"]
NAMES = {"cpu": "dino_core.ops.libdino_ops", "cuda": "dino_core.ops.libdino_ops_cuda"}
SOURCES = {"cpu": CPU_SOURCES, "cuda": CUDA_SOURCES}
HEADERS = [
    *(f"csrc/{name}" for name in ("checks.h", "depthwise.h", "ms_deform_attn.h")),
    *(f"csrc/cpu/{name}" for name in ("isa.h", "tasks.h")),
    *(f"csrc/cpu/{name}.inc" for name in ("each_isa", "vectors", "kernels", "depthwise")),
    *(f"csrc/cuda/{name}.cuh" for name in ("sampling", "points", "kernels")),
]
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # the stable ABI of torch 2.10
CPU_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
# Without these two the compiler may not vectorize the loops that call floor or choose by an `if`,
# since such code could set errno or trap at other places than the loop as written.
CPU_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]
# GCC warns that vector types are passed differently with AVX; none crosses a border of a library.
CPU_FLAGS += ["-Wall", "-Wextra", "-Wno-psabi"]
CUDA_FLAGS = ["-std=c++20", "-O3", "-DUSE_CUDA", "-cudart", "static"]
CUDA_FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
CUDA_ARCHITECTURES = ["75", "80", "86", "89", "90"]


def find_nvcc() -> str | None:
    """Path of nvcc, on PATH or under CUDA_HOME; None if there is none."""
    home = os.environ.get("CUDA_HOME", "")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


def wanted() -> list[str]:
    """The libraries that DINO_BUILD asks for: names among "cpu" and "cuda", or none."""
    choice = os.environ.get("DINO_BUILD", "auto")
    if choice == "none":
        return []
    if choice not in ("auto", "cpu", "cuda"):
        raise SystemExit(f"DINO_BUILD is {choice!r}, it must be auto, cpu, cuda or none")
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            "torch is needed to compile the operators: install torch>=2.10 first, leave out "
            "--no-build-isolation, or set DINO_BUILD=none for a pure-Python install"
        ) from error
    has_sources = all((ROOT / source).exists() for source in CUDA_SOURCES)
    can_cuda = bool(find_nvcc()) and torch.version.cuda is not None
    if choice == "cuda" and not (can_cuda and has_sources):
        raise SystemExit(
            "DINO_BUILD=cuda needs nvcc (on PATH or under CUDA_HOME) and a torch built with CUDA"
        )
    if choice == "cpu" or not (can_cuda and has_sources):
        return ["cpu"]
    return ["cpu", "cuda"]  # the schemas are in the CPU library, so CUDA needs both


def torch_flags() -> tuple[list[str], list[str]]:
    """Compiler and linker flags of the installed torch."""
    import torch

    base = Path(torch.__file__).parent
    include = [
        "-isystem",
        str(base / "include"),
        "-isystem",
        str(base / "include/torch/csrc/api/include"),
    ]
    return [TORCH_TARGET, *include], [f"-L{base / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]


def cpu_commands(output: str) -> list[list[str]]:
    compile_flags, link_flags = torch_flags()
    compiler = shlex.split(os.environ.get("CXX", "")) or [
        shutil.which("g++") or shutil.which("c++") or "c++"
    ]
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    flags = [*CPU_FLAGS, *extra, *compile_flags]
    return [[*compiler, *flags, "-shared", *CPU_SOURCES, "-o", output, *link_flags]]


def cuda_commands(output: str) -> list[list[str]]:
    """The commands that compile, with a thread for each architecture, and link.

    The link has no threads: nvcc's parallel linking sometimes reads a file before it is written.
    """
    compile_flags, link_flags = torch_flags()
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
    newest = CUDA_ARCHITECTURES[-1]
    code.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")  # PTX for later GPUs
    nvcc = find_nvcc() or "nvcc"
    extra = shlex.split(os.environ.get("NVCC_FLAGS", ""))
    common = [nvcc, *CUDA_FLAGS, *code, *extra]
    (source,), compiled = CUDA_SOURCES, f"{output}.o"
    return [
        [*common, *compile_flags, "--threads=0", "-c", source, "-o", compiled],
        [*common, "-shared", compiled, "-o", output, *link_flags, "-ltorch_cuda"],
    ]


class BuildOperators(build_ext):
    """Runs the compiler, and shows its output if it fails."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(
            Path(*fullname.split(".")).with_suffix(".so")
        )  # no Python tag: these libraries know no Python

    def run(self) -> None:
        wanted_names = {extension.name for extension in self.extensions}
        for name in set(NAMES.values()) - wanted_names:  # left behind by an earlier build
            Path(self.build_lib, self.get_ext_filename(name)).unlink(missing_ok=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        target = ROOT / self.get_ext_fullpath(ext.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial.so")
        commands = (cuda_commands if "cuda" in ext.name else cpu_commands)(str(partial))
        try:
            for command in commands:
                self.run_compiler(command)
        except CompileError:
            partial.unlink(missing_ok=True)
            raise
        finally:
            Path(f"{partial}.o").unlink(missing_ok=True)
        # Atomically, and to another inode: a process that has the old library loaded keeps it.
        partial.replace(target)

    def run_compiler(self, command: list[str]) -> None:
        print(shlex.join(command), flush=True)
        try:
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        except OSError as error:
            raise CompileError(f"cannot run {command[0]}: {error}; {self.advice()}") from error
        sys.stderr.write(result.stderr)
        if result.returncode != 0:
            raise CompileError(
                f"{command[0]} failed:\n{result.stdout}{result.stderr}\n{self.advice()}"
            )

    @staticmethod
    def advice() -> str:
        return (
            "The operators need g++ >= 11 or clang (Debian: apt install g++) and, for CUDA, nvcc; "
            "DINO_BUILD=cpu leaves CUDA out, DINO_BUILD=none installs without compiled operators"
        )


class PlatformWheel(bdist_wheel):
    """Tags the wheel py3-none-<platform>, as the libraries depend on no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (
            ("py3", "none", platform) if self.distribution.ext_modules else (python, abi, platform)
        )


# Packing sources and writing metadata need neither a compiler nor torch.
BUILDING = {"build", "build_ext", "bdist_wheel", "develop", "editable_wheel", "install"} & {
    *sys.argv
}

setup(
    ext_modules=[
        Extension(NAMES[kind], SOURCES[kind], depends=HEADERS)
        for kind in (wanted() if BUILDING else ["cpu"])
    ],
    cmdclass={"build_ext": BuildOperators, "bdist_wheel": PlatformWheel},
)
