"""Moving scenes: the file of groups, motion coding, who is who, inputs, damage, the command line."""

from __future__ import annotations

import gc
import io
import itertools
import json
import tracemalloc
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_sequences import MovingScene as TestScene

import splatcodec
from splatcodec import api
from splatcodec.bitstream.container import Chunk, Container, Feature, write_container
from splatcodec.cli.main import main
from splatcodec.errors import (
    BackendUnavailableError,
    FormatError,
    ParameterError,
    SplatCodecError,
    UnsupportedError,
)
from splatcodec.gaussians import SH_C0, Gaussians
from splatcodec.metrics.compare import compare
from splatcodec.metrics.moving import compare_frames
from splatcodec.render.camera import evaluation_cameras
from splatcodec.sample import sample_scene
from splatcodec.sequence import video_stream
from splatcodec.sequence.correspond import Tracker
from splatcodec.sequence.encoder import MotionEncoder, MotionOptions
from splatcodec.sequence.file import GroupChunks, SequenceFile, SequenceWriter, rate_of
from splatcodec.sequence.fit import Block, fill_absent, find_nodes, fit_block
from splatcodec.sequence.input import FrameFolder, is_moving_source, open_frames, read_trajectories
from splatcodec.sequence.motion import MotionParameters, TileMotion, decode_trajectories, encode_trajectories
from splatcodec.sequence.motion_kernels import CELLS, turn_sh
from splatcodec.sequence.scene import MovingScene, Recorder
from splatcodec.sh_rotation import turned_sh

FRAMES, GROUP = 12, 5
TestScene.__test__ = False  # a class of scenes, not of tests


@pytest.fixture(scope="module")
def moving() -> TestScene:
    return TestScene(sample_scene(900), FRAMES)


@pytest.fixture(scope="module")
def coded(moving: TestScene, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sequence") / "moving.splc"
    api.compress_sequence(moving.frames(), path, fps=24, group=GROUP, effort=3, quality=60)
    return path.read_bytes()


def reopened(payload: bytes) -> MovingScene:
    scene = splatcodec.open(payload)
    assert isinstance(scene, MovingScene)
    return scene


# ------------------------------------------------------------------------------------------------------- round trip


def test_decoded_frames_look_like_the_originals(moving: TestScene, coded: bytes) -> None:
    raw = sum(frame.array_bytes for frame in moving.frames())
    assert len(coded) < raw / 40
    with reopened(coded) as scene:
        assert (len(scene), scene.fps, scene.complete) == (FRAMES, 24.0, True)
        assert scene.metadata["up"] == [0.0, -1.0, 0.0]
        cameras = evaluation_cameras(moving.frame(FRAMES // 2), num_views=4, size_px=160)
        found = compare_frames(
            ((k, moving.frame(k), frame) for k, frame in scene.numbered_frames()), cameras, num_threads=2
        )
        assert found.psnr_db > 36.0
        assert found.worst_frame["psnr_db"] > 33.0
        assert found.flicker_db is not None
        assert found.flicker_db > 36.0


def test_frames_come_in_any_order_and_are_the_same(coded: bytes) -> None:
    with reopened(coded) as scene, reopened(coded) as other:
        ordered = list(scene)
        for k in (11, 0, 7, 6, 4):
            again = other[k]
            for name in ("means", "quats", "scales", "opacities", "sh0", "shN"):
                assert np.array_equal(getattr(ordered[k], name), getattr(again, name))
        assert len(other[-1]) == len(ordered[-1])
        assert sum(1 for _ in scene.frames(3, 9, 2)) == 3
        with pytest.raises(ParameterError, match="no frame 12"):
            scene.frame(FRAMES)
        with pytest.raises(IndexError):
            scene[FRAMES]
        with pytest.raises(ParameterError, match="frames 4:99"):
            list(scene.frames(4, 99))


def test_bytes_do_not_depend_on_threads(moving: TestScene, tmp_path: Path) -> None:
    payloads = []
    for threads in (1, 3):
        path = tmp_path / f"{threads}.splc"
        api.compress_sequence(list(moving.frames())[:4], path, group=4, effort=1, threads=threads)
        payloads.append(path.read_bytes())
    assert payloads[0] == payloads[1]


def test_what_rests_costs_next_to_nothing() -> None:
    scene = sample_scene(1500)
    still = [scene] * 16
    encoder = MotionEncoder(MotionOptions(group=8, effort=1))
    ids = np.arange(len(scene))
    first, second = (encoder.encode(Block.of([(ids, frame) for frame in still[:8]])) for _ in range(2))
    # The second group repeats nothing: no scene, no tracks.
    assert second.chunks.uses == 0
    assert second.chunks.size_bytes < 0.03 * first.chunks.size_bytes
    assert second.chunks.size_bytes < 700
    assert all(not motion.masks.any() for motion in second.decoded.tiles)


def test_rigid_parts_are_found_and_pay(moving: TestScene) -> None:
    ids = np.arange(len(moving.scene))
    block = Block.of([(ids, moving.frame(k)) for k in range(10)])
    reference = fill_absent(block.means, block.present)[5]
    everything = np.ones(len(block), bool)
    nodes = find_nodes(block, reference, everything, ~everything)
    part = moving.part[block.ids]
    for k in (2, 3, 4):
        counts = np.bincount(nodes.assignment[part == k], minlength=len(nodes) + 1)
        assert counts.max() > 0.8 * counts.sum()
        # In the node's own frame its Gaussians rest.
        rows = np.flatnonzero((part == k) & (nodes.assignment == counts.argmax()) & block.present.all(0))
        fit = fit_block(block, nodes)
        sizes = np.exp(block.scales.mean((0, 2)))[rows]
        assert np.median(np.linalg.norm(fit.offsets[:, rows], axis=2) / sizes) < 0.15


def test_births_and_deaths_come_back(tmp_path: Path) -> None:
    scene = sample_scene(400).replaced(shN=np.zeros((400, 0, 3)), opacities=np.full(400, 3.0))
    frames = []
    for k in range(8):
        opacities = scene.opacities.copy()
        if k < 3:
            opacities[:50] = -20.0
        if k >= 6:
            opacities[50:130] = -20.0
        opacities[200] = 3.0 if k == 7 else -20.0
        frames.append(scene.replaced(opacities=opacities))
    path = tmp_path / "a.splc"
    api.compress_sequence(frames, path, group=8, effort=1, prune=False)
    with api.open_moving(path) as moving:
        counts = np.array([len(frame) for frame in moving])
    whole = counts[3]
    assert whole > 380  # some show from nowhere and are too faint
    assert (counts[3:6] == whole).all()
    assert 45 <= whole - counts[0] <= 50
    assert (counts[:3] == counts[0]).all()
    assert counts[6] - counts[7] == -1
    assert 75 <= whole - counts[6] <= 80


def test_turned_harmonics_are_those_of_a_turned_scene() -> None:
    rng = np.random.default_rng(3)
    shN = rng.normal(size=(7, 15, 3)).astype(np.float32)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    from splatcodec.sequence.decoder import _sh_turns

    matrices = _sh_turns(np.stack([np.eye(3), turn]), 3)
    mine = shN.copy()
    turn_sh(np.arange(7), np.ones(7, np.int32), matrices, mine)
    np.testing.assert_allclose(mine, turned_sh(shN, turn), atol=2e-6)


def test_a_target_bitrate_is_kept(moving: TestScene, tmp_path: Path) -> None:
    path = tmp_path / "a.splc"
    frames = list(moving.frames())[:10]
    report = api.compress_sequence(frames, path, group=10, effort=1, target_bitrate=24_000, fps=10)
    assert 20_000 < report.size_bytes <= 24_000 + 500  # and the head and the index
    # Over any two groups in a row, which share a scene, and well used.
    api.compress_sequence(frames, path, group=2, keep=2, effort=1, target_bitrate=36_000, fps=10, overwrite=True)
    with api.open_moving(path) as scene:
        sizes = [group.length for group in scene.groups]
    assert all(a + b <= 36_000 * 0.4 for a, b in itertools.pairwise(sizes))
    assert sum(sizes) > 0.7 * 36_000
    with pytest.raises(ParameterError, match="does not fit"):
        api.compress_sequence(list(moving.frames())[:2], path, group=2, effort=1, target_bitrate=900, overwrite=True)


@pytest.mark.parametrize("profile", ["motion", "video"])
def test_memory_does_not_grow_with_the_length(tmp_path: Path, profile: Any) -> None:
    if profile == "video":
        pytest.importorskip("av")
    group, path = 2, tmp_path / "a.splc"
    used: list[int] = []

    def watched(frames: Iterable[Gaussians]) -> Iterator[Gaussians]:
        used.clear()
        for frame in frames:
            yield frame
            del frame
            gc.collect()
            used.append(tracemalloc.get_traced_memory()[0])

    def check() -> None:
        # Every second group has a scene of its own: of two that are alike, four groups apart.
        assert len(used) == 8 * group
        assert used[7 * group] - used[3 * group] < still.means.nbytes

    still = sample_scene(2000).with_sh_degree(0)
    frames = [still.replaced(means=still.means + np.float32(0.01 * k)) for k in range(2 * group)]
    # Kernels are compiled before: traced, that takes minutes.
    api.compress_sequence(frames, path, group=group, keep=2, effort=1, profile=profile)
    with api.open_moving(path) as scene:
        assert sum(1 for _ in scene) == 2 * group
    source = (still.replaced(means=still.means + np.float32(0.01 * k)) for k in range(8 * group))
    tracemalloc.start()
    try:
        api.compress_sequence(watched(source), path, group=group, keep=2, effort=1, profile=profile, overwrite=True)
        check()
        with api.open_moving(path) as scene:
            assert sum(1 for _ in watched(scene)) == 8 * group
            check()
    finally:
        tracemalloc.stop()


def test_empty_frames_and_empty_sequences(tmp_path: Path) -> None:
    path = tmp_path / "a.splc"
    report = api.compress_sequence([Gaussians.empty(1)] * 3, path, group=2, effort=1)
    assert (report.num_frames, report.num_groups) == (3, 2)
    with api.open_moving(path) as scene:
        assert [len(frame) for frame in scene] == [0, 0, 0]
    api.compress_sequence([], path, overwrite=True)
    with api.open_moving(path) as scene:
        assert len(scene) == 0
        assert list(scene) == []


# -------------------------------------------------------------------------------------------------------- the file


def tiny_group(frames: int, payload: bytes = b"abc") -> GroupChunks:
    return GroupChunks([Chunk("TEST", payload, critical=False)], frames)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 256), st.binary(max_size=40)), max_size=7),
    st.integers(0, 400),
    st.booleans(),
)
def test_a_file_that_is_cut_off_plays_to_its_last_whole_group(
    groups: list[tuple[int, bytes]], cut: int, finished: bool
) -> None:
    file = io.BytesIO()
    writer = SequenceWriter(file, 30)
    ends = [writer.size_bytes]
    for frames, payload in groups:
        ends.append(ends[-1] + writer.add(tiny_group(frames, payload)))
    if finished:
        assert writer.finish() == len(file.getvalue())
    whole = file.getvalue()
    read = SequenceFile(io.BytesIO(whole))
    assert read.complete == finished
    assert [g.num_frames for g in read.groups] == [frames for frames, _ in groups]
    assert read.num_frames == sum(frames for frames, _ in groups)
    kept = max(len(whole) - cut, ends[0])
    short = SequenceFile(io.BytesIO(whole[:kept]))
    assert len(short.groups) == sum(end <= kept for end in ends[1:])
    assert short.complete == (finished and kept == len(whole))
    assert not short.gaps
    # Recording goes on where it stopped.
    again = io.BytesIO(whole[:kept])
    more = SequenceWriter.resume(again)
    more.add(tiny_group(9))
    more.finish()
    final = SequenceFile(io.BytesIO(again.getvalue()))
    assert final.complete
    assert len(final.groups) == len(short.groups) + 1
    assert final.groups[-1].first_frame == short.num_frames


def test_one_group_is_a_container_of_its_own(coded: bytes) -> None:
    with reopened(coded) as scene:
        entry = scene.groups[1]
        alone = Container(io.BytesIO(coded[entry.offset : entry.offset + entry.length]))
        assert alone.has_feature("sequence-1")
        assert alone.chunks[0].type == "GRPH"
        assert [g.first_frame for g in scene.groups] == [0, 5, 10]
        assert [frame for g in scene.groups for frame in g.frames] == list(range(FRAMES))


def test_damage_is_an_error_that_names_the_group_or_a_gap(coded: bytes) -> None:
    with reopened(coded) as scene:
        entry = scene.groups[2]
    hurt = bytearray(coded)
    hurt[entry.offset + entry.length - 10] ^= 255
    with reopened(bytes(hurt)) as scene:
        assert len(list(scene.frames(0, entry.first_frame))) == entry.first_frame
        with pytest.raises(SplatCodecError, match="checksum") as caught:
            scene.frame(entry.first_frame)
        assert caught.value.file == "<bytes>"
        assert caught.value.offset is not None
        assert caught.value.offset >= entry.offset
        frames = [k for k, _ in scene.numbered_frames(keep_going=True)]
        assert frames == list(range(entry.first_frame))
        assert len(scene.damage) == 1
        assert "group 2 (frames 10 to 11)" in scene.damage[0]
    # Without its index, and with a group's header gone, the others are found and the gap is named.
    with reopened(coded) as scene:
        first, end = scene.groups[1], scene.groups[2].offset + scene.groups[2].length
    hurt = bytearray(coded[:end])
    hurt[first.offset + 8] ^= 255
    with reopened(bytes(hurt)) as scene:
        assert not scene.complete
        assert [g.number for g in scene.groups] == [0, 2]
        assert f"bytes {first.offset} to" in scene.damage[0]
        with pytest.raises(FormatError, match="gap"):
            scene.frame(first.first_frame)
        assert [k for k, _ in scene.numbered_frames(keep_going=True)] == [0, 1, 2, 3, 4, 10, 11]
        with pytest.raises(FormatError):
            scene.verify()


def test_every_flipped_byte_is_noticed_or_harmless(coded: bytes) -> None:
    with reopened(coded) as scene:
        exact = scene[7].means
        end = scene.groups[-1].offset + scene.groups[-1].length
    rng = np.random.default_rng(1)
    for at in rng.integers(0, end, 60):
        hurt = bytearray(coded)
        hurt[at] ^= 1 << int(rng.integers(8))
        try:
            with reopened(bytes(hurt)) as scene:
                assert np.array_equal(scene.frame(7).means, exact)
        except SplatCodecError:
            pass


@pytest.mark.parametrize("length", [0, 3, 39, 60, 120])
def test_a_head_that_is_cut_off_is_refused(coded: bytes, length: int) -> None:
    with pytest.raises(SplatCodecError):
        splatcodec.open(coded[:length])


def test_unknown_things_are_refused_by_name(coded: bytes) -> None:
    file = io.BytesIO()
    chunks = [Chunk("SEQH", bytes(12))]
    write_container(file, chunks, num_gaussians=0, features=[Feature("sequence-1")])
    with pytest.raises(FormatError, match="0/0 frames a second"):
        splatcodec.open(file.getvalue())
    file = io.BytesIO()
    write_container(file, [], num_gaussians=0, features=[Feature("sequence-2")])
    with pytest.raises(UnsupportedError, match="sequence-2"):
        splatcodec.open(file.getvalue())
    # Something behind a still scene is no sequence.
    still = splatcodec.compress(sample_scene(50), effort=1)
    with pytest.raises(FormatError, match="5 bytes after the end"):
        splatcodec.open(still + b"01234")
    with pytest.raises(ParameterError, match="a moving scene, not a still one"):
        splatcodec.decompress(coded)


def test_rates() -> None:
    assert rate_of(30) == 30
    assert rate_of("24000/1001") == Fraction(24000, 1001)
    assert rate_of("59.94") == Fraction(60000, 1001)
    assert rate_of(12.5) == Fraction(25, 2)
    for wrong in (0, -3, "x", float("nan"), float("inf"), "1/0", 1e30):
        with pytest.raises(ParameterError):
            rate_of(wrong)


# ----------------------------------------------------------------------------------------------------- motion coding


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 9), st.booleans(), st.integers(0, 3))
def test_trajectories_round_trip(seed: int, count: int, frames: int, events: bool, degree: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(0, 4))
    shape_counts = [int(rng.integers(0, min(frames, 3) + 1)) for _ in range(6)]
    shape_counts[5] = min(shape_counts[5], 1) if degree else 0
    shapes = [rng.integers(-9000, 9000, (n, frames)) for n in shape_counts]
    total = sum(shape_counts)
    turns = rng.integers(-65536, 65537, (nodes, 4, frames))
    turns[:, 0] |= 1
    from splatcodec.entropy.tables import ALPHABET, quantize_weights

    parameters = MotionParameters(
        frames, degree, shapes, rng.integers(-99, 99, (nodes, 3)), turns, rng.integers(-9999, 9999, (nodes, 3, frames)),
        0.25, 0.5, 0.125, 3, events, rng.integers(0, 8193, total), rng.integers(0, 2, (total, CELLS)).astype(np.uint8),
        np.stack([quantize_weights(np.ones(ALPHABET))] * 2),
    )  # fmt: skip
    parameters.maps = parameters.maps.reshape(total, CELLS)
    neighbors = np.full((count, 4), -1, np.int32)
    for i in range(1, count):
        neighbors[i] = np.sort(rng.integers(max(0, i - 16), i, 4))[::-1]
    exponents = rng.integers(0, 4, (count, 6)).astype(np.int32)
    has_events = events and frames > 1
    starts = np.concatenate([[0], np.cumsum(rng.integers(0, 3, count) * has_events)])
    motion = TileMotion.still(count, parameters, int(starts[-1]))
    motion.event_starts = starts.astype(np.int64)
    for i in range(count):
        span = slice(starts[i], starts[i + 1])
        number = span.stop - span.start
        number_of = min(number, frames - 1)
        if number_of < number:  # at most one a frame
            motion.event_starts[i + 1 :] -= number - number_of
            starts[i + 1 :] -= number - number_of
            span = slice(starts[i], starts[i + 1])
        motion.event_frames[span] = np.sort(rng.choice(np.arange(1, frames), number_of, replace=False))
        motion.event_tracks[span] = rng.integers(3, 5, number_of)
        for k in range(span.start, span.stop):
            width = parameters.components[motion.event_tracks[k]]
            motion.event_deltas[k, :width] = rng.integers(-50, 50, width) << exponents[i, motion.event_tracks[k]]
    used = int(motion.event_starts[-1])
    motion.event_frames, motion.event_tracks = motion.event_frames[:used], motion.event_tracks[:used]
    motion.event_deltas = motion.event_deltas[:used]
    motion.nodes = rng.integers(0, nodes + 1, count).astype(np.int32)
    allowed = sum(1 << t for t, n in enumerate(shape_counts) if n)
    motion.masks = (rng.integers(0, 64, count) & allowed).astype(np.int32)
    motion.births = rng.integers(0, frames + 1, count).astype(np.int32) * (rng.random(count) < 0.4)
    motion.deaths = np.maximum(motion.births, frames - rng.integers(0, frames + 1, count) * (rng.random(count) < 0.4))
    motion.births, motion.deaths = motion.births.astype(np.int32), motion.deaths.astype(np.int32)
    from splatcodec.sequence.motion_kernels import quantize_tracks

    magnitudes, residuals = np.zeros_like(motion.coefficients), np.zeros_like(motion.coefficients)
    targets = rng.normal(size=motion.coefficients.shape) * 300
    histogram = np.zeros((max(total, 1) * CELLS, ALPHABET), np.int64)
    quantize_tracks(
        parameters.counts, parameters.components, parameters.columns, parameters.weights, neighbors, exponents,
        motion.nodes, motion.masks, targets, np.full((count, 6), 0.5), motion.coefficients, magnitudes,
        residuals, histogram,
    )  # fmt: skip
    # Within half a step of what was wanted, for the tracks that a Gaussian has.
    for i in range(count):
        for t in range(6):
            span = slice(parameters.columns[t], parameters.columns[t + 1])
            if (motion.masks[i] >> t) & 1:
                away = np.abs(motion.coefficients[i, span] - targets[i, span])
                assert (away <= 2.0 ** (exponents[i, t] - 1) + 1e-6).all()
            else:
                assert not motion.coefficients[i, span].any()
    payload, _ = encode_trajectories(parameters, motion, magnitudes, residuals, exponents, neighbors)
    read = MotionParameters.from_bytes(parameters.to_bytes(), frames, degree)
    for mine, theirs in zip(parameters.shapes, read.shapes):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(parameters.turns, read.turns)
    assert np.array_equal(parameters.shifts, read.shifts)
    back = decode_trajectories(read, payload, exponents, neighbors)
    for name in TileMotion.__dataclass_fields__:
        if name != "event_starts" or events:
            assert np.array_equal(getattr(back, name), getattr(motion, name)), name
    for cut in {len(payload) - 1, len(payload) // 2, 11}:
        with pytest.raises(FormatError):
            decode_trajectories(read, payload[:cut], exponents, neighbors)
    for at in rng.integers(0, len(payload), 6):
        hurt = bytearray(payload)
        hurt[at] ^= 1 << int(rng.integers(8))
        try:  # a checksum stands before this; what slips past it must stay in bounds
            loose = decode_trajectories(read, bytes(hurt), exponents, neighbors)
        except FormatError:
            continue
        assert (loose.nodes <= nodes).all()
        assert ((loose.births >= 0) & (loose.births <= loose.deaths) & (loose.deaths <= frames)).all()


def test_events_move_colours_from_their_frame_on(coded: bytes) -> None:
    """Written by hand: the encoder does not need events, decoders must know them."""
    with reopened(coded) as scene:
        scene.frame(0)
        assert scene._group is not None
        group = scene._group[1]
        plain = [group.frame(f).sh0.copy() for f in range(4)]
        motion = group.tiles[0]
        row = int(np.flatnonzero((motion.births == 0) & (motion.deaths == GROUP))[0])
        count = len(motion.nodes)
        motion.event_starts = (np.arange(count + 1) > row).astype(np.int64)
        motion.event_frames, motion.event_tracks = np.array([2], np.int32), np.array([4], np.int32)
        motion.event_deltas = np.zeros((1, 45), np.int32)
        motion.event_deltas[0, :3] = 64
        for f in range(4):
            at = int(np.searchsorted(group.rows(f)[0], row))
            change = group.frame(f).sh0 - plain[f]
            assert (np.abs(change[at]).max() > 1e-3) == (f >= 2)
            change[at] = 0
            assert not change.any()


def test_changes_for_good_are_events(tmp_path: Path) -> None:
    scene = sample_scene(600).with_sh_degree(1)
    frames = []
    for k in range(10):
        sh0, shN, opacities = scene.sh0.copy(), scene.shN.copy(), scene.opacities.copy()
        for row in range(60):  # each at a time of its own
            if k >= 1 + row % 9:
                sh0[row] += (1.0, -0.6, 0.3)
                shN[row, 1] += 0.5
                opacities[row] = -1.0
        frames.append(scene.replaced(sh0=sh0, shN=shN, opacities=opacities))
    path = tmp_path / "a.splc"
    api.compress_sequence(frames, path, group=10, effort=1, quality=70, prune=False)
    with api.open_moving(path) as moving:
        assert moving[0].num_gaussians == 600
        tiles = moving._group[1].tiles if moving._group else []
        rows = {row for tile in tiles for row in np.flatnonzero(np.diff(tile.event_starts))}
        assert 30 <= len(rows) <= 75
        for k in (0, 4, 9):
            assert compare(frames[k], moving[k], num_views=4, size_px=96).psnr_db > 38


# -------------------------------------------------------------------------------------------------------- who is who


def shuffled(frame: Gaussians, rng: np.random.Generator) -> tuple[Gaussians, np.ndarray]:
    order = rng.permutation(len(frame))
    return frame.selected(order), order


def test_unordered_frames_are_matched(moving: TestScene) -> None:
    rng = np.random.default_rng(5)
    tracker = Tracker()
    owner: dict[int, int] = {}
    wrong = right = 0
    for k in range(6):
        frame = moving.frame(k)
        alive = np.flatnonzero(frame.alphas() >= 1 / 255)
        frame, order = shuffled(frame.selected(alive), rng)
        ids, cut = tracker.follow(frame)
        assert not cut
        assert len(np.unique(ids)) == len(ids)
        for number, row in zip(ids, alive[order]):
            if int(number) in owner:
                right, wrong = right + (owner[int(number)] == row), wrong + (owner[int(number)] != row)
            owner[int(number)] = int(row)
    assert right > 0.97 * (right + wrong)
    assert right > 0.9 * 5 * 0.9 * len(moving.scene)


def test_equal_order_is_noticed_and_numbers_decide(moving: TestScene) -> None:
    tracker = Tracker()
    first, _ = tracker.follow(moving.frame(0))
    second, cut = tracker.follow(moving.frame(1))
    assert np.array_equal(first, second)
    assert not cut
    numbers = np.arange(900)[::-1] + 17
    ids, _ = Tracker().follow(moving.frame(0).replaced(extras={"id": numbers}))
    assert np.array_equal(ids, numbers)
    with pytest.raises(ParameterError, match="names a Gaussian twice"):
        Tracker().follow(moving.frame(0).replaced(extras={"id": numbers * 0}), "f.ply")


def test_a_new_scene_is_a_cut_and_noise_is_refused() -> None:
    rng = np.random.default_rng(2)

    def cloud() -> Gaussians:
        n = 200 + int(rng.integers(50))
        return Gaussians(
            rng.normal(size=(n, 3)) * 50, rng.normal(size=(n, 4)), rng.normal(size=(n, 3)) - 3, rng.normal(size=n),
            rng.normal(size=(n, 1, 3)),
        )  # fmt: skip

    file = io.BytesIO()
    recorder = Recorder(file, group=8, effort=1)
    a, b = cloud(), cloud()
    for frame in (a, a, b, b):
        recorder.add(frame)
    report = recorder.finish()
    assert report.num_groups == 2
    assert "frame 2 begins a new scene" in report.notes
    tracker = Tracker()
    for _ in range(3):
        tracker.follow(cloud(), "x.ply")
    with pytest.raises(ParameterError, match="do not correspond"):
        tracker.follow(cloud(), "x.ply")


# ------------------------------------------------------------------------------------------------------------ inputs


def test_bad_frames_are_told(moving: TestScene, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for k in (8, 9, 10, 11):
        api.write(moving.frame(k), folder / f"f{k}.ply")
    assert [path.name for path in FrameFolder(folder).files] == ["f8.ply", "f9.ply", "f10.ply", "f11.ply"]
    assert is_moving_source(folder)
    (folder / "f10.ply").unlink()
    with pytest.raises(ParameterError, match="frame 10 is missing between 8 and 11"):
        open_frames(folder)
    (folder / "f10.ply").write_bytes((folder / "f9.ply").read_bytes()[:4000])
    out = tmp_path / "out.splc"
    with pytest.raises(SplatCodecError) as caught:
        api.compress_sequence(folder, out, effort=1)
    assert "f10.ply" in str(caught.value)
    assert not out.exists()
    (folder / "f12.spz").write_bytes(b"")
    with pytest.raises(ParameterError, match="several kinds"):
        open_frames(folder)
    with pytest.raises(ParameterError, match="not frames"):
        open_frames(folder / "f8.ply")


def test_nan_in_one_frame_is_repaired_and_said(moving: TestScene, tmp_path: Path) -> None:
    frames = list(moving.frames())[:4]
    means = frames[2].means.copy()
    means[5] = np.nan
    frames[2] = frames[2].replaced(means=means)
    path = tmp_path / "a.splc"
    report = api.compress_sequence(frames, path, group=4, effort=1)
    assert report.notes[0] == "frame 2: 1 with non-finite values dropped"
    with api.open_moving(path) as scene:
        assert all(np.isfinite(frame.means).all() for frame in scene)
        assert compare(moving.frame(2), scene[2], num_views=3, size_px=96).psnr_db > 30
    with pytest.raises(ParameterError, match="SH degree 0"):
        api.compress_sequence([frames[0], frames[1].with_sh_degree(0)], path, overwrite=True)
    with pytest.raises(ParameterError, match="no Gaussian of the frame"):
        api.compress_sequence([frames[0].replaced(means=means * np.nan)], path, overwrite=True)


def test_counts_that_jump_are_births_and_deaths(moving: TestScene, tmp_path: Path) -> None:
    frames = [moving.frame(k) for k in range(6)]
    frames[3:] = [frame.selected(slice(0, None, 2)) for frame in frames[3:]]
    path = tmp_path / "a.splc"
    api.compress_sequence(frames, path, group=6, effort=1, prune=False)
    with api.open_moving(path) as scene:
        counts = [len(frame) for frame in scene]
        assert counts[3] < 0.7 * counts[2]
        assert compare(frames[4], scene[4], num_views=3, size_px=96).psnr_db > 30


def test_trajectories_from_npz(tmp_path: Path) -> None:
    n = 30
    rng = np.random.default_rng(1)
    start = rng.normal(size=(n, 3))
    arrays: dict[str, Any] = {
        "means": start, "scales": np.full((n, 3), -3.0), "opacities": np.full(n, 2.0), "sh0": rng.normal(size=(n, 3)),
        "position_polynomial": rng.normal(size=(n, 3, 2)), "position_sines": rng.normal(size=(n, 3, 1)),
        "time_center": np.full(n, 0.25), "time_scale": np.full(n, 2.0), "times": np.linspace(0, 1, 5),
    }  # fmt: skip
    path = tmp_path / "t.npz"
    np.savez(path, **arrays)
    frames = list(read_trajectories(path))
    dt = 0.75 - 0.25
    wanted = start + arrays["position_polynomial"] @ [dt, dt * dt]
    wanted += arrays["position_sines"][:, :, 0] * np.sin(2 * np.pi * dt)
    np.testing.assert_allclose(frames[3].means, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(frames[3].alphas(), np.exp(-((dt / 2) ** 2)) / (1 + np.exp(-2.0)), rtol=1e-5)
    for key, value, match in (
        ("means", start[:5], "shape"), ("surprise", start, "unknown array"), ("opacities", np.zeros((3, n)), "frames"),
    ):  # fmt: skip
        np.savez(path, **{**arrays, key: value})
        with pytest.raises(FormatError, match=match):
            read_trajectories(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(FormatError, match=r"not an \.npz"):
        read_trajectories(path)


def test_spacetime_gaussians(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    names = ["x", "y", "z", "trbf_center", "trbf_scale", "opacity"]
    for name, count in (("motion", 9), ("f_dc", 3), ("scale", 3), ("rot", 4), ("omega", 4)):
        names += [f"{name}_{k}" for k in range(count)]
    table = rng.normal(size=(12, len(names))).astype("<f4")
    head = "ply\nformat binary_little_endian 1.0\nelement vertex 12\n"
    head += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    path = tmp_path / "s.ply"
    path.write_bytes(head.encode() + table.tobytes())
    assert is_moving_source(path)
    column = {name: table[:, k].astype(np.float64) for k, name in enumerate(names)}
    frame = open_frames(path, count=10).frame(4)
    dt = 0.4 - column["trbf_center"]
    moved = column["y"] + column["motion_1"] * dt + column["motion_4"] * dt**2 + column["motion_7"] * dt**3
    np.testing.assert_allclose(frame.means[:, 1], moved, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(frame.quats[:, 2], column["rot_2"] + column["omega_2"] * dt, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(0.5 + SH_C0 * frame.sh0[:, 0, 0], column["f_dc_0"], rtol=1e-4, atol=1e-5)
    with pytest.raises(ParameterError, match="how many frames"):
        open_frames(path)


# ------------------------------------------------------------------------------------------------------- command line


def run(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_commands(moving: TestScene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for k in range(6):
        api.write(moving.frame(k), folder / f"frame_{k:03}.ply")
    out = tmp_path / "m.splc"
    code, text, _ = run("compress", folder, out, "--fps", "29.97", "--group", 3, "--effort", 1, "--json", capsys=capsys)
    assert code == 0
    facts = json.loads(text)
    assert (facts["num_frames"], facts["num_groups"]) == (6, 2)
    assert facts["size_bytes"] == out.stat().st_size
    code, text, _ = run("info", out, "--json", capsys=capsys)
    facts = json.loads(text)
    assert (code, facts["moving"], facts["num_frames"], facts["complete"]) == (0, True, 6, True)
    assert facts["fps"] == pytest.approx(29.97, abs=0.001)
    assert [group["coding"] for group in facts["groups"]] == ["motion", "motion"]
    assert run("verify", out, "--full", capsys=capsys)[0] == 0
    code, text, _ = run("compare", folder, out, "--size", 96, "--frames", "1:5", "--json", capsys=capsys)
    facts = json.loads(text)
    assert code == 0
    assert [frame["frame"] for frame in facts["frames"]] == [1, 2, 3, 4]
    assert facts["psnr_db"] > 30
    assert facts["worst_frame"]["psnr_db"] == min(frame["psnr_db"] for frame in facts["frames"])
    assert facts["flicker_db"] > 30
    assert run("compare", folder, out, "--size", 64, "--min-psnr", 90, capsys=capsys)[0] == 7
    back = tmp_path / "back"
    assert run("decompress", out, back, "--frames", "2:5", capsys=capsys)[0] == 0
    assert sorted(path.name for path in back.iterdir()) == ["frame_00002.ply", "frame_00003.ply", "frame_00004.ply"]
    with api.open_moving(out) as scene:
        np.testing.assert_array_equal(api.read(back / "frame_00003.ply").means, scene[3].means)
    video = tmp_path / "o.mp4"
    assert run("render", out, video, "--orbit", "--size", 64, capsys=capsys)[0] == 0
    import av

    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6
    assert run("render", out, tmp_path / "o.png", "--at", 4, "--size", 48, capsys=capsys)[0] == 0
    # What belongs to the other kind of scene is refused before any work.
    for arguments in (
        ("compress", folder, tmp_path / "x.splc", "--lossless"),
        ("compress", folder / "frame_000.ply", tmp_path / "x.splc", "--fps", 30),
        ("decompress", out, tmp_path / "x", "--levels", 1),
        ("convert", out, tmp_path / "x.ply"),
        ("render", folder / "frame_000.ply", tmp_path / "y.png", "--at", 3),
    ):
        assert run(*arguments, capsys=capsys)[0] == 2, arguments
    # Recording goes on, and what a crash cut off is said.
    assert run("compress", folder, out, "--append", "--group", 3, "--effort", 1, capsys=capsys)[0] == 0
    whole = out.read_bytes()
    cut = tmp_path / "cut.splc"
    cut.write_bytes(whole[: len(whole) - 300])
    code, _, told = run("decompress", cut, tmp_path / "cut", "--frames", "0:99", capsys=capsys)
    assert code == 0
    assert "cut off" in told
    assert len(list((tmp_path / "cut").iterdir())) == 9


def test_video_groups_are_in_the_same_file(moving: TestScene, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    assert av
    path = tmp_path / "v.splc"
    frames = [moving.frame(k) for k in range(6)]
    api.compress_sequence(frames, path, group=3, effort=1, quality=40, profile="video")
    with api.open_moving(path) as scene:
        assert {group["coding"] for group in scene.describe()["groups"]} == {"video"}
        for k in (4, 1, 2):
            assert compare(frames[k], scene[k], num_views=3, size_px=96).psnr_db > 29
        entry = scene.groups[1]
    hurt = bytearray(path.read_bytes())
    hurt[entry.offset + entry.length // 2] ^= 255
    with reopened(bytes(hurt)) as scene, pytest.raises(SplatCodecError, match="checksum"):
        scene.frame(4)


def test_video_codecs_bitrates_and_planes(
    moving: TestScene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    av = pytest.importorskip("av")
    rng = np.random.default_rng(3)
    scene = sample_scene(400).with_sh_degree(0)
    # Sizes that change without rule are what the video is for.
    frames = [
        scene.replaced(scales=scene.scales + rng.normal(0, 0.2, scene.scales.shape).astype(np.float32))
        for _ in range(6)
    ]
    path = tmp_path / "v.splc"
    strings = {"h264": "avc1.", "hevc": "hvc1.", "av1": "av01."}
    for codec, begins in strings.items():
        try:
            av.CodecContext.create({"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}[codec], "w")
        except Exception:
            with pytest.raises(SplatCodecError, match="encoder"):
                api.compress_sequence(frames, path, group=3, profile="video", video_codec=codec, overwrite=True)
            continue
        api.compress_sequence(
            frames, path, group=3, profile="video", video_codec=codec, target_bitrate=120_000, overwrite=True
        )
        with api.open_moving(path) as decoded:
            sizes = [group.length for group in decoded.groups]
            assert decoded[4].num_gaussians > 300
        assert max(sizes) <= 120_000 * 3 / 30
        folder = tmp_path / codec
        code, text, _ = run("decompress", path, folder, "--planes", "--json", capsys=capsys)
        assert code == 0
        videos = json.loads(text)["videos"]
        assert [video["file"] for video in videos] == ["group_00000.mp4", "group_00001.mp4"]
        assert all(video["codec"].startswith(begins) for video in videos)
        with av.open(str(folder / "group_00001.mp4")) as container:
            pictures = list(container.decode(video=0))
        assert (len(pictures), pictures[0].width) == (3, videos[1]["width"])
    with pytest.raises(ParameterError, match="one profile"):
        api.compress_sequence(frames, path, profile="auto", target_bitrate=1000, overwrite=True)
    with pytest.raises(ParameterError, match="vp9"):
        api.compress_sequence(frames, path, profile="video", video_codec="vp9", overwrite=True)
    with pytest.raises(ParameterError, match="does not fit"):
        api.compress_sequence(frames[:2], path, profile="video", target_bitrate=500, overwrite=True)
    api.compress_sequence(frames[:2], path, effort=1, overwrite=True)
    assert run("decompress", path, tmp_path / "none", "--planes", capsys=capsys)[0] == 2


def test_without_a_video_encoder_auto_takes_motion_and_says_so(
    moving: TestScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    monkeypatch.setitem(video_stream._ENCODERS, "h264", "libnothing264")
    frames = [moving.frame(k) for k in range(4)]
    with pytest.raises(BackendUnavailableError, match="libnothing264"):
        api.compress_sequence(frames, tmp_path / "v.splc", group=2, effort=1, quality=40, profile="video")
    assert not (tmp_path / "v.splc").exists()
    report = api.compress_sequence(frames, tmp_path / "a.splc", group=2, effort=1, quality=40, profile="auto")
    assert [note for note in report.notes if "libnothing264" in note] == report.notes[:1]
    with api.open_moving(tmp_path / "a.splc") as scene:
        assert {group["coding"] for group in scene.describe()["groups"]} == {"motion"}
        assert len(list(scene.frames())) == 4
