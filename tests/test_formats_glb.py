"""GLB: what is in the file by a plain decoder, node transforms by what one sees, SPZ inside, refusals."""

from __future__ import annotations

import copy
import json
import struct
import warnings
from pathlib import Path

import format_writers as writers
import numpy as np
import pytest

from splatcodec import formats
from splatcodec.errors import (
    FormatError,
    LimitExceededError,
    SplatCodecError,
    SplatCodecWarning,
    TruncatedError,
    UnsupportedError,
)
from splatcodec.formats import WriteOptions
from splatcodec.gaussians import SH_C0, Gaussians
from splatcodec.limits import Limits

VECTORS = Path(__file__).parents[2] / "shared" / "formats" / "vectors"
# x left, y up, z front, in right, down, front: half a turn about z.
TO_RDF = np.diag([-1.0, -1.0, 1.0])
IDENTITY = np.eye(4)


@pytest.fixture
def rng():
    return np.random.default_rng(23)


def _attributes(rng: np.random.Generator, count: int, degree: int = 0) -> dict[str, np.ndarray]:
    quats = rng.normal(size=(count, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    attributes = {
        "POSITION": rng.normal(size=(count, 3)),
        "ROTATION": quats,
        "SCALE": np.exp(rng.normal(-2, 1, (count, 3))),
        "OPACITY": rng.uniform(0.1, 0.9, count),
    }
    for band in range(degree + 1):
        for n in range(2 * band + 1):
            attributes[f"SH_DEGREE_{band}_COEF_{n}"] = rng.normal(0, 0.3, (count, 3))
    return {name: values.astype("<f4") for name, values in attributes.items()}


def _read(tmp_path: Path, root: dict, content: bytes, **kwargs) -> Gaussians:
    path = tmp_path / "scene.glb"
    path.write_bytes(writers.glb_bytes(root, content))
    return formats.read(path, **kwargs)


def _write(scene: Gaussians, path: Path, **options) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        return formats.write(scene, path, options=WriteOptions(**options))


def _matrices(quats_xyzw: np.ndarray) -> np.ndarray:
    x, y, z, w = (quats_xyzw / np.linalg.norm(quats_xyzw, axis=1, keepdims=True)).astype(float).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def _covariances(quats_xyzw: np.ndarray, scales: np.ndarray) -> np.ndarray:
    axes = _matrices(quats_xyzw) * scales[:, None].astype(float)
    return axes @ axes.transpose(0, 2, 1)


def _colours(coefficients: list[np.ndarray], directions: np.ndarray) -> np.ndarray:
    """(D, N, 3) by the formulas of the extension's page."""
    x, y, z = directions.T
    basis = [np.full(len(x), SH_C0), -0.4886025119 * y, 0.4886025119 * z, -0.4886025119 * x]
    basis += [1.0925484306 * x * y, -1.0925484306 * y * z, 0.3153915653 * (2 * z * z - x * x - y * y)]
    basis += [-1.0925484306 * x * z, 0.5462742153 * (x * x - y * y)]
    basis += [-0.5900435899 * y * (3 * x * x - y * y), 2.8906114426 * x * y * z]
    basis += [-0.4570457995 * y * (4 * z * z - x * x - y * y), 0.3731763326 * z * (2 * z * z - 3 * x * x - 3 * y * y)]
    basis += [-0.4570457995 * x * (4 * z * z - x * x - y * y), 1.4453057213 * z * (x * x - y * y)]
    basis += [-0.5900435899 * x * (x * x - 3 * y * y)]
    return sum(b[:, None, None] * c[None].astype(float) for b, c in zip(basis, coefficients))


def _sh(attributes: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [values for name, values in attributes.items() if name.startswith("SH_")]


def _check(scene: Gaussians, attributes: dict[str, np.ndarray], world: np.ndarray = IDENTITY) -> None:
    """`scene` is what `attributes` look like under `world`, in RDF."""
    linear = TO_RDF @ world[:3, :3]
    offset = TO_RDF @ world[:3, 3]
    np.testing.assert_allclose(scene.means, attributes["POSITION"] @ linear.T + offset, rtol=1e-5, atol=1e-5)
    expected = linear @ _covariances(attributes["ROTATION"], attributes["SCALE"]) @ linear.T
    have = _covariances(scene.quats[:, [1, 2, 3, 0]], np.exp(scene.scales))
    np.testing.assert_allclose(have, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(scene.alphas(), attributes["OPACITY"], atol=1e-6)
    directions = np.random.default_rng(1).normal(size=(40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    u, _, vt = np.linalg.svd(linear)
    have = _colours([scene.sh0[:, 0], *scene.shN.transpose(1, 0, 2)], directions @ (u @ vt).T)
    np.testing.assert_allclose(have, _colours(_sh(attributes), directions), atol=1e-5)


# --------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("degree", range(4))
def test_plain(tmp_path, rng, degree):
    attributes = _attributes(rng, 50, degree)
    scene = _read(tmp_path, *writers.glb_scene([attributes]))
    assert formats.detect(tmp_path / "scene.glb").name == "glb"
    assert (len(scene), scene.sh_degree, scene.metadata) == (50, degree, {"frame": "RDF"})
    _check(scene, attributes)


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the format vectors are not part of the repository")
def test_vector_is_the_ply_it_was_made_of():
    ply, glb = formats.read(VECTORS / "t5.ply"), formats.read(VECTORS / "t5.glb")
    np.testing.assert_array_equal(glb.means, ply.means)
    np.testing.assert_allclose(glb.scales, ply.scales, atol=1e-6)
    np.testing.assert_allclose(glb.alphas(), ply.alphas(), atol=1e-6)
    np.testing.assert_array_equal(glb.sh0, ply.sh0)
    np.testing.assert_allclose(glb.shN, ply.shN, atol=1e-7)
    have, expected = (_covariances(g.quats[:, [1, 2, 3, 0]], np.exp(g.scales)) for g in (glb, ply))
    np.testing.assert_allclose(have, expected, rtol=1e-5, atol=1e-6)


def test_integers_and_strides(tmp_path, rng):
    attributes = _attributes(rng, 30)
    packed = dict(attributes)
    packed["ROTATION"] = np.rint(attributes["ROTATION"] * 127).astype("i1")
    packed["SCALE"] = rng.integers(1, 65536, (30, 3)).astype("<u2")
    packed["OPACITY"] = rng.integers(0, 256, 30).astype("u1")
    packed["OPACITY"][:2] = 0, 255
    root, content = writers.glb_scene([packed])
    # Opacities four bytes apart, as vertex attributes have to be; positions and rotations interleaved.
    mixed = np.zeros(30, [("p", "<f4", 3), ("q", "i1", 4), ("a", "u1"), ("pad", "u1", 3)])
    mixed["p"], mixed["q"], mixed["a"] = packed["POSITION"], packed["ROTATION"], packed["OPACITY"]
    view = {"buffer": 0, "byteOffset": len(content), "byteLength": mixed.nbytes, "byteStride": mixed.itemsize}
    root["bufferViews"].append(view)
    for name, offset in [("POSITION", 0), ("ROTATION", 12), ("OPACITY", 16)]:
        full = name if name == "POSITION" else f"KHR_gaussian_splatting:{name}"
        index = root["meshes"][0]["primitives"][0]["attributes"][full]
        root["accessors"][index] |= {"bufferView": len(root["bufferViews"]) - 1, "byteOffset": offset}
    root["buffers"][0]["byteLength"] += mixed.nbytes
    scene = _read(tmp_path, root, content + mixed.tobytes())
    alphas = np.clip(packed["OPACITY"] / 255, 1e-6, 1 - 1e-6)
    decoded = attributes | {"ROTATION": packed["ROTATION"] / 127, "SCALE": packed["SCALE"] / 65535, "OPACITY": alphas}
    _check(scene, decoded)


@pytest.mark.parametrize("kind", ["trs", "matrix", "mirror", "stretch"])
def test_nodes(tmp_path, rng, kind):
    attributes = _attributes(rng, 20, 0 if kind == "stretch" else 3)
    quat = np.array([0.1, -0.5, 0.3, 0.8])
    quat /= np.linalg.norm(quat)
    turn = _matrices(quat[None])[0]
    world = np.eye(4)
    world[:3, 3] = 3, -2, 5
    world[:3, :3] = {
        "trs": 2.5 * turn,
        "matrix": 0.25 * turn,
        "mirror": -0.5 * turn,
        "stretch": turn * [1.0, 2.0, 0.25],
    }[kind]
    above = np.eye(4)
    above[:3, 3] = 1, 1, 1
    if kind == "trs":
        node = {"mesh": 0, "rotation": quat.tolist(), "scale": [2.5] * 3, "translation": [3, -2, 5]}
    else:
        node = {"mesh": 0, "matrix": world.T.ravel().tolist()}
    nodes = [{"children": [1], "translation": [1, 1, 1]}, node]
    _check(_read(tmp_path, *writers.glb_scene([attributes], nodes)), attributes, above @ world)


def test_stretched_harmonics_are_named(tmp_path, rng):
    root, content = writers.glb_scene([_attributes(rng, 3, 1)], [{"mesh": 0, "scale": [1, 2, 3]}])
    with pytest.warns(SplatCodecWarning, match="turned, not stretched"):
        _read(tmp_path, root, content)


def test_several_primitives(tmp_path, rng):
    parts = [_attributes(rng, 5, 0), _attributes(rng, 7, 2)]
    root, content = writers.glb_scene(parts)
    scene = _read(tmp_path, root, content)
    assert (len(scene), scene.sh_degree) == (12, 2)
    assert not scene.shN[:5].any()
    _check(scene.selected(slice(5, 12)), parts[1])
    root["meshes"][0]["primitives"][0].pop("extensions")
    with pytest.warns(SplatCodecWarning, match="1 primitives that are no Gaussians"):
        assert len(_read(tmp_path, root, content)) == 7


@pytest.mark.parametrize(
    "name",
    ["KHR_gaussian_splatting_compression_spz_2", "KHR_gaussian_splatting_compression_spz", "outer"],
)
@pytest.mark.parametrize("version", [2, 3, 4])
def test_spz_inside(tmp_path, rng, name, version):
    streams = writers.random_spz_streams(rng, version, 9, 1)
    content = (
        writers.spz_4(9, 1, streams, flags=1) if version == 4 else writers.spz_gzip(version, 9, 1, streams, flags=1)
    )
    (tmp_path / "a.spz").write_bytes(content)
    expected = formats.read(tmp_path / "a.spz")
    inner = {"bufferView": 0}
    if name == "outer":
        extensions = {"KHR_spz_gaussian_splats_compression": inner}
    else:
        extensions = {"KHR_gaussian_splatting": {"kernel": "ellipse", "extensions": {name: inner}}}
    root = {
        "asset": {"version": "2.0"},
        "extensionsRequired": list(extensions),
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {}, "mode": 0, "extensions": extensions}]}],
        "buffers": [{"byteLength": len(content)}],
        "bufferViews": [{"buffer": 0, "byteLength": len(content)}],
    }
    scene = _read(tmp_path, root, content)
    np.testing.assert_array_equal(scene.means, expected.means * np.float32([-1, -1, 1]))
    assert scene.metadata == {"frame": "RDF", "antialiased": True}
    root["bufferViews"][0]["byteLength"] -= 1
    with pytest.raises(FormatError, match=r"SPZ in meshes\[0\]"):
        _read(tmp_path, root, content)


# -------------------------------------------------------------------------------------------------------- refusals


def _changed(root: dict, *path_and_value) -> dict:
    *path, last, value = path_and_value
    changed = copy.deepcopy(root)
    place = changed
    for step in path:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return changed


ATTRIBUTES = ("meshes", 0, "primitives", 0, "attributes")
EXTENSIONS = ("meshes", 0, "primitives", 0, "extensions")
BASE = "KHR_gaussian_splatting"
SPZ = f"{BASE}_compression_spz_2"
PREFIX = "KHR_gaussian_splatting:"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("extensionsRequired", ["KHR_draco"]), UnsupportedError, "needs extension KHR_draco"),
        (("bufferViews", 0, "extensions", {"EXT_meshopt_compression": {}}), FormatError, "mode: is missing"),
        (("bufferViews", 0, "extensions", {"X_packed": {}}), UnsupportedError, "compressed by X_packed"),
        (("buffers", 0, "uri", "../../etc/passwd"), FormatError, "leads out of the folder"),
        (("bufferViews", 0, "buffer", 1), FormatError, r"buffers\.1"),
        (("accessors", 0, "sparse", {"count": 1}), UnsupportedError, "sparse"),
        (("accessors", 0, "count", 5), FormatError, r"5 values, POSITION|POSITION 5|end behind"),
        (("accessors", 0, "count", 4000000000), FormatError, "end behind their buffer view"),
        (("accessors", 0, "count", -4), FormatError, "is -4"),
        (("accessors", 0, "count", 0), FormatError, "has no values"),
        (("accessors", 0, "count", True), FormatError, "missing or no int"),
        (("accessors", 0, "count", 4.5), FormatError, "missing or no int"),
        (("accessors", 0, "type", "VEC2"), FormatError, "has type VEC2"),
        (("accessors", 0, "type", "VEC4"), FormatError, "end behind|is no VEC3"),
        (("accessors", 0, "componentType", 5125), FormatError, "of 5125"),
        (("accessors", 0, "bufferView", 99), FormatError, r"bufferViews\.99"),
        (("accessors", 0, "bufferView", None), FormatError, "bufferView"),
        (("bufferViews", 0, "byteOffset", 1 << 40), FormatError, "ends at byte"),
        (("bufferViews", 0, "byteStride", 4), FormatError, "4 bytes for each VEC3"),
        ((*ATTRIBUTES, f"{PREFIX}OPACITY", None), FormatError, "OPACITY: is missing .an early draft"),
        ((*ATTRIBUTES, f"{PREFIX}SH_DEGREE_1_COEF_1", None), FormatError, "SH_DEGREE_1_COEF_1: is missing"),
        ((*ATTRIBUTES, f"{PREFIX}SH_DEGREE_4_COEF_0", 0), UnsupportedError, "SH degree 4"),
        ((*ATTRIBUTES, "POSITION", "0"), FormatError, "no int"),
        (("meshes", 0, "primitives", 0, "mode", 4), FormatError, "have to be points"),
        ((*EXTENSIONS, {BASE: {"kernel": "cube"}}), UnsupportedError, "kernel 'cube'"),
        ((*EXTENSIONS, {BASE: {"extensions": {"X_y": {}}}}), UnsupportedError, "extension X_y"),
        ((*EXTENSIONS, {BASE: {"extensions": {SPZ: 4}}}), FormatError, "bufferView"),
        ((*EXTENSIONS, 7), FormatError, "extensions: is missing or no dict"),
        (("meshes", 0, "primitives", []), FormatError, "has no Gaussians"),
        (("meshes", []), FormatError, "meshes.0"),
        (("nodes", [{"children": [0]}]), FormatError, "two parents, or is its own"),
        (("nodes", [{"mesh": 0, "children": [0]}]), FormatError, "two parents, or is its own"),
        (("nodes", [{"children": [1, 2]}, {"mesh": 0}, {"mesh": 0}]), UnsupportedError, "two places"),
        (("nodes", [{"mesh": 0, "matrix": [1, 2]}]), FormatError, "has 2 numbers"),
        (("nodes", [{"mesh": 0, "matrix": [1e400] * 16}]), FormatError, "is not finite"),
        (("nodes", [{"mesh": 0, "scale": [1, 1, 0]}]), UnsupportedError, "makes the scene flat"),
        (("nodes", [{"mesh": 0, "translation": "x"}]), FormatError, "translation"),
        (("nodes", [7]), FormatError, "no dict"),
        (("scene", 3), FormatError, "scenes"),
        (("scenes", [{"nodes": [9]}]), FormatError, "nodes"),
    ],
)  # fmt: skip
def test_lies(tmp_path, rng, change, error, message):
    root, content = writers.glb_scene([_attributes(rng, 4, 1)])
    assert len(_read(tmp_path, root, content)) == 4
    with pytest.raises(error, match=message):
        _read(tmp_path, _changed(root, *change), content)


def test_bytes_used_again_and_again(tmp_path, rng):
    root, content = writers.glb_scene([_attributes(rng, 400, 0)])
    root["meshes"][0]["primitives"] *= 3
    with pytest.raises(FormatError, match="same bytes"):
        _read(tmp_path, root, content)


def test_container(tmp_path, rng):
    root, content = writers.glb_scene([_attributes(rng, 4)])
    good = writers.glb_bytes(root, content)
    path = tmp_path / "a.glb"
    text_bytes = struct.unpack_from("<I", good, 12)[0]
    cases = [
        (good + b"abcd", FormatError, "4 bytes after the end"),
        (good[:-4], TruncatedError, "promises"),
        (good[:15], TruncatedError, "inside the header"),
        (good[:4] + b"\1" + good[5:], UnsupportedError, "glTF version 1"),
        (good[:16] + b"JSOM" + good[20:], FormatError, "expected JSON"),
        (good[: 20 + text_bytes + 4] + b"BIM\0" + good[28 + text_bytes :], FormatError, "expected BIN"),
        (good[:20] + b"[" * text_bytes + good[20 + text_bytes :], FormatError, "is not JSON"),
        (good[:20] + b"[]".ljust(text_bytes) + good[20 + text_bytes :], FormatError, "is not an object"),
        (good[:20] + b"\xff" * text_bytes + good[20 + text_bytes :], FormatError, "is not JSON"),
        (writers.glb_bytes(root), FormatError, r"buffers.0.: has no content"),
        (writers.glb_bytes({"asset": {"version": "2.0"}}), FormatError, "no Gaussians"),
    ]
    for bad, error, message in cases:
        path.write_bytes(bad)
        with pytest.raises(error, match=message):
            formats.read(path)
    path.write_bytes(good)
    for limits in (Limits(max_gaussians=3), Limits(max_array_bytes=100), Limits(max_json_bytes=100)):
        with pytest.raises(LimitExceededError):
            formats.read(path, limits=limits)


def test_json_damage(tmp_path, rng):
    """Whatever the JSON says, one error of ours; deleted, replaced and exchanged values at every place."""
    root, content = writers.glb_scene([_attributes(rng, 3, 1)], [{"mesh": 0, "scale": [2, 2, 2]}])

    def places(value, path=()):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in items:
            yield (*path, key)
            yield from places(child, (*path, key))

    for path in places(root):
        for value in (None, 0, -1, 10**30, 1.5, "x", [], {}, [[]], True):
            changed = _changed(root, *path, value) if value is not None or isinstance(path[-1], str) else root
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SplatCodecWarning)
                try:
                    scene = _read(tmp_path, changed, content)
                except SplatCodecError:
                    continue
            assert len(scene) <= 3


# --------------------------------------------------------------------------------------------------------- writing


def _parsed(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    magic, version, length, text_bytes, kind = struct.unpack_from("<4sIII4s", raw)
    assert (magic, version, length, kind) == (b"glTF", 2, len(raw), b"JSON")
    bin_bytes, kind = struct.unpack_from("<I4s", raw, 20 + text_bytes)
    assert (kind, text_bytes % 4, bin_bytes % 4) == (b"BIN\0", 0, 0)
    assert 28 + text_bytes + bin_bytes == len(raw)
    return json.loads(raw[20 : 20 + text_bytes]), raw[28 + text_bytes :]


@pytest.mark.parametrize("quality", [None, 70.0])
def test_written_file_by_a_plain_reader(tmp_path, rng, quality):
    source = formats.read(Path(__file__).parent / "data" / "t5.ply")
    path = tmp_path / "a.glb"
    losses = _write(source, path, quality=quality)
    # With a quality only Gaussians that show are there, in their order.
    source = source.selected(np.isin(source.means[:, 0], formats.read(path).means[:, 0]))
    count = len(source)
    assert count == 5 if quality is None else count
    assert any("states no frame: taken to be in RDF" in loss for loss in losses)
    root, content = _parsed(path)
    assert root["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert "extensionsRequired" not in root
    primitive = root["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    assert primitive["extensions"]["KHR_gaussian_splatting"]["kernel"] == "ellipse"
    assert root["buffers"] == [{"byteLength": len(content)}]
    dtypes = {5126: "<f4", 5122: "<i2", 5121: "u1"}
    found = {}
    for name, index in primitive["attributes"].items():
        accessor = root["accessors"][index]
        view = root["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        dtype = np.dtype(dtypes[accessor["componentType"]])
        assert view["byteLength"] == count * width * dtype.itemsize
        assert (dtype.itemsize * width) % 4 == 0, "vertex attributes are four bytes apart"
        values = np.frombuffer(content, dtype, count * width, view["byteOffset"]).reshape(count, width)
        found[name.removeprefix(PREFIX)] = values
        if name == "POSITION":
            assert accessor["min"] == values.min(axis=0).tolist()
            assert accessor["max"] == values.max(axis=0).tolist()
    np.testing.assert_array_equal(found["POSITION"], source.means * np.float32([-1, -1, 1]))
    rotation = found["ROTATION"] / (32767 if quality else 1)
    np.testing.assert_allclose(np.linalg.norm(rotation, axis=1), 1, atol=1e-4)
    expected = TO_RDF @ _covariances(source.quats[:, [1, 2, 3, 0]], np.exp(source.scales)) @ TO_RDF
    np.testing.assert_allclose(_covariances(rotation, found["SCALE"]), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["OPACITY"][:, 0], source.alphas(), atol=1e-7)
    np.testing.assert_array_equal(found["SH_DEGREE_0_COEF_0"], source.sh0[:, 0])
    np.testing.assert_array_equal(found["SH_DEGREE_1_COEF_0"], -source.shN[:, 0])
    np.testing.assert_array_equal(found["SH_DEGREE_1_COEF_1"], source.shN[:, 1])
    np.testing.assert_array_equal(found["SH_DEGREE_1_COEF_2"], -source.shN[:, 2])
    np.testing.assert_allclose(found["COLOR_0"][:, 3] / 255, source.alphas(), atol=0.5 / 255 + 1e-6)


def test_written_spz(tmp_path):
    source = formats.read(Path(__file__).parent / "data" / "t5.ply")
    path = tmp_path / "a.glb"
    _write(source, path, version=2)
    root, content = _parsed(path)
    name = "KHR_gaussian_splatting_compression_spz_2"
    assert root["extensionsRequired"] == root["extensionsUsed"] == ["KHR_gaussian_splatting", name]
    primitive = root["meshes"][0]["primitives"][0]
    view = root["bufferViews"][primitive["extensions"]["KHR_gaussian_splatting"]["extensions"][name]["bufferView"]]
    (tmp_path / "a.spz").write_bytes(content[view["byteOffset"] : view["byteOffset"] + view["byteLength"]])
    inside = formats.read(tmp_path / "a.spz")
    assert inside.metadata["spz"]["version"] == 2
    assert sorted(inside.means[:, 0]) == pytest.approx(sorted(-source.means[:, 0]), abs=2**-13)
    for index in primitive["attributes"].values():
        accessor = root["accessors"][index]
        assert accessor["count"] == 5
        assert "bufferView" not in accessor
    assert {"POSITION", "COLOR_0", f"{PREFIX}SH_DEGREE_1_COEF_2"} < set(primitive["attributes"])


def test_other_frames_are_turned(tmp_path):
    source = formats.read(Path(__file__).parent / "data" / "t5.ply").replaced(
        metadata={"frame": "LUF", "up": [0, 1, 0]}
    )
    path = tmp_path / "a.glb"
    _write(source, path)
    again = formats.read(path)
    np.testing.assert_array_equal(again.means, source.means * np.float32([-1, -1, 1]))
    assert again.metadata == {"frame": "RDF", "up": [0.0, -1.0, 0.0]}
