"""Moving scenes in JavaScript: frames like Python's to the bit, seeking, damage, records. See tests/js/moving.mjs."""

from __future__ import annotations

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import make_golden
import numpy as np
import numpy.typing as npt
import pytest
from make_sequences import MovingScene as MovingTestScene
from test_player import node, server  # noqa: F401 (a fixture)

from splatcodec import api
from splatcodec.bitstream.container import Chunk, Container
from splatcodec.entropy.tables import ALPHABET, quantize_weights
from splatcodec.gaussians import Gaussians
from splatcodec.sample import sample_scene
from splatcodec.sequence.decoder import BaseTile, MotionGroup, decode_base, joined_base
from splatcodec.sequence.file import GroupChunks, SequenceWriter
from splatcodec.sequence.motion import MotionParameters, TileMotion, encode_trajectories, track_exponents
from splatcodec.sequence.motion_kernels import CELLS, quantize_tracks
from splatcodec.sequence.video_scene import SceneGroupReader
from splatcodec.sequence.video_stream import decode_video
from splatcodec.stages.transform import exp2_fixed, rotation_matrices

FRAMES, GROUP = 12, 5


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def moving_scene() -> MovingTestScene:
    return MovingTestScene(sample_scene(700), FRAMES)


@pytest.fixture(scope="session")
def motion_file(moving_scene: MovingTestScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three groups with motion: nodes, lives, tracks; the second and third use the first one's scene."""
    path = tmp_path_factory.mktemp("moving") / "motion.splc"
    api.compress_sequence(moving_scene.frames(), path, fps=24, group=GROUP, effort=1, quality=60)
    return path


@pytest.fixture(scope="session")
def video_file(moving_scene: MovingTestScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups of video planes."""
    pytest.importorskip("av")
    path = tmp_path_factory.mktemp("moving") / "video.splc"
    frames = [moving_scene.frame(k).with_sh_degree(1) for k in range(8)]
    api.compress_sequence(frames, path, fps=24, group=4, effort=1, quality=50, profile="video")
    return path


def _scene_chunks(scene: Gaussians, **options: Any) -> list[Chunk]:
    """PARM, TILE and SHC chunks of a still file of one level."""
    with Container(io.BytesIO(api.compress(scene, effort=1, **options)), "scene") as container:
        kinds = ("PARM", "TILE", "SHC1", "SHC2", "SHC3")
        return [
            Chunk(entry.type, container.read(entry), level=entry.level, tile=entry.tile, count=entry.count)
            for entry in container.chunks
            if entry.type in kinds and (entry.level == 1 or entry.type == "PARM")
        ]


def _random_motion(base: Any, frames: int, rng: np.random.Generator) -> list[Chunk]:
    """MOTN and TRAJ chunks that use everything there is, for the tiles of a base."""
    degree = base.sh_degree
    nodes = int(rng.integers(0, 4))
    shape_counts = [int(rng.integers(0, min(frames, 3) + 1)) for _ in range(6)]
    shape_counts[5] = shape_counts[5] if degree else 0
    total = sum(shape_counts)
    shapes = [np.cumsum(rng.integers(-900, 900, (n, frames)), axis=1) for n in shape_counts]
    turns = np.cumsum(rng.integers(-9000, 9000, (nodes, 4, frames)), axis=2)
    turns[:, 0] = 65536 - np.abs(turns[:, 0]) // 4
    parameters = MotionParameters(
        frames, degree, shapes, rng.integers(-99, 99, (nodes, 3)), turns,
        np.cumsum(rng.integers(-999, 999, (nodes, 3, frames)), axis=2), 2.0**-9, 2.0**-9, 2.0**-7,
        int(rng.integers(-8, 4)), bool(rng.integers(2)), rng.integers(0, 8193, total),
        rng.integers(0, 3, (total, CELLS)).astype(np.uint8),
        np.stack([quantize_weights(np.exp2(-np.arange(ALPHABET) / 4.0))] * 3),
    )  # fmt: skip
    chunks = [Chunk("MOTN", parameters.to_bytes())]
    for tile in base.tiles:
        count = len(tile)
        exponents = track_exponents(tile.coded.values, tile.parameters, parameters.position_bias)
        events = rng.integers(0, 2, count) * (rng.random(count) < 0.3) * (parameters.has_events and frames > 1)
        motion = TileMotion.still(count, parameters, int(events.sum()))
        motion.event_starts = np.concatenate([[0], np.cumsum(events)]).astype(np.int64)
        owners = np.repeat(np.arange(count), events)
        motion.event_frames[:] = rng.integers(1, max(frames, 2), len(owners))
        motion.event_tracks[:] = rng.integers(3, 6 if degree else 5, len(owners))
        for k, (i, track) in enumerate(zip(owners, motion.event_tracks)):
            width = parameters.components[track]
            motion.event_deltas[k, :width] = rng.integers(-9, 9, width) << exponents[i, track]
        motion.nodes = np.sort(rng.integers(0, nodes + 1, count)).astype(np.int32)
        allowed = sum(1 << t for t, n in enumerate(shape_counts) if n)
        motion.masks = (rng.integers(0, 64, count) * (rng.random(count) < 0.6)).astype(np.int32) & allowed
        motion.births = (rng.integers(0, frames + 1, count) * (rng.random(count) < 0.2)).astype(np.int32)
        motion.deaths = np.maximum(motion.births, frames - rng.integers(0, 4, count) * (rng.random(count) < 0.2))
        motion.deaths = np.maximum(motion.deaths, motion.births).astype(np.int32)
        magnitudes, residuals = np.zeros_like(motion.coefficients), np.zeros_like(motion.coefficients)
        quantize_tracks(
            parameters.counts, parameters.components, parameters.columns, parameters.weights, tile.coded.neighbors,
            exponents, motion.nodes, motion.masks, rng.normal(size=motion.coefficients.shape) * 60,
            np.full((count, 6), 0.5), motion.coefficients, magnitudes, residuals,
            np.zeros((max(total, 1) * CELLS, ALPHABET), np.int64),
        )  # fmt: skip
        payload, _ = encode_trajectories(parameters, motion, magnitudes, residuals, exponents, tile.coded.neighbors)
        chunks.append(Chunk("TRAJ", payload, level=1, tile=tile.number, count=count))
    return chunks


@pytest.fixture(scope="session")
def made_up_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Motion that no encoder would choose: every track, event, node and life at random, scenes that add to others."""
    folder = tmp_path_factory.mktemp("made-up-moving")
    paths = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        degree = seed % 4
        scenes = [
            _scene_chunks(sample_scene(count).with_sh_degree(degree), quality=quality)
            for count, quality in ((160, 50), (60, 70))
        ]
        file = io.BytesIO()
        writer = SequenceWriter(file, 30, {"up": [0.0, 1.0, 0.0]})
        with ThreadPoolExecutor(1) as pool:
            bases = []
            for chunks in scenes:
                single = io.BytesIO()
                alone = SequenceWriter(single, 30)
                head = alone.size_bytes
                count = sum(chunk.count for chunk in chunks if chunk.type == "TILE")
                alone.add(GroupChunks(chunks, 1, num_gaussians=count, features=("lossy-1",)))
                bases.append(decode_base(Container(single, "base", base=head), pool))
            joined = joined_base(bases[0], bases[1], Container(io.BytesIO(single.getvalue()), "x", base=head))
        counts = [base.num_gaussians for base in bases]
        first, second = scenes
        for frames, chunks, base, uses in (
            (6, first, bases[0], None), (1, [], bases[0], 0), (5, second, joined, 0), (3, second, bases[1], None),
        ):  # fmt: skip
            own = counts[0] if chunks is first else counts[1] if chunks else 0
            features = ("lossy-1",) if chunks else ()
            motion = _random_motion(base, frames, rng)
            writer.add(GroupChunks([*chunks, *motion], frames, num_gaussians=own, uses=uses, features=features))
        writer.finish()
        paths.append(folder / f"made-up-{seed}.splc")
        paths[-1].write_bytes(file.getvalue())
    return paths


# --- what Python makes of them ----------------------------------------------------------------------------------------


def _exact_alphas(group: MotionGroup, frame: int) -> npt.NDArray[np.float64]:
    """Opacities after the sigmoid, before they become logits (SPEC.md, 7.7)."""
    out = []
    for tile, motion, rows in zip(group.base.tiles, group.tiles, group.rows(frame)):
        column = int(group.parameters.columns[3])
        for i in rows:
            d = 0
            if (motion.masks[i] >> 3) & 1:
                shapes = group.parameters.shapes[3]
                d = int(sum(int(s[frame]) * int(motion.coefficients[i, column + j]) for j, s in enumerate(shapes)))
            for k in range(motion.event_starts[i], motion.event_starts[i + 1]):
                if motion.event_tracks[k] == 3 and motion.event_frames[k] <= frame:
                    d += int(motion.event_deltas[k, 0]) << 12
            level = max(int(tile.coded.values[i, 8]) + ((d + 2048) >> 12), 0)
            alpha = exp2_fixed(-level * tile.parameters.opacity_step)
            out.append(min(max(alpha, 1 / 4096), 4095 / 4096))
    return np.array(out, np.float64)


def _raised(tile: BaseTile) -> npt.NDArray[np.float64]:
    """How much variance axes of the base may get when they are held to the smallest there may be."""
    xx, xy, xz, yy, yz, zz = tile.coded.covariances.T
    full = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3)
    return np.maximum(-np.linalg.eigvalsh(full)[:, 0], 0) + tile.coded.smallest**2


def _video_planes(scene: Any, number: int) -> dict[str, npt.NDArray[np.int32]]:
    entry = scene.sequence.group_of(number)
    container, _ = scene.sequence.read_group(entry)
    reader = SceneGroupReader(container.read(container.one("VGRP")))
    for k, planes in enumerate(reader.planes.frames()):
        if k == number - entry.first_frame:
            return {**planes, "unit": np.array(reader._units)}
    raise AssertionError


def _expected(path: Path, folder: Path, numbers: list[int]) -> dict[str, Any]:
    """What moving.mjs compares with."""
    frames = []
    pictures: str | None = None
    title = f"golden-{path.parent.name}" if path.name == "stream.splc" else path.stem
    with api.open_moving(path) as scene:
        for number in numbers:
            frame = scene.frame(number)
            assert scene._group is not None
            group = scene._group[1]
            if isinstance(group, MotionGroup):
                entry = scene.sequence.group_of(number)
                local = number - entry.first_frame
                alphas = _exact_alphas(group, local)
                rows = group.rows(local)
                floors = np.concatenate([_raised(t)[r] for t, r in zip(group.base.tiles, rows)] or [[]])
                nodes = np.concatenate([m.nodes[r] for m, r in zip(group.tiles, rows)] or [[]])
            else:
                planes = _video_planes(scene, number)
                alphas = np.clip(planes["alpha"] * planes["unit"][3], 1e-6, 1 - 1e-6)
                floors, nodes = np.zeros(len(frame)), np.zeros(len(frame))
            turned = rotation_matrices(frame.quats) * np.exp(frame.scales.astype(np.float64))[:, None]
            full = turned @ turned.transpose(0, 2, 1)
            six = full.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]]
            trace = np.trace(full, axis1=1, axis2=2)
            arrays = {
                "means": frame.means.astype("<f4"), "sh0": frame.sh0.astype("<f4"), "shN": frame.shN.astype("<f4"),
                "alphas": alphas.astype("<f8"), "nodes": nodes.astype(np.uint8),
                "covariances": np.column_stack([six, trace, floors]).astype("<f8"),
            }  # fmt: skip
            files = {name: f"{title}-{number}-{name}.bin" for name in arrays}
            for name, values in arrays.items():
                (folder / files[name]).write_bytes(values.tobytes())
            frames.append({"number": number, "count": len(frame), "files": files})
        for entry in scene.groups:
            container, head = scene.sequence.read_group(entry)
            if head.coding == 1:
                stream = SceneGroupReader(container.read(container.one("VGRP"))).planes.stream
                if stream is not None:
                    pictures = str(folder / title)
                    name = hashlib.sha256(b"".join(stream.packets)).hexdigest()[:16]
                    lumas = b"".join(np.ascontiguousarray(picture).tobytes() for picture in decode_video(stream))
                    (folder / f"{title}-{name}.luma").write_bytes(lumas)
    return {"name": title, "stream": str(path), "pictures": pictures, "frames": frames}


@pytest.fixture(scope="session")
def expected(
    motion_file: Path, video_file: Path, made_up_files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("expected-moving")
    cases = [_expected(motion_file, folder, [0, 1, 4, 5, 8, 11]), _expected(video_file, folder, [0, 3, 4, 7])]
    cases += [_expected(path, folder, list(range(15))) for path in made_up_files]
    for name, golden in make_golden.MOVING.items():
        cases.append(_expected(make_golden.GOLDEN / "moving" / name / "stream.splc", folder, list(golden.frames)))
    (folder / "cases.json").write_text(json.dumps({"cases": cases}))
    return folder


# --- frames -----------------------------------------------------------------------------------------------------------


def test_the_frames_of_python(expected: Path) -> None:
    (facts,) = node("moving.mjs", "parity", expected)
    assert facts["cases"] == 9
    assert facts["gaussians"] > 10_000
    assert min(facts["turned"], facts["events"]) > 100
    assert facts["shape_error"] < 1e-5
    assert facts["sh_error"] < 1e-5


def test_the_frames_of_the_slow_reader(expected: Path) -> None:
    (facts,) = node("moving.mjs", "agree", expected)
    assert facts["cases"] == 9
    assert facts["videos"] == 4
    assert facts["gaussians"] > 10_000
    assert facts["turned"] > 100
    assert facts["shape_error"] < 1e-5
    assert facts["sh_error"] < 1e-5


def test_records_say_the_same(expected: Path) -> None:
    (facts,) = node("moving.mjs", "records", expected)
    assert facts["nodes"] > 0
    # What rests, or moves with a node, is not packed again.
    assert facts["updated"] < 0.8 * facts["blocks"]
    assert facts["position"] < 0.51
    assert facts["color"] < 0.51
    assert facts["alpha"] < 0.5 / 255 + 1e-6
    assert facts["covariance"] < 0.1
    assert facts["sh"] < 1 / 120


def test_however_the_bytes_come(server: Any, motion_file: Path) -> None:  # noqa: F811
    url, handler = server
    (handler.folder / motion_file.name).write_bytes(motion_file.read_bytes())
    (facts,) = node("moving.mjs", "ways", motion_file, url)
    assert (facts["found"], facts["numFrames"], facts["groups"]) == (FRAMES, FRAMES, 3)
    assert facts["fps"] == 24
    assert facts["notices"] == []
    assert facts["meta"]["up"] == [0.0, -1.0, 0.0]


# --- damage -----------------------------------------------------------------------------------------------------------


def test_cut_and_damaged_files_play_and_say_so(motion_file: Path, made_up_files: list[Path], tmp_path: Path) -> None:
    content = motion_file.read_bytes()
    with api.open_moving(motion_file) as scene:
        groups = list(scene.groups)
    end = groups[-1].offset + groups[-1].length
    cuts = {
        "index": end + 20,
        "no-index": end,
        "group": end - 1,
        "start": groups[2].offset + 7,
        "head": groups[0].offset,
    }
    paths = []
    for name, length in cuts.items():
        paths.append(tmp_path / f"{name}.splc")
        paths[-1].write_bytes(content[:length])
    hurt = bytearray(content)
    hurt[groups[1].offset + groups[1].length - 9] ^= 1
    paths.append(tmp_path / "payload.splc")
    paths[-1].write_bytes(hurt)
    gap = bytearray(content[:end])
    gap[groups[1].offset + 20] ^= 1
    paths.append(tmp_path / "gap.splc")
    paths[-1].write_bytes(gap)
    index, whole, group, start, head, payload, hole = node("moving.mjs", "left", *paths)
    for facts in (index, whole):
        assert facts["numbers"] == list(range(FRAMES))
        assert not facts["complete"]
        assert facts["error"] is None
        assert any("not finished" in notice for notice in facts["notices"])
    for facts in (group, start):
        assert facts["numbers"] == list(range(10))
        assert any("cut off" in notice and "10" in notice for notice in facts["notices"])
    assert head["numbers"] == []
    assert payload["numbers"] == [0, 1, 2, 3, 4, 10, 11]
    assert any("group 1 (frames 5 to 9) is damaged" in notice for notice in payload["notices"])
    assert payload["error"]["code"] == "checksum"
    assert "group 1" in payload["error"]["chunk"]
    assert groups[1].offset < payload["error"]["offset"] < groups[2].offset
    assert hole["numbers"] == [0, 1, 2, 3, 4, 10, 11]
    assert len(hole["gaps"]) == 1
    assert f"bytes {groups[1].offset} to {groups[2].offset - 1}" in hole["gaps"][0]
    assert hole["error"]["code"] == "format"


def test_damage_gives_frames_or_one_error(motion_file: Path, video_file: Path, made_up_files: list[Path]) -> None:
    (facts,) = node("moving.mjs", "mutate", 600, 1, "-", motion_file, video_file, *made_up_files)
    assert sum(facts["outcomes"].values()) == 600
    assert min(facts["outcomes"].get(code, 0) for code in ("frames", "format", "truncated", "checksum")) > 20
    assert facts["slowest_ms"] < 5000
