"""Compiles the kernels to one shared library with C functions; needs nvcc and a C++ compiler, no torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ARCHITECTURES", "LIBRARY_NAME", "SOURCES", "compile_library", "find_nvcc", "nvcc_architectures"]

LIBRARY_NAME = "libsplatcodec_cuda.so"
SOURCES = ("project.cu", "binning.cu", "rasterize.cu")
#: Turing to Hopper; the last one also as PTX, from which drivers make code for later devices.
ARCHITECTURES = (75, 80, 86, 89, 90)


def find_nvcc() -> str | None:
    """Path of nvcc: in CUDA_HOME or CUDA_PATH, on the PATH, or where toolkits are usually installed."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if folder := os.environ.get(variable):
            candidate = Path(folder) / "bin" / "nvcc"
            if candidate.is_file():
                return str(candidate)
    if found := shutil.which("nvcc"):
        return found
    usual = Path("/usr/local/cuda/bin/nvcc")
    return str(usual) if usual.is_file() else None


def nvcc_architectures(nvcc: str) -> list[int]:
    """Compute capabilities (75 for 7.5) that this nvcc compiles for."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return [int(number) for number in re.findall(r"compute_(\d+)\b", listed)]


def compile_library(
    folder: Path,
    output: Path,
    *,
    nvcc: str,
    architectures: Sequence[int] = ARCHITECTURES,
    options: Sequence[str] = (),
) -> str:
    """Compile the sources in `folder` to the shared library `output`; returns what the compiler said.

    Args:
        folder: where the .cu files are.
        output: written when everything else is done, so that nobody loads half a library.
        nvcc: the compiler.
        architectures: compute capabilities; the largest is also kept as PTX.
        options: further options of nvcc.

    Raises:
        RuntimeError: the compiler failed; the message is the end of what it said.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in sorted(architectures)]
    targets.append(f"-gencode=arch=compute_{max(architectures)},code=compute_{max(architectures)}")
    command = [nvcc, "-shared", "-std=c++17", "-O3", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=default", *targets]
    command += [*options, "-o", str(partial), *(str(folder / name) for name in SOURCES)]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
        said = result.stdout + result.stderr
        if result.returncode != 0:
            raise RuntimeError(f"nvcc failed:\n{said[-4000:]}")
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return said
