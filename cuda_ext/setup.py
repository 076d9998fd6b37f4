"""Compiles the kernels with nvcc when the package is built; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from splatcodec_cuda import building  # noqa: E402


class CompileKernels(build_ext):
    """A shared library with C functions in place of a Python extension module: it fits every Python and torch."""

    def get_ext_filename(self, fullname: str) -> str:
        return building.LIBRARY_NAME

    def build_extension(self, ext: Extension) -> None:
        nvcc = building.find_nvcc()
        if nvcc is None:
            raise RuntimeError("nvcc not found: install the CUDA toolkit, or set CUDA_HOME to where it is")
        chosen = os.environ.get("SPLATCODEC_CUDA_ARCHS")
        if chosen:
            architectures = [int(number) for number in chosen.replace(",", " ").split()]
        else:
            known = building.nvcc_architectures(nvcc)
            architectures = [number for number in building.ARCHITECTURES if number in known]
        output = Path(self.get_ext_fullpath(ext.name))
        building.compile_library(HERE / "csrc", output, nvcc=nvcc, architectures=architectures)


class WithSources(sdist):
    """Source distributions hold the headers too."""

    def make_distribution(self) -> None:
        self.filelist.extend(str(path.relative_to(HERE)) for path in sorted((HERE / "csrc").iterdir()))
        super().make_distribution()


setup(
    ext_modules=[Extension("splatcodec_cuda.kernels", [f"csrc/{name}" for name in building.SOURCES])],
    cmdclass={"build_ext": CompileKernels, "sdist": WithSources},
)
