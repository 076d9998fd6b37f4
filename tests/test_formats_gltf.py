"""glTF as text: buffers beside the file or inside it, compressed by meshopt or not, and nothing outside its folder."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import format_writers as writers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec import formats
from splatcodec.cli import main as cli
from splatcodec.errors import (
    FormatError,
    LimitExceededError,
    SplatCodecError,
    TruncatedError,
    UnsupportedError,
)
from splatcodec.formats._meshopt import decode_attributes, unfiltered
from splatcodec.gaussians import Gaussians
from splatcodec.limits import Limits

STREAMS = json.loads((Path(__file__).parent / "data" / "meshopt.json").read_text())


def attributes_of(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(31)
    quats = rng.normal(size=(count, 4))
    values = {
        "POSITION": rng.normal(size=(count, 3)),
        "ROTATION": quats / np.linalg.norm(quats, axis=1, keepdims=True),
        "SCALE": np.exp(rng.normal(-2, 1, (count, 3))),
        "OPACITY": rng.uniform(0.1, 0.9, count),
        "SH_DEGREE_0_COEF_0": rng.normal(0, 0.3, (count, 3)),
    }
    return {name: array.astype("<f4") for name, array in values.items()}


@pytest.fixture
def scene(tmp_path) -> tuple[dict, bytes, Gaussians]:
    """JSON and buffer of a scene, and what the same in one binary file is read as."""
    root, content = writers.glb_scene([attributes_of(6)])
    path = tmp_path / "as-glb" / "scene.glb"
    path.parent.mkdir()
    path.write_bytes(writers.glb_bytes(root, content))
    return root, content, formats.read(path)


def gltf(folder: Path, root: dict, uri: str | None) -> Path:
    if uri is not None:
        root["buffers"][0]["uri"] = uri
    path = folder / "scene.gltf"
    path.write_text(json.dumps(root, indent=1))
    return path


def assert_same(a: Gaussians, b: Gaussians) -> None:
    for name in ("means", "quats", "scales", "opacities", "sh0", "shN"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.metadata == b.metadata


@pytest.mark.parametrize("uri", ["scene.bin", "buffers/a%20b.bin", "./buffers/a%20b.bin", "data"])
def test_a_buffer_beside_or_inside(tmp_path, scene, uri):
    root, content, wanted = scene
    (tmp_path / "buffers").mkdir()
    for name in ("scene.bin", "buffers/a b.bin"):
        (tmp_path / name).write_bytes(content)
    if uri == "data":
        uri = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
    path = gltf(tmp_path, root, uri)
    assert formats.detect(path).name == "glb"
    assert_same(formats.read(path), wanted)
    with formats.open_blocks(path) as blocks:
        assert blocks is not None
        assert_same(next(blocks.rows()).replaced(metadata=blocks.metadata), wanted)
    assert cli.main(["convert", str(path), str(tmp_path / "out.ply")]) == 0
    np.testing.assert_array_equal(formats.read(tmp_path / "out.ply").means, wanted.means)


def test_a_glb_whose_buffer_is_a_file(tmp_path, scene):
    root, content, wanted = scene
    (tmp_path / "values.bin").write_bytes(content)
    root["buffers"][0]["uri"] = "values.bin"
    (tmp_path / "scene.glb").write_bytes(writers.glb_bytes(root))
    assert_same(formats.read(tmp_path / "scene.glb"), wanted)


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("../outside.bin", FormatError, "leads out of the folder"),
        ("%2e%2e/outside.bin", FormatError, "leads out of the folder"),
        ("sub/../../outside.bin", FormatError, "leads out of the folder"),
        ("..\\outside.bin", FormatError, "leads out of the folder"),
        ("{outside}", FormatError, "leads out of the folder"),
        ("link/outside.bin", FormatError, "leads out of the folder"),
        ("link-to-file", FormatError, "leads out of the folder"),
        ("", FormatError, "leads out of the folder"),
        (".", FormatError, "leads out of the folder"),
        ("a%00b", FormatError, "leads out of the folder"),
        ("file:///etc/passwd", UnsupportedError, "is no file"),
        ("https://example.org/a.bin", UnsupportedError, "is no file"),
        ("C:/a.bin", UnsupportedError, "is no file"),
        ("missing.bin", FormatError, "missing.bin"),
        ("folder", FormatError, "is a directory"),
        ("short.bin", TruncatedError, "has 10 bytes"),
        ("data:;base64,!!!", FormatError, "no base64"),
        ("data:;base64,AAAA", TruncatedError, "has 3 bytes"),
    ],
)
def test_uris_that_are_refused(tmp_path, scene, uri, error, message):
    root, content, _ = scene
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "folder").mkdir()
    (tmp_path / "outside.bin").write_bytes(content)
    (inside / "short.bin").write_bytes(content[:10])
    os.symlink(tmp_path, inside / "link")
    os.symlink(tmp_path / "outside.bin", inside / "link-to-file")
    path = gltf(inside, root, uri.format(outside=tmp_path / "outside.bin"))
    with pytest.raises(error, match=message) as caught:
        formats.read(path)
    assert caught.value.file == str(path)


def test_text_that_is_no_scene(tmp_path, scene):
    root, _, _ = scene
    path = tmp_path / "scene.gltf"
    for text, error in (("{", FormatError), ("{}", FormatError), ('{"a": ' + "[" * 90000, FormatError)):
        path.write_text(text)
        with pytest.raises(error):
            formats.read(path)
    with pytest.raises(FormatError, match="has no content"):
        formats.read(gltf(tmp_path, root, None))
    with pytest.raises(LimitExceededError, match="more than the limit"):
        formats.read(path, limits=Limits(max_json_bytes=100))


# ---------------------------------------------------------------------------------------------------------- meshopt


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: f"{case['name']}-{case['count']}")
def test_streams_of_the_reference_encoder(case):
    """What meshoptimizer 1.3.0 encoded, and what its decoder made of it."""
    stream, content = (base64.b64decode(case[name]) for name in ("stream", "content"))
    got = unfiltered(decode_attributes(stream, case["count"], case["stride"]), case["filter"])
    wanted = np.frombuffer(content, np.uint8).reshape(got.shape)
    dtype = {"QUATERNION": "<i2", "COLOR": "u1" if case["stride"] == 4 else "<u2"}.get(case["filter"], "u1")
    # Filters are right to one unit in the last place, but for the exponential one.
    allowed = 1 if case["filter"] in ("QUATERNION", "COLOR") else 0
    assert np.abs(got.view(dtype).astype(int) - wanted.view(dtype)).max() <= allowed


def test_the_streams_have_every_way_to_tell_differences():
    versions, modes = set(), set()
    for case in STREAMS:
        stream = base64.b64decode(case["stream"])
        versions.add(stream[0])
        if stream[0] == 0xA1:
            modes |= {mode & 15 for mode in stream[-(case["stride"] // 4) :]}
    assert versions == {0xA0, 0xA1}
    assert modes == {0, 1, 2}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_streams_give_values_or_one_error(data):
    case = data.draw(st.sampled_from(STREAMS))
    stream = bytearray(base64.b64decode(case["stream"]))
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    stream = stream[: data.draw(st.integers(0, len(stream)) | st.just(len(stream)))]
    count = data.draw(st.sampled_from([1, case["count"], case["count"] + 1, 1 << 40]))
    stride = data.draw(st.sampled_from([case["stride"], 0, 3, 4, 256, 260]))
    try:
        content = decode_attributes(bytes(stream), count, stride)
        assert content.shape == (count, stride)
        assert unfiltered(content, data.draw(st.sampled_from(["NONE", "EXPONENTIAL"]))).shape == content.shape
    except SplatCodecError:
        pass


def test_what_filters_refuse():
    content = np.zeros((4, 12), np.uint8)
    with pytest.raises(UnsupportedError, match="OCTAHEDRAL"):
        unfiltered(content, "OCTAHEDRAL")
    for name in ("QUATERNION", "COLOR"):
        with pytest.raises(FormatError, match="elements of 12 bytes"):
            unfiltered(content, name)
    with pytest.raises(UnsupportedError, match="version 2"):
        decode_attributes(b"\xa2" + bytes(99), 1, 4)


@pytest.mark.parametrize("extension", ["EXT_meshopt_compression", "KHR_meshopt_compression"])
def test_a_scene_compressed_by_meshopt(tmp_path, extension):
    """Positions are those of a stream with the exponential filter, rotations those of one with its filter."""
    position, rotation = (
        next(case for case in STREAMS if (case["name"], case["count"]) == (name, 300)) for name in ("exp", "quat")
    )
    count = position["count"]
    root, content = writers.glb_scene([attributes_of(count)])
    attributes = root["meshes"][0]["primitives"][0]["attributes"]
    for case, name in ((position, "POSITION"), (rotation, "KHR_gaussian_splatting:ROTATION")):
        accessor = root["accessors"][attributes[name]]
        view = root["bufferViews"][accessor["bufferView"]]
        stream = base64.b64decode(case["stream"])
        facts = {"buffer": 0, "byteOffset": len(content), "byteLength": len(stream), "byteStride": case["stride"]}
        facts |= {"count": count, "mode": "ATTRIBUTES", "filter": case["filter"]}
        view |= {"buffer": 1, "byteOffset": 0, "byteLength": count * case["stride"], "extensions": {extension: facts}}
        if name != "POSITION":
            accessor |= {"componentType": 5122, "normalized": True}
        content += stream + bytes(-len(stream) % 4)
    root["buffers"] = [{"byteLength": len(content)}, {"byteLength": 9, "extensions": {extension: {"fallback": True}}}]
    root["extensionsRequired"] = [extension]
    path = tmp_path / "scene.glb"
    path.write_bytes(writers.glb_bytes(root, content))
    scene = formats.read(path)
    means = np.frombuffer(base64.b64decode(position["content"]), "<f4").reshape(-1, 3)
    np.testing.assert_array_equal(scene.means, means * np.float32([-1, -1, 1]))
    quats = np.frombuffer(base64.b64decode(rotation["content"]), "<i2").reshape(-1, 4)[:, [3, 0, 1, 2]] / 32767
    assert np.abs(np.abs(scene.quats) - np.abs(quats)).max() < 4e-5
    root["bufferViews"][root["accessors"][attributes["POSITION"]]["bufferView"]]["extensions"][extension]["count"] = (
        1 << 40
    )
    path.write_bytes(writers.glb_bytes(root, content))
    with pytest.raises(FormatError, match="elements need"):
        formats.read(path)
