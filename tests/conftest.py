"""Shared by all tests: where things are, a small scene, small files made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from splatcodec import api
from splatcodec.gaussians import Gaussians
from splatcodec.sample import sample_scene

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))  # the tests share the engines of tools/fuzz.py and tools/make_golden.py


@pytest.fixture(scope="session")
def small_scene() -> Gaussians:
    """300 Gaussians of the synthetic scene, SH degree 3."""
    return sample_scene(300)


@pytest.fixture(scope="session")
def small_files(small_scene: Gaussians, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small scene as files: `ply`, `lossy` and `lossless` (made from the PLY)."""
    folder = tmp_path_factory.mktemp("small")
    files = {name: folder / f"{name}.splc" for name in ("lossy", "lossless")}
    files["ply"] = folder / "scene.ply"
    api.write(small_scene, files["ply"])
    api.compress_file(files["ply"], files["lossy"], quality=70, effort=1)
    api.compress_file(files["ply"], files["lossless"], lossless=True)
    return files
