"""Scenes in blocks: every format that reads or writes them gives what it gives of the whole, in less memory."""

from __future__ import annotations

import functools
import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import format_writers as writers
import numpy as np
import pytest

from splatcodec import api, formats
from splatcodec.cli import main as cli
from splatcodec.errors import (
    ParameterError,
    SplatCodecError,
    SplatCodecWarning,
    TruncatedError,
    UnsupportedError,
)
from splatcodec.formats import Blocks, WriteOptions, base
from splatcodec.gaussians import Gaussians
from splatcodec.sample import sample_scene
from splatcodec.static import decoder, encoder, lossless

FORMATS = formats.formats()
ARRAYS = ("means", "quats", "scales", "opacities", "sh0", "shN")
READ = [name for name, fmt in FORMATS.items() if fmt.open_blocks is not None]
WRITTEN = [
    (name, version)
    for name, fmt in FORMATS.items()
    if fmt.write_blocks or fmt.write_path_blocks
    for version in fmt.versions or (None,)
]
ROWS = 256  # of a block in these tests: a chunk of the formats that have chunks


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in ("ply", "splat", "spz", "compressed_ply", "glb", "ksplat", "sog", "sog_stream"):
        monkeypatch.setattr(f"splatcodec.formats.{module}.BLOCK_ROWS", ROWS)


def scene_of(count: int, degree: int, seed: int = 3, **more) -> Gaussians:
    rng = np.random.default_rng(seed)
    arrays = {
        "means": rng.normal(0, 3, (count, 3)),
        "quats": rng.normal(size=(count, 4)),
        "scales": rng.uniform(-6, 0, (count, 3)),
        "opacities": rng.uniform(-4, 4, count),
        "sh0": rng.uniform(-1, 1, (count, 1, 3)),
        "shN": rng.normal(0, 0.1, (count, (degree + 1) ** 2 - 1, 3)),
    }
    return Gaussians(**{**arrays, **more})


def rough_scene(count: int, degree: int) -> Gaussians:
    """With something of everything that a format may lose, spread so that blocks differ in it."""
    scene = scene_of(count, degree)
    means, opacities, scales, shN = (getattr(scene, name).copy() for name in ("means", "opacities", "scales", "shN"))
    means[5::97, 1] = np.nan
    means[7] = 5000.0
    opacities[count // 2 :: 31] = np.inf
    scales[3::53, 2] = -np.inf
    scales[4::61, 0] = 25.0
    if degree:
        shN[:, 0] *= 60
    weights = np.arange(count, dtype=np.float32)
    normals = {"nx": np.where(np.arange(count) > 270, np.float32(1), np.float32(0)), "weight": weights}
    metadata = {"up": [0.0, -1.0, 0.0], "frame": "RDF", "antialiased": True, "comments": ["made up"]}
    return scene.replaced(means=means, opacities=opacities, scales=scales, shN=shN, extras=normals, metadata=metadata)


def blocks_of(scene: Gaussians) -> Blocks:
    """As a reader gives them: normals only where a block has any, no metadata."""

    def rows():
        for start in range(0, len(scene), ROWS):
            part = scene.selected(slice(start, start + ROWS)).replaced(metadata={})
            yield part.replaced(extras={n: v for n, v in part.extras.items() if n != "nx" or v.any()})

    extras = {name: (values.dtype, values.shape[1:]) for name, values in scene.extras.items() if name != "nx"}
    return Blocks(len(scene), scene.sh_degree, rows, extras, scene.metadata)


def path_of(folder: Path, name: str, stem: str = "scene") -> Path:
    fmt = FORMATS[name]
    return folder / f"{stem}{fmt.suffixes[0]}" if fmt.suffixes else folder / stem / str(fmt.index_name)


def contents(path: Path) -> dict[str, bytes]:
    """A file, or all files of the folder that an index stands for."""
    if path.suffix != ".json":
        return {"": path.read_bytes()}
    return {str(p.relative_to(path.parent)): p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}


def quietly(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplatCodecWarning)
        return call(*args, **kwargs)


def test_the_formats_that_stream_are_those_the_docs_name():
    assert sorted(READ) == ["compressed-ply", "glb", "ksplat", "ply", "sog", "sog-stream", "splat", "spz"]
    assert sorted({name for name, _ in WRITTEN}) == sorted(READ)


@pytest.mark.parametrize("count", [1, 256, 1000])
@pytest.mark.parametrize("name", READ)
def test_blocks_are_the_rows_of_the_whole(tmp_path, name, count):
    for version in FORMATS[name].versions[1:] if name == "spz" else (None,):
        path = path_of(tmp_path, name, f"scene{version}")
        scene = scene_of(count, 2, metadata={"antialiased": True, "frame": "RDF"})
        if name == "ply":
            normals = {"nx": (np.arange(count) > 600).astype(np.float32), "label": np.arange(count, dtype=np.int16)}
            scene = scene.replaced(extras=normals)
        quietly(formats.write, scene, path, options=WriteOptions(version=version))
        whole = quietly(formats.read, path)
        with formats.open_blocks(path) as blocks:
            assert blocks is not None
            assert (blocks.num_gaussians, blocks.sh_degree) == (len(whole), whole.sh_degree)
            assert blocks.metadata == whole.metadata
            assert blocks.head().metadata == whole.metadata
            for _ in range(2):  # as often as wanted
                parts = list(blocks.rows())
                if name != "sog-stream":  # whose blocks end with regions
                    assert [len(part) for part in parts[:-1]] == [ROWS] * (len(parts) - 1)
                assert max(map(len, parts)) <= ROWS
                assert all(not part.metadata for part in parts)
                for array in ARRAYS:
                    joined = np.concatenate([getattr(part, array) for part in parts])
                    np.testing.assert_array_equal(joined, getattr(whole, array), err_msg=array)
            assert {n: d for n, (d, _) in blocks.extras.items()} == {
                n: v.dtype for n, v in whole.extras.items() if n != "nx"
            }
            for extra in whole.extras:
                parts_of = [part.extras.get(extra, np.zeros(len(part), np.float32)) for part in parts]
                np.testing.assert_array_equal(np.concatenate(parts_of), whole.extras[extra])


@pytest.mark.parametrize(("name", "version"), WRITTEN)
@pytest.mark.parametrize(("count", "degree"), [(300, 1), (777, 0), (1500, 3)])
def test_writing_blocks_gives_the_bytes_and_the_losses_of_the_whole(tmp_path, name, version, count, degree):
    scene = rough_scene(count, degree)
    options = WriteOptions(version=version)
    whole, streamed = path_of(tmp_path, name, "whole"), path_of(tmp_path, name, "streamed")
    losses = quietly(formats.write, scene, whole, options=options)
    assert formats.writes_blocks(streamed, options=options)
    again = quietly(formats.write_blocks, blocks_of(scene), streamed, options=options)
    assert contents(streamed) == contents(whole)
    assert sorted(again) == sorted(losses)


@pytest.mark.parametrize("name", ["splat", "glb"])
def test_a_scene_of_nothing_to_draw_is_refused_as_ever(tmp_path, name):
    scene = scene_of(300, 0, means=np.full((300, 3), np.nan))
    with pytest.raises(ParameterError, match="empty scene"):
        quietly(formats.write_blocks, blocks_of(scene), path_of(tmp_path, name))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_streamed_says_so(tmp_path):
    scene = scene_of(300, 1)
    for name, _ in WRITTEN:
        target, options = path_of(tmp_path, name), WriteOptions(quality=50)
        if FORMATS[name].takes_quality:
            assert not formats.writes_blocks(target, options=options)
            with pytest.raises(UnsupportedError):
                formats.write_blocks(blocks_of(scene), target, options=options)
    # Whether normals of doubles are kept only all of them together tell.
    path = tmp_path / "doubles.ply"
    quietly(formats.write, scene.replaced(extras={"nx": np.ones(300)}), path)
    with formats.open_blocks(path) as blocks:
        assert blocks is None


def convert(source: Path, target: Path) -> None:
    with formats.open_blocks(source) as blocks:
        assert blocks is not None
        quietly(formats.write_blocks, blocks, target)


@pytest.mark.parametrize("name", READ)
def test_a_file_cut_short_is_an_error_before_or_while_it_is_read(tmp_path, name):
    path = path_of(tmp_path, name)
    quietly(formats.write, scene_of(1000, 1), path)
    content = path.read_bytes()
    for keep in (0, 10, len(content) // 2 - 1, len(content) - 7):
        path.write_bytes(content[:keep])
        with pytest.raises(SplatCodecError) as caught:
            convert(path, tmp_path / "out.ply")
        assert caught.value.file == str(path)
        assert len(list(tmp_path.iterdir())) == 1  # no target


def test_a_file_that_shrinks_while_it_is_read_leaves_no_target(tmp_path):
    path = tmp_path / "scene.ply"
    formats.write(scene_of(1000, 3), path)
    with formats.open_blocks(path) as blocks:
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(TruncatedError):
            formats.write_blocks(blocks, tmp_path / "out.ply")
    assert [p.name for p in tmp_path.iterdir()] == ["scene.ply"]


STEPS = ["--crop-sphere", "0,0,0,4", "--rotate-xyz", "10,20,30", "--sh-degree", "1", "--min-opacity", "0.2"]
STEPS += ["--from-frame", "RDF", "--frame", "LUF"]


@pytest.mark.parametrize("target", ["out.ply", "out.splat", "out.spz", "out.compressed.ply", "out.glb"])
@pytest.mark.parametrize("steps", [[], STEPS, ["--translate", "1,2,3"]], ids=["plain", "steps", "moved"])
def test_convert_streams_and_gives_the_same(tmp_path, monkeypatch, capsys, target, steps):
    source = tmp_path / "in.ply"
    formats.write(scene_of(1500, 2, metadata={"up": [0.0, 1.0, 0.0]}), source)
    arguments = ["convert", str(source), str(tmp_path / target), "--overwrite", "--json", *steps]
    reports = []
    for streamed in (True, False):
        if not streamed:
            monkeypatch.setattr("splatcodec.cli.commands.convert._stream", lambda *_: None)
        assert cli.main(arguments) == 0
        said = capsys.readouterr()
        report = __import__("json").loads(said.out)
        for step in report["edits"]:
            assert step.pop("seconds") >= 0
        report["losses"] = sorted(report["losses"])
        reports.append((report, (tmp_path / target).read_bytes(), sorted(said.err.splitlines())))
    assert reports[0] == reports[1]


def test_convert_tells_what_is_wrong_with_a_step(tmp_path, capsys):
    source = tmp_path / "in.ply"
    formats.write(scene_of(10, 0), source)
    assert cli.main(["convert", str(source), str(tmp_path / "out.ply"), "--frame", "LUF"]) == 2
    assert "--frame" in capsys.readouterr().err
    assert cli.main(["convert", str(source), str(tmp_path / "out.splat"), "--crop-sphere", "90,0,0,1"]) == 2
    assert "empty scene" in capsys.readouterr().err
    assert not (tmp_path / "out.splat").exists()


def test_memory_does_not_grow_with_the_scene(tmp_path, monkeypatch):
    for module in ("ply", "glb"):
        monkeypatch.setattr(f"splatcodec.formats.{module}.BLOCK_ROWS", 1 << 12)
    source = tmp_path / "in.ply"
    formats.write(scene_of(60_000, 3), source)
    scene_bytes = source.stat().st_size
    for target in ("out.ply", "out.glb"):
        with formats.open_blocks(source) as blocks:
            assert blocks is not None
            tracemalloc.start()
            quietly(formats.write_blocks, blocks, tmp_path / target)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < scene_bytes / 2, target


@pytest.mark.parametrize("name", ["sog", "ksplat"])
def test_packed_scenes_stay_packed(tmp_path, monkeypatch, name):
    """20 bytes a Gaussian of a SOG are held, centres of buckets of a .ksplat, where floats take 152 at degree 2."""
    for module in ("ply", "sog", "ksplat"):
        monkeypatch.setattr(f"splatcodec.formats.{module}.BLOCK_ROWS", 1 << 12)
    count = 60_000
    source = tmp_path / "source.ksplat"
    if name == "sog":
        source = writers.write_folder(tmp_path / "source", writers.random_sog(np.random.default_rng(3), count, 2))
    else:
        quietly(formats.write, scene_of(count, 2), source)
    tracemalloc.start()
    with formats.open_blocks(source) as blocks:
        assert blocks is not None
        quietly(formats.write_blocks, blocks, tmp_path / "out.ply")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (blocks.num_gaussians, blocks.sh_degree) == (count, 2)
    assert peak < 0.45 * 152 * count
    if name == "ksplat":
        # Written: the order, then records of 72 bytes, never the floats.
        tracemalloc.start()
        with formats.open_blocks(tmp_path / "out.ply") as blocks:
            assert blocks is not None
            quietly(formats.write_blocks, blocks, tmp_path / "again.ksplat")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.0 * 152 * count


def test_a_sog_is_written_from_a_file_beside_it(tmp_path, monkeypatch):
    """What is held does not have the harmonics in it; nothing is left beside the target."""
    seen = {}

    def encoded(gaussians, **_):
        seen["maps"] = [type(getattr(gaussians, name).base).__name__ for name in ARRAYS]
        return {"meta.json": b"{}"}, 0

    monkeypatch.setattr("splatcodec.formats._sog_encode.encode_sog", encoded)
    quietly(formats.write_blocks, blocks_of(scene_of(1000, 2)), tmp_path / "a.sog")
    assert seen["maps"] == ["memmap"] * len(ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.sog"]


def test_a_block_is_a_whole_number_of_chunks():
    assert base.BLOCK_ROWS % 256 == 0


_PEAK = """
import resource, sys
from splatcodec.cli import main
code = main.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_ply_of_10_million_gaussians_and_more_than_2_gb(tmp_path):
    """Sparse: the file system need not hold what is never written."""
    count = 10_200_000
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(45)), "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header = "\n".join([*lines, *(f"property float {name}" for name in names), "end_header\n"]).encode()
    source, out = tmp_path / "large.ply", tmp_path / "out.ply"
    row_bytes = 4 * len(names)
    last = np.arange(1, len(names) + 1, dtype="<f4")
    with source.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + count * row_bytes)
        file.seek(-row_bytes, 2)
        file.write(last.tobytes())
    assert source.stat().st_size > 2 << 30
    call = [sys.executable, "-c", _PEAK, "convert", str(source), str(out)]
    said = subprocess.run(call, check=True, capture_output=True, text=True).stderr
    assert int(said.split()[-1]) < 400, said  # MB, of which 100 are Python and numpy
    with formats.open_blocks(out) as blocks:
        assert blocks.num_gaussians == count
        scene = replace(blocks).head()
        assert scene.sh_degree == 3
    with out.open("rb") as file:
        file.seek(-248, 2)
        row = np.frombuffer(file.read(), "<f4")
    np.testing.assert_array_equal(row[[0, 1, 2, 6, -8, -1]], last[[0, 1, 2, 3, 51, 58]])


# ------------------------------------------------------------------------------------------------------------- .splc


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> Path:
    """A file of many tiles and levels."""
    path = tmp_path_factory.mktemp("tiled") / "tiled.splc"
    cut = functools.partial(encoder.cut_tiles, max_tile=200)
    with (
        mock.patch.object(encoder, "cut_tiles", cut),
        mock.patch.object(encoder, "level_shares", return_value=(0.2, 1.0)),
        mock.patch.object(encoder, "thumbnail_count", return_value=40),
    ):
        api.compress_file(write_ply(path.with_suffix(".ply")), path, quality=60, effort=3)
    return path


def write_ply(path: Path) -> Path:
    formats.write(sample_scene(1500), path)
    return path


PARTS = [{}, {"level": 1}, {"level": 0}, {"tile": [0, 2]}, {"max_gaussians": 500}, {"sh_degree": 1}, {"sh_layers": 1}]
PARTS += [{"sh_degree": 0}, {"tile": 1, "level": 1, "sh_degree": 2}]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_splc_blocks_are_the_rows_of_the_whole(tiled, tmp_path, part):
    with api.open(tiled) as scene:
        assert len(scene.container.of_type("TILE")) > 10
        whole = scene.read(**part)
        blocks = scene.blocks(threads=2, **part)
        assert blocks is not None
        assert (blocks.num_gaussians, blocks.sh_degree) == (len(whole), whole.sh_degree)
        assert blocks.metadata == whole.metadata
        parts = list(blocks.rows())
        assert part == {"tile": 1, "level": 1, "sh_degree": 2} or len(parts) > 1
        for array in ARRAYS:
            np.testing.assert_array_equal(np.concatenate([getattr(p, array) for p in parts]), getattr(whole, array))
    facts = api.decompress_file(tiled, tmp_path / "streamed.ply", **part)
    assert facts["num_gaussians"] == len(whole)
    api.write(whole, tmp_path / "whole.ply")
    assert (tmp_path / "streamed.ply").read_bytes() == (tmp_path / "whole.ply").read_bytes()


def test_decompressing_holds_a_few_tiles(tiled, tmp_path, monkeypatch):
    sizes = []
    blank = decoder.BlankScene.__init__

    def count(self, counts, degree):
        sizes.append(sum(counts))
        blank(self, counts, degree)

    monkeypatch.setattr(decoder.BlankScene, "__init__", count)
    api.decompress_file(tiled, tmp_path / "out.ply")
    assert max(sizes) <= 200 < sum(sizes)
    sizes.clear()
    quietly(api.decompress_file, tiled, tmp_path / "out.sog")
    assert max(sizes) <= 200 < sum(sizes)


def test_what_of_a_splc_has_to_be_read_whole(tiled, tmp_path):
    with api.open(tiled) as scene:
        assert scene.blocks(region=((-1, -1, -1), (1, 1, 1))) is None
        assert scene.blocks(keep_going=True) is None
        with pytest.raises(ParameterError, match="no tile 999"):
            scene.blocks(tile=999)
        with pytest.raises(ParameterError, match="SH degree -1"):
            scene.blocks(sh_degree=-1)
    labelled = sample_scene(100).replaced(extras={"label": np.arange(100)})
    for name, options in (("lossless", {"lossless": True}), ("extras", {"effort": 1})):
        api.write(labelled, tmp_path / f"{name}.splc", **options)
        with api.open_blocks(tmp_path / f"{name}.splc") as blocks:
            assert blocks is None
    assert cli.main(["convert", str(tiled), str(tmp_path / "a.spz"), "--crop-sphere", "0,0,0,2"]) == 0
    assert cli.main(["convert", str(tmp_path / "extras.splc"), str(tmp_path / "b.ply")]) == 0
    assert "label" in formats.read(tmp_path / "b.ply").extras


def test_a_damaged_tile_is_named_and_leaves_no_file(tiled, tmp_path):
    with api.open(tiled) as scene:
        entry = scene.container.of_type("TILE")[-1]
    content = bytearray(tiled.read_bytes())
    content[entry.offset + entry.length // 2] ^= 1
    path = tmp_path / "damaged.splc"
    path.write_bytes(content)
    with pytest.raises(SplatCodecError) as caught:
        api.decompress_file(path, tmp_path / "out.ply")
    assert (caught.value.file, caught.value.chunk) == (str(path), entry.label)
    assert [p.name for p in tmp_path.iterdir()] == ["damaged.splc"]
    damage: list[str] = []
    facts = api.decompress_file(path, tmp_path / "out.ply", keep_going=True, damage=damage)
    assert len(damage) == 1
    with api.open(tiled) as scene:
        assert facts["num_gaussians"] == scene.num_gaussians - entry.count


def test_a_lossless_ply_is_written_block_by_block(tmp_path, monkeypatch):
    for name in ("encode_columns", "block_counts"):
        monkeypatch.setattr(lossless, name, functools.partial(getattr(lossless, name), block_rows=300))
    asked = []
    decode = lossless.decode_columns

    def counted(description, blocks, counts, *rest):
        asked.append(sum(counts))
        return decode(description, blocks, counts, *rest)

    monkeypatch.setattr(lossless, "decode_columns", counted)
    source, packed, back = (tmp_path / name for name in ("a.ply", "a.splc", "b.ply"))
    for scene in (sample_scene(1000), sample_scene(10).selected(slice(0))):
        formats.write(scene, source, overwrite=True)
        api.compress_file(source, packed, lossless=True, overwrite=True)
        asked.clear()
        facts = api.decompress_file(packed, back, threads=2, overwrite=True)
        assert facts["identical"] is True
        assert back.read_bytes() == source.read_bytes()
        assert asked == ([600, 400] if len(scene) else [0])
        assert api.read(packed).num_gaussians == len(scene)
    api.write(sample_scene(1000), source, overwrite=True)
    api.compress_file(source, packed, lossless=True, overwrite=True)
    with api.open(packed) as file:
        entry = file.container.of_type("COLS")[-1]
    content = bytearray(packed.read_bytes())
    content[entry.offset + 20] ^= 1
    packed.write_bytes(content)
    back.unlink()
    with pytest.raises(SplatCodecError, match=r"COLS\[0/3\]"):
        api.decompress_file(packed, back)
    assert not back.exists()
