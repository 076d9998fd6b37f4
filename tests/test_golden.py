"""Golden files (bitstreams/README.md): today's decoder gives what it gave when they were made, to the bit."""

from __future__ import annotations

import hashlib
import json

import make_golden
import numpy as np
import numpy.typing as npt
import pytest
from make_golden import CASES, GOLDEN, MOVING

from splatcodec import api

# Quaternions and log scales leave a decoder through functions whose last digits differ between machines (SPEC.md,
# section 5); opacities through one logarithm.
LOOSE_RELATIVE = 1e-5
LOG_ULPS = 2.0


def test_nothing_is_missing_and_nothing_is_left_over():
    found = {folder.name for folder in GOLDEN.iterdir() if folder.is_dir()} if GOLDEN.is_dir() else set()
    assert found == {*CASES, "moving"}, "run tools/make_golden.py --write"
    assert {folder.name for folder in (GOLDEN / "moving").iterdir()} == set(MOVING)
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*.*") if path.is_file()) < 500_000


def _facts(name: str) -> dict[str, object]:
    return json.loads((GOLDEN / name / "case.json").read_text())


def assert_as_expected(name: str, key: str, actual: npt.NDArray, expected: npt.NDArray) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), key
    if name == "moving/motion" and key == "shN":  # nodes turn harmonics
        assert np.allclose(actual, expected, rtol=LOOSE_RELATIVE, atol=LOOSE_RELATIVE)
    elif name.startswith("lossless") or key not in ("quats", "scales", "opacities"):
        assert actual.tobytes() == expected.tobytes(), key
    elif key == "opacities":
        assert (np.abs(actual - expected) <= LOG_ULPS * np.spacing(np.maximum(np.abs(expected), 1))).all()
    elif key == "quats":
        dots = (actual.astype(np.float64) * expected).sum(1)
        assert (np.abs(np.abs(dots) - 1) <= LOOSE_RELATIVE).all()
    else:
        assert np.allclose(actual, expected, rtol=LOOSE_RELATIVE, atol=LOOSE_RELATIVE)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_decodes_as_expected(name, threads):
    stream = (GOLDEN / name / "stream.splc").read_bytes()
    facts = _facts(name)
    assert hashlib.sha256(stream).hexdigest() == facts["sha256"]
    decoded = api.decompress(stream, threads=threads)
    assert decoded.num_gaussians == facts["num_decoded"]
    with np.load(GOLDEN / name / "expected.npz") as expected:
        actual = make_golden.arrays_of(decoded)
        assert set(actual) == set(expected)
        for key, array in actual.items():
            assert_as_expected(name, key, array, expected[key])


@pytest.mark.parametrize("name", CASES)
def test_is_what_case_json_says(name):
    path = GOLDEN / name / "stream.splc"
    facts = _facts(name)
    checked = api.verify(path, full=True)
    assert checked["version"] == facts["spec"]
    assert checked["size_bytes"] == facts["size_bytes"] == path.stat().st_size
    assert [list(chunk) for chunk in make_golden.structure(path.read_bytes())] == facts["structure"]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("lossless-ply")])
def test_plys_come_back(name, tmp_path):
    facts = api.decompress_file(GOLDEN / name / "stream.splc", tmp_path / "back.ply")
    assert facts["identical"] is True
    assert (tmp_path / "back.ply").read_bytes() == CASES[name].source()


@pytest.mark.parametrize("name", ["lossy-sh3", "lossy-tiles", "lossy-extras", "lossless-sh3", "lossless-ply"])
def test_encoder_writes_the_like(name):
    # The decoder is held to the bytes, the encoder only to the structure and a size.
    facts = _facts(name)
    stream = make_golden.encode(CASES[name])
    assert [kind for kind, _ in make_golden.structure(stream)] == [kind for kind, _ in facts["structure"]]
    assert len(stream) <= 1.05 * facts["size_bytes"] + 100


@pytest.mark.parametrize("name", ["lossy-tiles", "lossless-extras"])
def test_bytes_do_not_depend_on_threads(name):
    assert make_golden.encode(CASES[name], threads=1) == make_golden.encode(CASES[name], threads=3)


# --- moving scenes ----------------------------------------------------------------------------------------------------


def _moving_stream(name: str) -> bytes:
    if name == "video":
        pytest.importorskip("av")
    return (GOLDEN / "moving" / name / "stream.splc").read_bytes()


@pytest.mark.parametrize("name", MOVING)
def test_frames_decode_as_expected(name):
    stream = _moving_stream(name)
    facts = _facts(f"moving/{name}")
    assert hashlib.sha256(stream).hexdigest() == facts["sha256"]
    assert len(stream) == facts["size_bytes"]
    assert [[list(chunk) for chunk in group] for group in make_golden.moving_structure(stream)] == facts["structure"]
    with api.open_moving(stream) as scene:
        assert (scene.num_frames, scene.fps, scene.complete) == (facts["num_frames"], facts["fps"], True)
    with np.load(GOLDEN / "moving" / name / "expected.npz") as expected:
        actual = make_golden.arrays_of_moving(MOVING[name], stream)
        assert set(actual) == set(expected)
        for key, array in actual.items():
            assert_as_expected(f"moving/{name}", key.split("_", 2)[2], array, expected[key])


def test_the_motion_file_has_everything_there_is():
    with api.open_moving(_moving_stream("motion")) as scene:
        groups = [scene.sequence.read_group(entry) for entry in scene.groups]
        assert [head.scene for _, head in groups] == [0, 0]
        scene.frame(0)
        group = scene._group[1]
        assert len(group.parameters.pivots) == 1
        assert len(group.tiles[0].event_frames) > 0
        assert set(group.tiles[0].nodes) == {0, 1}
        assert group.tiles[0].births.any()
        scene.frame(7)
        assert (scene._group[1].tiles[0].deaths < 4).any()


@pytest.mark.parametrize("name", MOVING)
def test_encoder_of_moving_scenes_writes_the_like(name):
    _moving_stream(name)
    facts = _facts(f"moving/{name}")
    stream = make_golden.encode_moving(MOVING[name])
    assert [[list(chunk) for chunk in group] for group in make_golden.moving_structure(stream)] == facts["structure"]
    assert len(stream) <= 1.1 * facts["size_bytes"] + 100
    if name == "motion":
        assert stream == make_golden.encode_moving(MOVING[name], threads=1)
