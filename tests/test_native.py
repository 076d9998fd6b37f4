"""Lossless recompression of other formats' files: every value comes back, and damage is an error."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec import api
from splatcodec.bitstream.container import Chunk, Container, Feature, read_varint, write_container, write_varint
from splatcodec.cli.main import main
from splatcodec.errors import FormatError, SplatCodecError, SplatCodecWarning, UnsupportedError
from splatcodec.formats import _native_splat, formats, write
from splatcodec.formats._native import by_code, by_name
from splatcodec.formats.base import WriteOptions
from splatcodec.gaussians import Gaussians
from splatcodec.sample import sample_scene
from splatcodec.stages.inversions import inversions_of, places_of
from splatcodec.stages.lossless import block_counts, decode_columns, encode_columns
from splatcodec.stages.lossless_boxes import Boxes, normalized

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "formats" / "vectors"
ARRAYS = ("means", "quats", "scales", "opacities", "sh0", "shN")
# Every way to write a format that can be recompressed: name, version, suffix.
WAYS = [
    (name, version, fmt.suffixes[0])
    for name, fmt in sorted(formats().items())
    if by_name(name) is not None
    for version in (fmt.versions or (None,))
]
PLAIN = ("splat", "compressed-ply", "ksplat")  # whose files are their content


@pytest.fixture(autouse=True)
def as_columns(request, monkeypatch):
    """Files of tests are small, so most would be kept as they are; here columns are what is tested."""
    if "stored" not in request.node.name:
        monkeypatch.setattr("splatcodec.static.stored.is_smaller", lambda *_: False)


def same(a: Gaussians, b: Gaussians) -> bool:
    return all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ARRAYS)


def rows_of(scene: Gaussians) -> np.ndarray:
    """Rows of all values, sorted, so that scenes compare without their order."""
    flat = np.concatenate([getattr(scene, name).reshape(len(scene), -1) for name in ARRAYS], axis=1)
    return flat[np.lexsort(flat.T[::-1])]


def write_scene(scene: Gaussians, folder: Path, name: str, version: int | None, suffix: str) -> Path:
    path = folder / f"scene{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        write(scene, path, format=name, overwrite=True, options=WriteOptions(version=version))
    return path


def recompress(path: Path, folder: Path, reorder: bool = False) -> tuple[Path, api.CompressReport]:
    packed = folder / "scene.splc"
    return packed, api.compress_file(path, packed, lossless=True, reorder=reorder, overwrite=True)


def check_round_trip(path: Path, folder: Path, name: str) -> api.CompressReport:
    """Compress, give back, and compare files, contents and Gaussians."""
    packed, report = recompress(path, folder)
    assert report.lossless
    assert not report.notes
    back = folder / f"back{''.join(path.suffixes)}"
    facts = api.decompress_file(packed, back, format=name, overwrite=True)
    assert facts["identical_content"] is True
    if name in PLAIN:
        assert facts["identical"] is True
        assert back.read_bytes() == path.read_bytes()
    native = by_name(name)
    assert native is not None
    assert native.unpack(back)[1] == native.unpack(path)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        original = api.read(path)
        assert same(original, api.read(back))
        assert same(original, api.read(packed))
        api.verify(packed, full=True)
    return report


@pytest.mark.parametrize(("name", "version", "suffix"), WAYS)
def test_files_of_our_writers_come_back(tmp_path, name, version, suffix):
    for degree in (0, 1, 2, 3):
        scene = sample_scene(150 + 300 * (degree == 3), 5).with_sh_degree(degree)
        check_round_trip(write_scene(scene, tmp_path, name, version, suffix), tmp_path, name)


@pytest.mark.parametrize(("name", "version", "suffix"), WAYS)
@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_gaussians(tmp_path, name, version, suffix, count):
    scene = sample_scene(20, 3).selected(np.arange(count))
    if not count and (name == "splat" or version == 4):
        with pytest.raises(SplatCodecError):  # which cannot hold an empty scene
            write_scene(scene, tmp_path, name, version, suffix)
        return
    path = write_scene(scene, tmp_path, name, version, suffix)
    check_round_trip(path, tmp_path, name)


@pytest.mark.parametrize(("name", "version", "suffix"), WAYS)
def test_reorder_is_a_permutation(tmp_path, name, version, suffix):
    scene = sample_scene(600, 9).with_sh_degree(1)
    path = write_scene(scene, tmp_path, name, version, suffix)
    packed, report = recompress(path, tmp_path, reorder=True)
    assert any("another order" in note for note in report.notes)
    back = tmp_path / f"back{suffix}"
    facts = api.decompress_file(packed, back, format=name)
    assert facts["identical"] is None
    assert facts["identical_content"] is None
    assert facts["differs"]
    assert rows_of(api.read(back)).tobytes() == rows_of(api.read(path)).tobytes()
    assert same(api.read(back), api.read(packed))


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the format vectors are not here")
@pytest.mark.parametrize(
    "vector",
    [
        *("one.sog", "one.splat", "one_l1.ksplat", "one_l2.ksplat", "one_v2.spz", "one_v3.spz", "one_v4.spz"),
        *("t5.compressed.ply", "t5.sog", "t5_v3.spz", "t5_v4.spz"),
    ],
)
def test_vectors_come_back(tmp_path, vector):
    from splatcodec.formats import detect

    check_round_trip(VECTORS / vector, tmp_path, detect(VECTORS / vector).name)


def test_smaller_than_the_file_and_than_its_floats(tmp_path):
    """What it is for: less than the file itself, and much less than the floats that are in it."""
    scene = sample_scene(4000, 2)
    for name, version, suffix in WAYS:
        if name == "sog":
            continue  # our writer's are made to be small, and a palette for so few Gaussians is half of them
        path = write_scene(scene, tmp_path, name, version, suffix)
        _, report = recompress(path, tmp_path)
        assert report.size_bytes < path.stat().st_size, (name, version)
        if name not in ("spz", "compressed-ply"):
            continue  # the others hold mostly floats themselves
        assert report.size_bytes < 0.9 * len(api.compress(api.read(path), lossless=True)), (name, version)


def test_other_formats_are_written_through_gaussians(tmp_path):
    path = write_scene(sample_scene(80, 1), tmp_path, "spz", 3, ".spz")
    packed, _ = recompress(path, tmp_path)
    facts = api.decompress_file(packed, tmp_path / "scene.ply")
    assert facts["losses"] == []
    assert "identical" not in facts
    assert same(api.read(tmp_path / "scene.ply"), api.read(path))


def test_lossless_ply_is_not_a_compressed_one(tmp_path):
    """`.compressed.ply` ends with `.ply`, too."""
    scene = sample_scene(50, 1)
    api.write(scene, tmp_path / "scene.ply")
    packed, _ = recompress(tmp_path / "scene.ply", tmp_path)
    with pytest.warns(SplatCodecWarning):
        api.decompress_file(packed, tmp_path / "out.compressed.ply")
    assert b"packed_position" in (tmp_path / "out.compressed.ply").read_bytes()[:2000]


def test_sog_folders_are_recompressed(tmp_path):
    scene = sample_scene(90, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        write(scene, tmp_path / "folder" / "meta.json", format="sog")
    files = sum(path.stat().st_size for path in (tmp_path / "folder").iterdir())
    packed, report = recompress(tmp_path / "folder", tmp_path)
    assert report.input_bytes == files
    facts = api.decompress_file(packed, tmp_path / "back.sog")
    assert facts["identical"] is None
    assert facts["identical_content"] is True
    assert same(api.read(tmp_path / "back.sog"), api.read(tmp_path / "folder"))


def test_command_line(tmp_path, capsys):
    path = write_scene(sample_scene(60, 1), tmp_path, "spz", 3, ".spz")
    payload = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(payload, 1))  # not as we compress it
    assert main(["compress", str(path), str(tmp_path / "a.splc"), "--lossless"]) == 0
    assert main(["decompress", str(tmp_path / "a.splc"), str(tmp_path / "back.spz")]) == 0
    assert "every value identical" in "".join(capsys.readouterr())
    assert gzip.decompress((tmp_path / "back.spz").read_bytes()) == payload
    # Another sum of the content in the metadata: the command says that it differs.
    wrong = rebuilt(
        tmp_path / "a.splc",
        lambda cs: [dataclasses.replace(c, payload=swapped(c.payload)) if c.type == "META" else c for c in cs],
    )
    (tmp_path / "wrong.splc").write_bytes(wrong)
    assert main(["decompress", str(tmp_path / "wrong.splc"), str(tmp_path / "again.spz")]) == 7


def swapped(meta: bytes) -> bytes:
    facts = json.loads(meta)
    facts["source"] |= {"content_sha256": "0" * 64, "sha256": "0" * 64}
    return json.dumps(facts).encode()


# ---- Files of other writers ----------------------------------------------------------------------------------------


def spz_payload(version: int, count: int, degree: int, rng: np.random.Generator) -> bytes:
    """Any bytes that fit the header are an SPZ."""
    row = {1: 6 + 1 + 3 + 3 + 3, 2: 9 + 1 + 3 + 3 + 3, 3: 9 + 1 + 3 + 3 + 4}[version] + 3 * ((degree + 1) ** 2 - 1)
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, 12, 0, 0) + rng.bytes(count * row)


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 3), st.integers(0, 40), st.integers(0, 4), st.booleans(), st.integers(0, 1000))
def test_any_spz_comes_back(tmp_path_factory, version, count, degree, packed, seed):
    folder = tmp_path_factory.mktemp("spz")
    payload = spz_payload(version, count, degree, np.random.default_rng(seed))
    (folder / "a.spz").write_bytes(gzip.compress(payload) if packed else payload)
    check_round_trip(folder / "a.spz", folder, "spz")


def test_spz_of_half_floats_and_unknown_flags(tmp_path):
    payload = bytearray(spz_payload(1, 30, 1, np.random.default_rng(4)))
    payload[16 : 16 + 180] = np.linspace(-3, 3, 90).astype("<f2").tobytes()
    payload[14] = 0x82  # extensions, and a flag that nobody knows
    payload += struct.pack("<II3s", 0xADBEFFFF, 3, b"xyz")
    (tmp_path / "a.spz").write_bytes(gzip.compress(bytes(payload)))
    check_round_trip(tmp_path / "a.spz", tmp_path, "spz")


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=32, max_size=32 * 20).map(lambda data: data[: len(data) // 32 * 32]))
def test_any_splat_comes_back(tmp_path_factory, data):
    """NaNs and infinities too."""
    folder = tmp_path_factory.mktemp("splat")
    (folder / "a.splat").write_bytes(data)
    check_round_trip(folder / "a.splat", folder, "splat")


def splat_columns(packed: Path) -> set[str]:
    with api.open(packed) as scene:
        container = scene.container
        return {name for name in ("inversions", "opacity") if name.encode() in container.read(container.one("COLD"))}


@pytest.mark.parametrize("shuffle", ["sorted", "nearly", "equal", "random"])
def test_order_of_splats(tmp_path, shuffle):
    """Rows are stored along a curve, unless their order is not that of what shows most."""
    path = write_scene(sample_scene(3000, 5), tmp_path, "splat", None, ".splat")
    rows = np.frombuffer(path.read_bytes(), "V32")
    rng = np.random.default_rng(3)
    if shuffle == "nearly":
        rows = rows[np.argsort(np.arange(len(rows)) + rng.normal(0, 5, len(rows)))]
    elif shuffle == "equal":  # keys and positions, but not rows
        rows = np.repeat(rows[:50], 60).view("u1").reshape(-1, 32)
        rows[:, 24] = rng.integers(0, 256, len(rows))
    elif shuffle == "random":
        rows = rng.permutation(rows)
    path.write_bytes(rows.tobytes())
    check_round_trip(path, tmp_path, "splat")
    packed, report = recompress(path, tmp_path)
    assert splat_columns(packed) == {"opacity"} | ({"inversions"} if shuffle != "random" else set())
    sorted_size = recompress(path, tmp_path, reorder=True)[1].size_bytes
    assert splat_columns(packed) == {"opacity"}
    if shuffle == "sorted":
        assert report.size_bytes < sorted_size + 400  # the checksums of the source
    elif shuffle == "random":
        assert report.size_bytes > sorted_size + len(rows)


def test_impossible_inversions_are_an_error(tmp_path, monkeypatch):
    path = write_scene(sample_scene(60, 5), tmp_path, "splat", None, ".splat")
    monkeypatch.setattr(_native_splat, "inversions_of", lambda places: np.full(len(places), 70, "u4"))
    lax = dataclasses.replace(_native_splat.NATIVE, content=lambda scene: path.read_bytes())
    monkeypatch.setattr(_native_splat, "NATIVE", lax)
    packed, _ = recompress(path, tmp_path)
    monkeypatch.undo()
    with pytest.raises(FormatError, match="comes before more rows"):
        api.read(packed)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60).flatmap(lambda n: st.permutations(range(n))))
def test_inversions(places):
    counts = inversions_of(np.array(places, np.int64))
    assert counts.tolist() == [sum(p > place for p in places[:k]) for k, place in enumerate(places)]
    assert places_of(counts).tolist() == list(places)


def compressed_ply(count: int, chunks: np.ndarray, rng: np.random.Generator) -> bytes:
    axes = [f"{end}_{kind}{axis}" for kind in ("", "scale_") for end in ("min", "max") for axis in "xyz"]
    names = axes + [f"{end}_{c}" for end in ("min", "max") for c in "rgb"]
    lines = ["ply", "format binary_little_endian 1.0", f"element chunk {len(chunks)}"]
    lines += [f"property float {name}" for name in names] + [f"element vertex {count}"]
    lines += [f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")]
    lines += [f"element sh {count}", *(f"property uchar f_rest_{k}" for k in range(9)), "end_header", ""]
    return "\n".join(lines).encode() + chunks.astype("<f4").tobytes() + rng.bytes(count * 16) + rng.bytes(count * 9)


@pytest.mark.parametrize("special", [None, np.nan, np.inf, 0.0, 1e38, -1e-38])
def test_any_compressed_ply_comes_back(tmp_path, special):
    rng = np.random.default_rng(6)
    chunks = rng.normal(size=(3, 18))
    if special is not None:
        chunks[1, ::2] = special
        chunks[2] = special
    (tmp_path / "a.compressed.ply").write_bytes(compressed_ply(600, chunks, rng))
    check_round_trip(tmp_path / "a.compressed.ply", tmp_path, "compressed-ply")


def test_sog_with_pixels_behind_the_last_gaussian_and_odd_alpha(tmp_path):
    from splatcodec.formats._webp import decode_webp, encode_webp, webp_size

    path = write_scene(sample_scene(90, 3), tmp_path, "sog", None, ".sog")
    rng = np.random.default_rng(1)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for name in [name for name in files if name.endswith(".webp") and "centroids" not in name]:
        pixels = decode_webp(files[name], name, webp_size(files[name], name)).copy()
        wide = np.concatenate([pixels, rng.integers(0, 256, pixels.shape, np.uint8)])
        if name.startswith("scales"):
            wide[..., 3] = rng.integers(0, 256, wide.shape[:2])
        files[name] = encode_webp(wide)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    check_round_trip(path, tmp_path, "sog")


def test_what_cannot_be_taken_apart_is_kept_as_floats(tmp_path):
    path = write_scene(sample_scene(40, 3), tmp_path, "sog", None, ".sog")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "hello")
    packed, report = recompress(path, tmp_path)
    assert any("further files" in note for note in report.notes)
    with api.open(packed) as scene:
        assert not scene.container.has_feature("native-1")
    assert same(api.read(packed), api.read(path))


def test_ksplat_with_room_for_more_is_kept_as_floats(tmp_path):
    path = write_scene(sample_scene(40, 3).with_sh_degree(0), tmp_path, "ksplat", 0, ".ksplat")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 4096 + 4, 41)
    path.write_bytes(bytes(data) + bytes(44))
    packed, report = recompress(path, tmp_path)
    assert any("room for more" in note for note in report.notes)
    assert same(api.read(packed), api.read(path))


@pytest.mark.parametrize(("name", "version", "suffix"), WAYS)
def test_damaged_sources_give_the_readers_error(tmp_path, name, version, suffix):
    path = write_scene(sample_scene(60, 3), tmp_path, name, version, suffix)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(SplatCodecError) as wanted:
        api.read(path)
    with pytest.raises(SplatCodecError) as found:
        api.compress(path, lossless=True)
    assert (type(found.value), str(found.value)) == (type(wanted.value), str(wanted.value))


# ---- Damaged .splc files -------------------------------------------------------------------------------------------


def rebuilt(packed: Path, change) -> bytes:
    """The file with its chunks changed, checksums set right."""
    with Container.open(packed) as container:
        chunks = [
            Chunk(entry.type, container.read(entry), entry.critical, entry.level, entry.tile, entry.count)
            for entry in container.chunks
        ]
        features = [Feature(feature.name) for feature in container.features]
        count = container.num_gaussians
    file = io.BytesIO()
    write_container(file, change(chunks), num_gaussians=count, features=features)
    return file.getvalue()


def with_natv(make):
    def change(chunks):
        return [dataclasses.replace(c, payload=make(c.payload)) if c.type == "NATV" else c for c in chunks]

    return change


def with_head(make):
    """A change of the unpacked head."""
    import zlib

    def natv(payload: bytes) -> bytes:
        _, at = read_varint(payload, 1)
        head = make(zlib.decompress(payload[at:]))
        return payload[:1] + write_varint(len(head)) + zlib.compress(head)

    return with_natv(natv)


DAMAGE = {
    "empty": with_natv(lambda p: b""),
    "format": with_natv(lambda p: b"\xc8" + p[1:]),
    "length": with_natv(lambda p: p[:1] + b"\xff\xff\xff\x7f" + p[3:]),
    "cut": with_natv(lambda p: p[:-3]),
    "bytes after": with_natv(lambda p: p + b"x"),
    "short head": with_head(lambda h: h[:-1]),
    "long head": with_head(lambda h: h + b"\0"),
    "no head": with_head(lambda h: b""),
    "another format": with_natv(lambda p: bytes([p[0] % 5 + 1]) + p[1:]),
    "missing": lambda chunks: [c for c in chunks if c.type != "NATV"],
    "twice": lambda chunks: [*chunks, *[c for c in chunks if c.type == "NATV"]],
}


@pytest.mark.parametrize(("name", "version", "suffix"), [way for way in WAYS if way[1] in (None, 1, 3, 4)])
def test_damaged_heads_are_errors(tmp_path, name, version, suffix):
    path = write_scene(sample_scene(70, 4).with_sh_degree(1), tmp_path, name, version, suffix)
    packed, _ = recompress(path, tmp_path)
    for kind, change in DAMAGE.items():
        data = rebuilt(packed, change)
        if name == "splat" and kind in ("short head", "no head"):
            continue  # it is empty anyway
        with pytest.raises((FormatError, UnsupportedError)) as error:
            api.decompress(data)
        assert error.value.chunk, (name, kind)
        (tmp_path / "bad.splc").write_bytes(data)
        with pytest.raises(SplatCodecError):
            api.decompress_file(tmp_path / "bad.splc", tmp_path / f"out{suffix}", format=name)
        assert not (tmp_path / f"out{suffix}").exists()


@pytest.mark.parametrize(("name", "version", "suffix"), [way for way in WAYS if way[1] in (None, 1, 3, 4)])
def test_flipped_bytes_give_a_scene_or_an_error(tmp_path, name, version, suffix):
    """With checksums set right: anything but a crash."""
    path = write_scene(sample_scene(70, 4).with_sh_degree(1), tmp_path, name, version, suffix)
    packed, _ = recompress(path, tmp_path)
    rng = np.random.default_rng(8)
    errors = 0

    def flip(payload: bytes) -> bytes:
        data = bytearray(payload)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        return bytes(data)

    for kind in ("NATV", "COLD", "COLS") * 12:
        data = rebuilt(
            packed,
            lambda cs: [dataclasses.replace(c, payload=flip(c.payload)) if c.type == kind else c for c in cs],  # noqa: B023
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                api.decompress(data)
        except SplatCodecError:
            errors += 1
    assert errors > 12


def test_columns_of_another_file_are_an_error(tmp_path):
    for k, count in enumerate((70, 71)):
        path = write_scene(sample_scene(count, k), tmp_path, "spz", 3, ".spz")
        recompress(path, tmp_path)[0].rename(tmp_path / f"{k}.splc")
    with Container.open(tmp_path / "1.splc") as other:
        head = other.read(other.one("NATV"))
    with pytest.raises(FormatError, match="not that of the columns"):
        api.decompress(rebuilt(tmp_path / "0.splc", with_natv(lambda _: head)))


def test_numbers_of_formats_are_their_own():
    known = [native for name in formats() if (native := by_name(name)) is not None]
    assert {native.code for native in known} == {1, 2, 3, 4, 5}
    assert all(by_code(native.code) is native for native in known)
    assert by_code(0) is None
    assert by_name("ply") is None


# ---- Mixed columns and boxes ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 300), st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4"]), st.integers(0, 1 << 30), st.booleans()
)
def test_mixed_columns_come_back(rows, dtype, seed, spatial):
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    smooth = np.cumsum(rng.integers(-3, 4, rows))
    columns = {
        "noise": rng.integers(info.min, info.max, rows, endpoint=True, dtype=dtype),
        "ends": rng.choice([info.min, info.max], rows).astype(dtype),
        "smooth": np.clip(smooth, info.min, info.max).astype(dtype),
        "few": (rng.integers(0, 4, rows) * 16).astype(dtype),
        "one": np.full(rows, 7, dtype),
    }
    if spatial:
        columns |= {axis: np.roll(columns["smooth"], k) for k, axis in enumerate("xyz")}
    encoded = encode_columns(columns, mixing=True, block_rows=128)
    decoded = decode_columns(*encoded, block_counts(rows, 128))
    for name, values in columns.items():
        assert decoded[name].dtype == values.dtype, name
        assert decoded[name].tobytes() == values.tobytes(), name


def test_boxes_help_where_values_count_from_them():
    """A smooth column, stored as offsets in boxes of different sizes."""
    rng = np.random.default_rng(3)
    truth = np.cumsum(rng.normal(size=6000))
    of_row = rng.integers(0, 60, 6000)
    low = truth.min() - rng.uniform(0, 100, 60)
    step = (truth.max() - low) / 1023
    columns = {"a": np.rint((truth - low[of_row]) / step[of_row]).astype(np.uint16)}
    boxes = Boxes(of_row, {"a": normalized(low, step)})
    sizes = []
    for given_boxes in (None, boxes):
        encoded = encode_columns(columns, mixing=True, boxes=given_boxes)
        decoded = decode_columns(*encoded, block_counts(6000), boxes=given_boxes)
        assert decoded["a"].tobytes() == columns["a"].tobytes()
        sizes.append(sum(map(len, encoded[1])))
    assert sizes[1] < 0.8 * sizes[0]


def test_boxes_are_tame():
    offset = np.array([0.0, np.nan, np.inf, 1e300, 4.0])
    step = np.array([0.5, np.nan, 0.0, 1e300, -0.25])
    corner, size, exponent = normalized(offset, step)
    assert np.isfinite(corner).all()
    assert (size > 0).all()
    assert np.isfinite(size).all()
    assert exponent == -2
    assert corner[4] == 16.0
    assert size[0] == 2.0
    assert size[4] == 1.0


# ------------------------------------------------------------------------------------------------- kept as they are


@pytest.mark.parametrize(("name", "version", "suffix"), WAYS)
@pytest.mark.parametrize("reorder", [False, True])
def test_stored_or_not_files_never_grow_much(tmp_path, name, version, suffix, reorder):
    for count in (1, 30, 700):
        scene = sample_scene(count, 11)
        path = write_scene(scene, tmp_path, name, version, suffix)
        packed, report = recompress(path, tmp_path, reorder)
        assert packed.stat().st_size <= path.stat().st_size + 700  # header, table of contents, META
        with api.open(packed) as file:
            stored = file.container.has_feature("stored-1")
        assert stored == any("kept as it is" in note for note in report.notes)
        if not stored:
            continue
        original, again = (quietly_read(p) for p in (path, packed))
        assert same(original, again)
        back = tmp_path / f"back{suffix}"
        facts = api.decompress_file(packed, back, overwrite=True)
        assert (facts["identical"], facts["identical_content"]) == (True, True)
        assert back.read_bytes() == path.read_bytes()
        facts = api.decompress_file(packed, tmp_path / "other.ply", overwrite=True)
        assert "identical" not in facts
        assert api.verify(packed, full=True)["num_gaussians"] == len(original)
        assert main(["info", str(packed)]) == 0


def quietly_read(path: Path) -> Gaussians:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        return api.read(path)


def test_a_folder_is_stored_as_its_bundle(tmp_path, monkeypatch):
    monkeypatch.setattr("splatcodec.static.stored.is_smaller", lambda *_: True)
    scene = sample_scene(60, 11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        write(scene, tmp_path / "folder" / "meta.json")
    packed, _ = recompress(tmp_path / "folder", tmp_path)
    assert same(api.read(tmp_path / "folder"), api.read(packed))
    facts = api.decompress_file(packed, tmp_path / "back.sog")
    assert facts["identical"] is None
    assert same(api.read(tmp_path / "folder"), api.read(tmp_path / "back.sog"))


@pytest.mark.parametrize(
    ("payload", "count", "error", "message"),
    [
        (b"", 5, FormatError, "empty"),
        (b"\x09abc", 5, UnsupportedError, "number 9"),
        (b"\x01" + bytes(31), 1, FormatError, "not a whole number"),
        (b"\x01" + bytes(64), 3, FormatError, "2 Gaussians, the header says 3"),
        (b"\x05" + b"PK\x03\x04", 3, FormatError, "FILE"),
    ],
)
def test_damage_of_a_stored_file(tmp_path, payload, count, error, message):
    path = tmp_path / "scene.splc"
    with path.open("wb") as file:
        features = [Feature("lossless-1"), Feature("stored-1")]
        write_container(file, [Chunk("FILE", payload)], num_gaussians=count, features=features)
    with pytest.raises(error, match=message) as caught:
        api.read(path)
    assert caught.value.file == str(path)
    assert "tmp" not in str(caught.value).replace(str(path), "")
