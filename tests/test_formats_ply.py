"""PLY: any order, type and byte order of columns, exact tables, and what is refused; plyfile is the oracle."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import format_writers as writers
import numpy as np
import plyfile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec import formats
from splatcodec.errors import (
    FormatError,
    LimitExceededError,
    ParameterError,
    SplatCodecWarning,
    TruncatedError,
    UnsupportedError,
)
from splatcodec.formats import compressed_ply, ply
from splatcodec.gaussians import SH_C0, Gaussians
from splatcodec.limits import Limits

DATA = Path(__file__).parent / "data"
STATIC = Path(__file__).parents[2] / "shared" / "data" / "static"
needs_static = pytest.mark.skipif(not STATIC.is_dir(), reason="the real scenes are not part of the repository")
FORMATS = ["binary_little_endian", "binary_big_endian", "ascii"]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def _read(tmp_path: Path, content: bytes, **kwargs) -> Gaussians:
    path = tmp_path / "scene.ply"
    path.write_bytes(content)
    return formats.read(path, **kwargs)


def _check(scene: Gaussians, columns: dict[str, np.ndarray]) -> None:
    """`scene` holds exactly the canonical ones of `columns`, as float32."""
    rest = sum(name.startswith("f_rest_") for name in columns)

    def stack(*names):
        with np.errstate(over="ignore"):
            return np.stack([columns[name].astype(np.float32) for name in names], axis=1)

    np.testing.assert_array_equal(scene.means, stack("x", "y", "z"))
    np.testing.assert_array_equal(scene.quats, stack("rot_0", "rot_1", "rot_2", "rot_3"))
    np.testing.assert_array_equal(scene.scales, stack("scale_0", "scale_1", "scale_2"))
    np.testing.assert_array_equal(scene.opacities, stack("opacity")[:, 0])
    np.testing.assert_array_equal(scene.sh0[:, 0], stack("f_dc_0", "f_dc_1", "f_dc_2"))
    for channel in range(3):
        for k in range(rest // 3):
            np.testing.assert_array_equal(
                scene.shN[:, k, channel], columns[f"f_rest_{channel * (rest // 3) + k}"].astype(np.float32)
            )
    assert scene.shN.shape[1] == rest // 3


# --------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rest", [0, 9, 24, 45])
def test_every_degree_and_format(tmp_path, rng, format, rest):
    columns = writers.splat_columns(rng, 13, rest)
    _check(_read(tmp_path, writers.ply_bytes(columns, format)), columns)


@st.composite
def ply_files(draw):
    """Columns in any order and of any type, and the bytes of a PLY file that holds them."""
    count = draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = writers.splat_columns(rng, count, draw(st.sampled_from([0, 9, 24, 45])))
    dtypes = st.sampled_from(["f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4"])
    if draw(st.booleans()):
        for name in columns:
            if draw(st.booleans()):
                columns[name] = (columns[name] * 40).clip(0, 120).astype(draw(dtypes))
    normals = draw(st.sampled_from(["none", "zero", "set"]))
    extras = {f"extra{i}": rng.integers(0, 100, count).astype(draw(dtypes)) for i in range(draw(st.integers(0, 3)))}
    if normals != "none":
        zero = np.zeros(count, np.float32)
        columns |= dict.fromkeys(("nx", "ny", "nz"), zero)
    if normals == "set":
        extras |= {name: rng.standard_normal(count).astype(np.float32) for name in ("nx", "nz")}
    columns |= extras
    order = draw(st.permutations(list(columns)))
    columns = {name: columns[name] for name in order}
    format, newline = draw(st.sampled_from(FORMATS)), draw(st.sampled_from(["\n", "\r\n", "  \n", "\n\n", "\n \r\n"]))
    content = writers.ply_bytes(columns, format, newline)
    return columns, extras if count else {}, content, newline == "\n"


@settings(deadline=None, max_examples=80)
@given(ply_files())
def test_any_order_type_and_newline(case):
    columns, extras, content, plain = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.ply"
        path.write_bytes(content)
        scene = formats.read(path)
        table = ply.read_table(path)
        _check(scene, columns)
        assert set(scene.extras) == set(extras) or not len(scene)
        for name, values in extras.items():
            assert scene.extras[name].dtype == values.dtype
            np.testing.assert_array_equal(scene.extras[name], values)
        assert list(table.columns) == list(columns)
        for name, values in columns.items():
            assert table.columns[name].dtype == values.dtype
            np.testing.assert_array_equal(table.columns[name], values)
        if table.header.format != "ascii":
            out = io.BytesIO()
            ply.write_table(table, out)
            assert out.getvalue() == content
        if plain:
            oracle = plyfile.PlyData.read(path)["vertex"]
            for name in columns:
                np.testing.assert_array_equal(table.columns[name], oracle[name])
        # Canonical order and back: nothing is lost but columns' types.
        formats.write(scene, Path(folder) / "again.ply")
        again = formats.read(Path(folder) / "again.ply")
        _check(again, columns)
        assert set(again.extras) == set(scene.extras)


def test_comments_and_antialiasing(tmp_path, rng):
    columns = writers.splat_columns(rng, 2)
    for comments, expected in [
        (("SplatRenderMode: mip",), True),
        (("SplatRenderMode:  default",), False),
        (("antialiased 1",), True),
        (("antialiased 1", "antialiased 0"), False),
        (("antialiased 0", "made by hand", "SplatRenderMode: mip"), True),
        (("ünïcode", "antialiased maybe"), None),
        ((), None),
    ]:
        scene = _read(tmp_path, writers.ply_bytes(columns, comments=comments))
        assert scene.metadata.get("antialiased") is expected
        assert scene.metadata.get("comments", []) == list(comments)


def test_invalid_text_in_comments(tmp_path, rng):
    content = writers.ply_bytes(writers.splat_columns(rng, 1), comments=("a@b",)).replace(b"@", b"\xff")
    assert _read(tmp_path, content).metadata["comments"] == ["a\ufffdb"]


def test_lone_cr_header(tmp_path, rng):
    columns = writers.splat_columns(rng, 3)
    _check(_read(tmp_path, writers.ply_bytes(columns, newline="\r")), columns)
    with pytest.raises(UnsupportedError, match="lone CR"):
        _read(tmp_path, writers.ply_bytes(columns, "ascii", newline="\r"))


def test_flat_gaussians_without_scale_2(tmp_path, rng):
    columns = writers.splat_columns(rng, 5, 9)
    for dtype in ("f4", "f8"):
        flat = {name: values.astype(dtype) for name, values in columns.items() if name != "scale_2"}
        scene = _read(tmp_path, writers.ply_bytes(flat))
        assert (scene.scales[:, 2] == -np.inf).all()
        np.testing.assert_array_equal(scene.scales[:, 0], columns["scale_0"])
        np.testing.assert_array_equal(scene.scales[:, 1], columns["scale_1"])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_degree_4_is_cut_to_3(tmp_path, rng, dtype):
    columns = {name: values.astype(dtype) for name, values in writers.splat_columns(rng, 4, 72).items()}
    with pytest.warns(SplatCodecWarning, match="degree 4"):
        scene = _read(tmp_path, writers.ply_bytes(columns))
    assert scene.sh_degree == 3
    np.testing.assert_array_equal(scene.shN[:, 14, 2], columns["f_rest_62"].astype(np.float32))


def test_doubles_beyond_float32_become_infinite(tmp_path, rng):
    columns = writers.splat_columns(rng, 1)
    columns["x"] = np.array([1e300])
    for format in FORMATS:
        assert _read(tmp_path, writers.ply_bytes(columns, format)).means[0, 0] == np.inf


def test_normals_found_late(tmp_path):
    # The first blocks are all zero: the array is made when a normal is met.
    count = 40_000
    columns = {name: np.zeros(count, np.float32) for name in writers.splat_columns(np.random.default_rng(0), 0)}
    columns |= {name: np.zeros(count, np.float32) for name in ("nx", "ny", "nz")}
    columns["ny"][-1] = np.nan
    columns["nz"][0] = -0.0
    scene = _read(tmp_path, writers.ply_bytes(columns))
    assert list(scene.extras) == ["ny"]
    np.testing.assert_array_equal(scene.extras["ny"], columns["ny"])


def test_elements_after_and_before(tmp_path, rng):
    columns = writers.splat_columns(rng, 3)
    after = ("element face 2", "property list uchar int i", "property float a", "element camera 1", "property double b")
    for format, order in [("binary_little_endian", "little"), ("binary_big_endian", "big")]:
        tail = b"".join(
            bytes([n]) + b"".join(i.to_bytes(4, order) for i in range(n)) + b"abcd" for n in (3, 0)
        ) + bytes(8)
        content = writers.ply_bytes(columns, format, more_header=after, tail=tail)
        with pytest.warns(SplatCodecWarning, match=r"dropped: face \(2 rows\), camera \(1 rows\)"):
            _check(_read(tmp_path, content), columns)
        table = ply.read_table(tmp_path / "scene.ply")
        assert table.trailing == tail
        out = io.BytesIO()
        ply.write_table(table, out)
        assert out.getvalue() == content
        for cut in range(1, len(tail) + 1):
            with pytest.raises(TruncatedError):
                _read(tmp_path, content[:-cut])
            with pytest.raises(TruncatedError):
                ply.read_table(tmp_path / "scene.ply")
        with pytest.raises(FormatError, match="2 bytes after the last declared row"):
            _read(tmp_path, content + b"xx")
        assert ply.read_table(tmp_path / "scene.ply").trailing == tail + b"xx"
    # In front of the vertices.
    front = writers.ply_bytes({"a": np.arange(4, dtype=np.float32)}, element="camera")
    head, rows = front.split(b"end_header\n")
    _, body = writers.ply_bytes(columns).split(b"element vertex")
    content = head + b"element vertex" + body.replace(b"end_header\n", b"end_header\n" + rows)
    with pytest.warns(SplatCodecWarning, match="camera"):
        _check(_read(tmp_path, content), columns)
    with pytest.raises(UnsupportedError, match="before the vertices"):
        ply.read_table(tmp_path / "scene.ply")


def test_ascii_elements_after(tmp_path, rng):
    columns = writers.splat_columns(rng, 3)
    after = ("element face 2", "property list uchar int i", "element none 5", "element b 1", "property char c")
    tail = b"3 0 1 2\n\n0\n 7 \n"
    content = writers.ply_bytes(columns, "ascii", more_header=after, tail=tail)
    with pytest.warns(SplatCodecWarning, match=r"face \(2 rows\)"):
        _check(_read(tmp_path, content + b"\n \n"), columns)
    assert ply.read_table(tmp_path / "scene.ply").trailing == tail + b"\n \n"
    with pytest.raises(FormatError, match="after the last declared row"):
        _read(tmp_path, content + b"8\n")
    for cut in (1, 2, 3, 4, 5, 6, 10):
        with pytest.raises(TruncatedError):
            _read(tmp_path, content[:-cut])


def test_a_list_of_negative_length(tmp_path, rng):
    more = ("element face 1", "property list char int i")
    content = writers.ply_bytes(writers.splat_columns(rng, 1), more_header=more, tail=b"\xff")
    with pytest.raises(FormatError, match="negative length"):
        _read(tmp_path, content)


# --------------------------------------------------------------------------------------------------------- refusal


def _header(*lines: str) -> bytes:
    return "\n".join(["ply", *lines, "end_header", ""]).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"solid cube\n", "not a PLY file"),
        (_header("format ascii 1.0"), "no element 'vertex'"),
        (_header("format ascii 1.0", "element vertex 1"), "no properties"),
        (_header("element vertex 1", "property float x"), "no format line"),
        (_header("format binary 1.0"), "unknown format 'binary'"),
        (_header("format ascii 1.0", "format ascii 1.0"), "makes no sense"),
        (_header("format ascii 1.0", "element vertex -1"), "not a whole number"),
        (_header("format ascii 1.0", "element vertex 1_0"), "not a whole number"),
        (_header("format ascii 1.0", "element vertex ٣"), "not a whole number"),
        (_header("format ascii 1.0", "element vertex"), "makes no sense"),
        (_header("format ascii 1.0", "property float x"), "makes no sense"),
        (_header("format ascii 1.0", "element vertex 1", "property half x"), "not a known type"),
        (_header("format ascii 1.0", "element vertex 1", "property list float int x"), "length of type float"),
        (_header("format ascii 1.0", "element vertex 1", *["property float x"] * 2), "'x' comes twice"),
        (_header("format ascii 1.0", "element vertex 0", "element vertex 0"), "'vertex' comes twice"),
        (_header("format ascii 1.0", "what is this"), "makes no sense"),
    ],
)
def test_bad_headers(tmp_path, content, message):
    path = tmp_path / "scene.ply"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        formats.read(path, format="ply")
    assert caught.value.file == str(path)
    assert caught.value.chunk in ("header", "vertex")


def test_refused_features(tmp_path, rng):
    with pytest.raises(UnsupportedError, match=r"version '2\.0'"):
        _read(tmp_path, _header("format ascii 2.0"))
    with pytest.raises(UnsupportedError, match="list properties of vertices"):
        _read(tmp_path, _header("format ascii 1.0", "element vertex 1", "property list uchar int x"))
    with pytest.raises(UnsupportedError, match="compressed-ply"):
        formats.read(DATA / "t5.compressed.ply", format="ply")
    with pytest.raises(FormatError, match="not a compressed PLY"):
        formats.read(DATA / "t5.ply", format="compressed-ply")
    points = {name: np.zeros(2, np.float32) for name in ("x", "y", "z", "red", "green", "blue")}
    with pytest.raises(FormatError, match="a point cloud, not Gaussians"):
        _read(tmp_path, writers.ply_bytes(points))
    columns = writers.splat_columns(rng, 2)
    del columns["rot_2"], columns["opacity"]
    with pytest.raises(FormatError, match="missing: opacity, rot_2"):
        _read(tmp_path, writers.ply_bytes(columns))


@pytest.mark.parametrize("rest", [1, 3, 8, 12, 44, 46, 48, 75])
def test_bad_number_of_f_rest(tmp_path, rng, rest):
    with pytest.raises(FormatError, match=f"{rest} f_rest properties"):
        _read(tmp_path, writers.ply_bytes(writers.splat_columns(rng, 1, rest)))


def test_gap_in_f_rest(tmp_path, rng):
    columns = writers.splat_columns(rng, 1, 10)
    del columns["f_rest_4"]
    with pytest.raises(FormatError, match="f_rest_4 is missing"):
        _read(tmp_path, writers.ply_bytes(columns))


def test_header_limit(tmp_path, rng):
    content = writers.ply_bytes(writers.splat_columns(rng, 1), comments=("x" * 99,) * 2000)
    assert len(_read(tmp_path, content).metadata["comments"]) == 2000
    with pytest.raises(LimitExceededError, match="header is longer"):
        _read(tmp_path, content, limits=Limits(max_header_bytes=100_000))
    with pytest.raises(TruncatedError, match="header does not end"):
        _read(tmp_path, content[:150_000])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b" 7.25", b" 7.2x", "are not numbers"),
        (b" 7.25", b" 7_25", "not a number"),
        (b" 7.25", b"", "13 values, expected 14"),
        (b" 7.25", b" 1 2", "15 values, expected 14"),
    ],
)
def test_bad_ascii_rows(tmp_path, before, after, message):
    columns = {name: np.zeros(4, np.float32) for name in writers.splat_columns(np.random.default_rng(0), 0)}
    columns["rot_3"][2] = 7.25
    content = writers.ply_bytes(columns, "ascii")
    assert content.count(before) == 1
    with pytest.raises(FormatError, match=message) as caught:
        _read(tmp_path, content.replace(before, after))
    assert content[: caught.value.offset].count(b"\n") == content[: content.index(before)].count(b"\n")


@pytest.mark.parametrize("value", [-1.0, 256.0, 1.5, np.nan])
def test_ascii_integers_out_of_range(tmp_path, rng, value):
    columns = writers.splat_columns(rng, 2) | {"label": np.array([0, 77], "u1")}
    content = writers.ply_bytes(columns, "ascii").replace(b" 77\n", f" {value}\n".encode())
    with pytest.raises(FormatError, match="does not fit uchar"):
        _read(tmp_path, content)


def test_ascii_special_values(tmp_path, rng):
    columns = writers.splat_columns(rng, 3)
    columns["opacity"] = np.array([np.nan, np.inf, -np.inf], np.float32)
    _check(_read(tmp_path, writers.ply_bytes(columns, "ascii")), columns)


# --------------------------------------------------------------------------------------------------------- writing


def test_canonical_output(tmp_path):
    scene = formats.read(DATA / "t5.ply").replaced(
        extras={
            "label": np.arange(5, dtype=">i2"),
            "motion": np.arange(10, dtype=np.float64).reshape(5, 2),
            "nz": np.full(5, 2, np.float32),
            "half": np.arange(5, dtype=np.float16),
            "id": np.arange(5, dtype=np.int64),
        },
        metadata={"comments": ["first", "two\nlines"], "antialiased": True, "frame": "RDF"},
    )
    path = tmp_path / "a.ply"
    formats.write(scene, path)
    oracle = plyfile.PlyData.read(path)
    rest = [f"f_rest_{i}" for i in range(9)]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
    names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    names += ["label", "motion_0", "motion_1", "half", "id"]
    assert [prop.name for prop in oracle["vertex"].properties] == names
    assert oracle["vertex"]["label"].dtype == np.int16
    assert oracle["vertex"]["motion_1"].dtype == np.float64
    assert oracle["vertex"]["id"].dtype == np.int32
    np.testing.assert_array_equal(oracle["vertex"]["motion_1"], [1, 3, 5, 7, 9])
    np.testing.assert_array_equal(oracle["vertex"]["f_rest_5"], scene.shN[:, 2, 1])
    assert oracle.comments == ["first", "two lines", "SplatRenderMode: mip", 'splatcodec.metadata {"frame":"RDF"}']
    again = formats.read(path)
    assert again.metadata["frame"] == "RDF"
    assert again.metadata["antialiased"] is True
    np.testing.assert_array_equal(again.extras["nz"], 2)
    # A second time round, nothing changes any more.
    formats.write(again, tmp_path / "b.ply")
    assert (tmp_path / "b.ply").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"x": np.zeros(5)}, "name of another column"),
        ({"f_rest_9": np.zeros(5)}, "name of another column"),
        ({"a": np.zeros((5, 2)), "a_1": np.zeros(5)}, "name of another column"),
        ({"a b": np.zeros(5)}, "cannot be a PLY property name"),
        ({"": np.zeros(5)}, "cannot be a PLY property name"),
        ({"big": np.full(5, 2**40)}, "type int64 that PLY cannot hold"),
        ({"nx": np.zeros((5, 1))}, "one value a Gaussian"),
    ],
)
def test_extras_that_ply_cannot_hold(tmp_path, extras, message):
    scene = formats.read(DATA / "t5.ply").replaced(extras=extras)
    with pytest.raises(ParameterError, match=message):
        formats.write(scene, tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("degree", range(4))
def test_empty_scene(tmp_path, degree):
    formats.write(Gaussians.empty(degree), tmp_path / "a.ply")
    scene = formats.read(tmp_path / "a.ply")
    assert (scene.num_gaussians, scene.sh_degree) == (0, degree)


def test_many_blocks(tmp_path, rng):
    """More rows than a block has, with every kind of column, survive read and write."""
    columns = writers.splat_columns(rng, 30_011, 45)
    scene = _read(tmp_path, writers.ply_bytes(columns))
    _check(scene, columns)
    mixed = columns | {"time": rng.standard_normal(30_011)}
    again = _read(tmp_path, writers.ply_bytes(mixed))
    _check(again, columns)
    np.testing.assert_array_equal(again.extras["time"], mixed["time"])
    formats.write(again, tmp_path / "b.ply")
    final = formats.read(tmp_path / "b.ply")
    _check(final, columns)
    np.testing.assert_array_equal(final.extras["time"], mixed["time"])


# ----------------------------------------------------------------------------------------------------------- table


@needs_static
@pytest.mark.parametrize("name", ["banana.ply", "leica.ply", "dog-8bit.ply", "donut.ply"])
def test_real_tables_are_exact(tmp_path, name):
    table = ply.read_table(STATIC / name)
    oracle = plyfile.PlyData.read(STATIC / name)["vertex"]
    assert list(table.columns) == [prop.name for prop in oracle.properties]
    scene = formats.read(STATIC / name)
    _check(scene, {k: v for k, v in table.columns.items() if k not in ("nx", "ny", "nz")})
    for column, values in table.columns.items():
        np.testing.assert_array_equal(values, oracle[column])
    ply.write_table(table, tmp_path / "a.ply")
    assert (tmp_path / "a.ply").read_bytes() == (STATIC / name).read_bytes()


@pytest.mark.parametrize("format", ["binary_little_endian", "binary_big_endian"])
def test_table_keeps_every_bit_pattern(tmp_path, rng, format):
    # Signalling and quiet NaNs with payloads, both zeros, denormals.
    words = rng.integers(0, 2**32, 5000, np.uint32)
    words[:4] = [0x7F800001, 0xFFC12345, 0x80000000, 1]
    columns = {"a": words.view(np.float32), "b": np.resize(words, 10_000).view(np.float64), "c": words}
    path = tmp_path / "a.ply"
    for chosen in (columns, {"a": columns["a"], "d": columns["a"][::-1].copy()}):
        path.write_bytes(writers.ply_bytes(chosen, format, tail=b"kept"))
        table = ply.read_table(path)
        ply.write_table(table, tmp_path / "b.ply", overwrite=True)
        assert (tmp_path / "b.ply").read_bytes() == path.read_bytes()


def test_ascii_table(tmp_path, rng):
    columns = {
        "a": rng.standard_normal(50).astype(np.float32),
        "b": rng.standard_normal(50),
        "c": np.arange(50, dtype="u1"),
    }
    (tmp_path / "a.ply").write_bytes(writers.ply_bytes(columns, "ascii", comments=("x",)))
    table = ply.read_table(tmp_path / "a.ply")
    ply.write_table(table, tmp_path / "b.ply")
    again = ply.read_table(tmp_path / "b.ply")
    assert again.header == table.header
    for name, values in columns.items():
        np.testing.assert_array_equal(again.columns[name], values)


def test_table_checks(tmp_path):
    table = ply.read_table(DATA / "t5.ply")
    with pytest.raises(ParameterError, match="not those of the header"):
        ply.write_table(ply.PlyTable(table.header, dict(reversed(table.columns.items())), b""), tmp_path / "a")
    columns = {**table.columns, "y": table.columns["y"].astype(np.float64)}
    with pytest.raises(ParameterError, match=r"expected \(5,\) float32"):
        ply.write_table(ply.PlyTable(table.header, columns, b""), tmp_path / "a")
    with pytest.raises(ParameterError, match="No such file"):
        ply.read_table(tmp_path / "none.ply")
    with pytest.raises(FormatError) as caught:
        ply.read_table(DATA / "t5.sog")
    assert caught.value.file == str(DATA / "t5.sog")


# ------------------------------------------------------------------------------------------------------ compressed


def _decode_compressed(ranges: np.ndarray, words: np.ndarray, i: int) -> dict[str, np.ndarray]:
    """Gaussian i by the description, in plain numbers."""
    low_high = ranges[i // 256].reshape(3, 2, 3).astype(float)
    low_high[1] = low_high[1].clip(-20, 20)
    position, rotation, scale, colour = (int(word) for word in words[i])

    def xyz(word, group):
        unit = np.array([(word >> 21) / 2047, (word >> 11 & 1023) / 1023, (word & 2047) / 2047])
        return low_high[group, 0] + (low_high[group, 1] - low_high[group, 0]) * unit

    rgb = np.array([colour >> 24, colour >> 16 & 255, colour >> 8 & 255]) / 255
    kept = [((rotation >> shift & 1023) / 1023 - 0.5) * 2**0.5 for shift in (20, 10, 0)]
    largest = max(0, 1 - sum(c * c for c in kept)) ** 0.5
    return {
        "means": xyz(position, 0),
        "scales": xyz(scale, 1),
        "sh0": (low_high[2, 0] + (low_high[2, 1] - low_high[2, 0]) * rgb - 0.5) / SH_C0,
        "quats": np.insert(kept, rotation >> 30, largest),
        "alphas": np.clip((colour & 255) / 255, 1e-6, 1 - 1e-6),
    }


@pytest.mark.parametrize(("rest", "columns"), [(0, 18), (9, 18), (24, 12), (45, 18), (72, 18)])
def test_compressed_ply(tmp_path, rng, rest, columns):
    count = 600
    ranges = np.sort(rng.uniform(-30, 30, (3, 3, 2, 3)), axis=2).astype(np.float32).reshape(3, 18)
    words = rng.integers(0, 2**32, (count, 4), np.uint32)
    sh = rng.integers(0, 256, (count, rest), np.uint8)
    sh[0], sh[1] = 0, 255
    path = tmp_path / "scene.ply"
    path.write_bytes(writers.compressed_ply_bytes(ranges, words, sh if rest else None, columns))
    if rest == 72:
        with pytest.warns(SplatCodecWarning, match="degree 4"):
            scene = formats.read(path)
    else:
        scene = formats.read(path)
    if columns == 12:
        ranges[:, 12:] = [0, 0, 0, 1, 1, 1]
    for i in (0, 1, 255, 256, 511, 512, 599):
        for name, expected in _decode_compressed(ranges, words, i).items():
            actual = scene.alphas() if name == "alphas" else getattr(scene, name)
            np.testing.assert_allclose(actual[i].ravel(), expected, atol=2e-5, rtol=2e-5, err_msg=name)
    for channel in range(3):
        for k in range(min(rest // 3, 15)):
            codes = sh[:, channel * (rest // 3) + k].astype(float)
            unit = np.where(codes == 0, 0, np.where(codes == 255, 1, (codes + 0.5) / 256))
            np.testing.assert_allclose(scene.shN[:, k, channel], (unit - 0.5) * 8, atol=1e-6)


def test_compressed_vector_words():
    """The documented words of the vector, in Morton order."""
    table = DATA / "t5.compressed.ply"
    words = np.frombuffer(table.read_bytes()[-5 * (16 + 9) : -5 * 9], "<u4").reshape(5, 4)
    assert [f"{word:08x}" for word in words[0]] == ["2c7ef03c", "20080200", "38ee3d55", "3366b980"]
    assert [f"{word:08x}" for word in words[4]] == ["001f17ff", "5b54856b", "aaa006aa", "ff7f000c"]
    assert (formats.read(table).shN[0] == 0.015625).all()


def test_compressed_refusals(tmp_path, rng):
    ranges, words = rng.uniform(0, 1, (1, 18)), rng.integers(0, 2**32, (9, 4), np.uint32)
    good = writers.compressed_ply_bytes(ranges, words, np.zeros((9, 9)))
    path = tmp_path / "scene.ply"
    for content, kind, message in [
        (good + b"x", FormatError, "1 bytes after"),
        (good[:-1], TruncatedError, "promises"),
        (good.replace(b"element chunk 1", b"element chunk 2"), FormatError, "2 chunks of 256 for 9"),
        (good.replace(b"element sh 9", b"element sh 8"), FormatError, "do not fit the vertices"),
        (good.replace(b"element sh 9", b"element th 9"), UnsupportedError, "elements chunk, vertex, th"),
        (good.replace(b"packed_scale", b"packed_scala"), FormatError, "packed_scale is missing"),
        (good.replace(b"float max_g", b"double max_g"), FormatError, "max_g has the wrong type"),
        (good.replace(b"float max_g", b"float max_h"), FormatError, "max_g is missing"),
        (good.replace(b"uint packed_scale", b"float packed_scale"), FormatError, "wrong type"),
        (good.replace(b"uchar f_rest_3", b"char f_rest_3"), FormatError, "not uchar"),
        (good.replace(b"uchar f_rest_3", b"uchar f_rust_3"), FormatError, "f_rest_3 is missing"),
        (good.replace(b"binary_little_endian", b"ascii"), UnsupportedError, "ascii"),
    ]:
        path.write_bytes(content)
        with pytest.raises(kind, match=message):
            formats.read(path)
    path.write_bytes(writers.compressed_ply_bytes(np.zeros((0, 18)), words[:0]))
    assert compressed_ply.read(path).num_gaussians == 0
