"""Groups of frames as planes: round trips within their steps, exact video, rest for nothing, damage is an error."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_sequences import MovingScene

from splatcodec.errors import (
    BackendUnavailableError,
    ChecksumError,
    FormatError,
    LimitExceededError,
    ParameterError,
    SplatCodecError,
)
from splatcodec.gaussians import Gaussians
from splatcodec.limits import Limits
from splatcodec.metrics.psnr import covered_psnr_db
from splatcodec.render.camera import evaluation_cameras
from splatcodec.render.cpu import render
from splatcodec.sample import sample_scene
from splatcodec.sequence import video_stream
from splatcodec.sequence.video_columns import ColumnPlan, decode_columns, encode_columns
from splatcodec.sequence.video_planes import (
    GroupReader,
    PlaneOptions,
    VideoOptions,
    decode_group,
    encode_group,
    encode_group_to_error,
)
from splatcodec.sequence.video_scene import (
    SceneGroupReader,
    SceneOptions,
    encode_scene_group,
    encode_scene_to_psnr,
)
from splatcodec.sequence.video_stream import decode_video, encode_video, write_mp4

Planes = dict[str, npt.NDArray[np.int64]]
FRAMES, COUNT, WIDTH = 6, 500, 24


def moving_planes(frames: int = FRAMES, count: int = COUNT) -> Planes:
    """One plane of each kind: moves along, rests, changes without rule, 8 bits."""
    random = np.random.default_rng(5)
    time = np.linspace(0, 1, frames)[:, None]
    base = np.cumsum(random.normal(size=count) * 20) + 30_000
    far = np.arange(count) / count
    return {
        "x": np.rint(base + 3000 * np.sin(2 * time) * far).astype(np.int64),
        "y": np.rint(base[::-1] + 900 * time * far).astype(np.int64),
        "rest": np.rint(base / 7).astype(np.int64)[None].repeat(frames, 0),
        "wild": np.rint(128 + 40 * np.sin(base / 90 + random.normal(size=(frames, 1)) * 3)).astype(np.int64),
        "bytes": np.rint(128 + 60 * np.sin(base / 200 + 5 * time)).astype(np.int64),
    }


OPTIONS = VideoOptions(
    planes={
        "x": PlaneOptions("path", track="place", shift=2),
        "y": PlaneOptions("path", track="place", shift=2),
        "wild": PlaneOptions("video"),
        "bytes": PlaneOptions("direct"),
    },
    qp=8,
    effort=0,
)


@pytest.fixture(scope="module")
def payload() -> bytes:
    return encode_group(moving_planes(), WIDTH, OPTIONS).payload


# --- columns ---


@given(
    planes=st.integers(1, 6),
    count=st.integers(1, 300),
    width=st.integers(1, 40),
    size=st.sampled_from([0, 1, 9, 400, 1 << 20]),
    seed=st.integers(0, 1 << 16),
)
@settings(max_examples=60, deadline=None)
def test_columns_come_back_within_their_steps(planes: int, count: int, width: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(-size, size + 1, (planes, count))
    values[0] = random.integers(0, 12, count)
    plans = []
    for p in range(planes):
        references = tuple(int(r) for r in random.permutation(p)[: random.integers(0, 5)])
        steps = 0 if p and random.random() < 0.5 else None
        plans.append(ColumnPlan(references, int(random.integers(0, 4)) if p else 0, steps))
    coded, expected, shares = encode_columns(values, width, plans)
    decoded = decode_columns(coded, planes, count, width)
    np.testing.assert_array_equal(decoded, expected)
    for p, plan in enumerate(plans):
        step = 1 << np.minimum(plan.shift + (values[0] if plan.steps == 0 else 0), 15)
        assert (np.abs(decoded[p] - values[p]) <= step // 2).all()
    assert shares.sum() <= len(coded) + 8


def test_smooth_columns_cost_little_and_neighbours_help() -> None:
    y, x = np.mgrid[:64, :64]
    smooth = np.rint(900 * np.sin(x / 20) + 500 * np.cos(y / 15)).astype(np.int64).reshape(1, -1)
    same = np.concatenate([smooth, 3 * smooth + 7])
    alone = len(encode_columns(same, 64, [ColumnPlan(), ColumnPlan()])[0])
    assert alone < 2 * 4096 * 4 / 8
    assert len(encode_columns(same, 64, [ColumnPlan(), ColumnPlan((0,))])[0]) < 0.75 * alone
    assert len(encode_columns(np.zeros((3, 4096), np.int64), 64, [ColumnPlan()] * 3)[0]) < 150


def test_a_great_many_equal_values_can_be_read_back() -> None:
    coded = encode_group({"a": np.full(1 << 20, 5)[None], "b": np.full(1 << 20, 6)[None]}, 1024).payload
    assert len(coded) < 300
    assert (decode_group(coded)["b"] == 6).all()


def test_columns_refuse_what_they_cannot_code() -> None:
    zeros = np.zeros((2, 8), np.int64)
    for planes, plans in (
        (zeros, [ColumnPlan()]),
        (zeros, [ColumnPlan((0,)), ColumnPlan()]),
        (zeros, [ColumnPlan(), ColumnPlan(steps=1)]),
        (zeros, [ColumnPlan(shift=16), ColumnPlan()]),
        (zeros + (1 << 26), [ColumnPlan(), ColumnPlan()]),
    ):
        with pytest.raises(ParameterError):
            encode_columns(planes, 4, plans)


# --- video ---


def pictures(frames: int = 4, height: int = 64, width: int = 96) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(1)
    walk = np.cumsum(random.normal(size=(frames, height, width)), axis=2) * 3
    return np.clip(128 + walk, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("codec", "name"), [("h264", "avc1.6400"), ("hevc", "hvc1.1.6.L"), ("av1", "av01.0.")])
def test_video_is_what_any_decoder_shows(codec: str, name: str) -> None:
    import av

    source = pictures()
    stream = encode_video(source, codec=codec, qp=8)
    assert stream.codec_string.startswith(name)
    assert stream.keys == [True, False, False, False]
    decoded = np.stack([picture.copy() for picture in decode_video(stream)])
    assert np.sqrt(np.mean(np.square(decoded.astype(float) - source))) < 1.0
    assert encode_video(source, codec=codec, qp=8) == stream  # the same bytes every time
    # FFmpeg's demuxer, not ours, reads the MP4: the same bytes, tagged full range BT.709.
    with av.open(io.BytesIO(write_mp4([stream, stream]))) as container:
        video = container.streams.video[0]
        frames = list(container.decode(video))
        assert video.average_rate == 30
    assert len(frames) == 8
    for k, frame in enumerate(frames):
        plane = frame.planes[0]
        luma = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
        np.testing.assert_array_equal(luma, decoded[k % 4])
        assert (int(frame.color_range), int(frame.colorspace)) == (2, 1)
        chroma = np.frombuffer(frame.planes[1], np.uint8).reshape(-1, frame.planes[1].line_size)[:, : frame.width // 2]
        assert abs(chroma.astype(int) - 128).max() <= 1


def test_h264_packets_suit_webcodecs() -> None:
    stream = encode_video(pictures(), qp=20)
    record = stream.description
    assert record[0] == 1
    assert record[4] == 0xFF  # lengths of four bytes
    assert stream.codec_string == "avc1." + record[1:4].hex().upper()
    assert record[1] == 100  # High
    for packet, key in zip(stream.packets, stream.keys):
        at, kinds = 0, []
        while at < len(packet):
            (length,) = struct.unpack_from(">I", packet, at)
            kinds.append(packet[at + 4] & 31)
            at += 4 + length
        assert at == len(packet)
        assert kinds == [5] if key else kinds == [1]  # a slice, and nothing that a decoder could stumble over


def test_video_options_and_missing_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[dict[str, Any]] = [{"codec": "vp8"}, {"qp": 0}, {"qp": 52}, {"effort": 3}]
    for options in wrong:
        with pytest.raises(ParameterError):
            encode_video(pictures(), **options)
    for shape in ((1, 60, 96), (1, 64, 4112), (1, 4096, 4096), (0, 64, 64)):
        with pytest.raises(ParameterError):
            encode_video(np.zeros(shape, np.uint8))
    monkeypatch.setitem(video_stream._ENCODERS, "h264", "libnothing264")
    with pytest.raises(BackendUnavailableError, match="libnothing264"):
        encode_video(pictures())
    monkeypatch.setitem(video_stream._DECODERS, "hevc", ("nothing",))
    with pytest.raises(BackendUnavailableError, match="hevc"):
        list(decode_video(encode_video(pictures(), codec="hevc")))


def test_a_stream_that_lies_about_its_size_is_refused_before_it_is_decoded() -> None:
    stream = encode_video(pictures(2, 512, 512))
    with pytest.raises(FormatError):
        list(decode_video(replace(stream, width=64, height=64)))
    with pytest.raises(LimitExceededError):
        list(decode_video(stream, limits=Limits(max_image_pixels=1000)))
    with pytest.raises(FormatError):
        list(decode_video(replace(stream, packets=[stream.packets[0], b"\0\0\0\x04junk"])))


# --- groups ---


def test_planes_come_back_within_their_steps(payload: bytes) -> None:
    planes, decoded = moving_planes(), decode_group(payload)
    assert list(decoded) == list(planes)
    np.testing.assert_array_equal(decoded["rest"], planes["rest"])
    for name in ("x", "y"):
        # Half a step for the still and each function, and what functions left out carry.
        assert np.abs(decoded[name] - planes[name]).max() <= 10
    for name in ("wild", "bytes"):
        assert np.sqrt(np.mean(np.square(decoded[name] - planes[name]))) < 2.0
    frames = list(GroupReader(payload).frames(num_threads=1))
    for name, values in decoded.items():
        np.testing.assert_array_equal(values, np.stack([frame[name] for frame in frames]))


def test_the_payload_does_not_depend_on_the_run_and_the_mp4_shows_the_tiles() -> None:
    group = encode_group(moving_planes(), WIDTH, OPTIONS)
    assert group.payload == encode_group(moving_planes(), WIDTH, OPTIONS).payload
    assert group.codings["rest"] == "still"
    assert group.codings["x"].startswith("path")
    assert group.codings["wild"] == "video"
    assert group.codings["bytes"] == "direct"
    assert abs(sum(group.sizes.values()) - len(group.payload)) < 700
    assert group.stream is not None
    assert group.stream.width % 16 == group.stream.height % 16 == 0
    assert write_mp4([group.stream])[4:8] == b"ftyp"


def test_what_rests_costs_nothing_in_further_frames() -> None:
    still = {"a": moving_planes()["rest"][0]}
    short = encode_group({"a": np.repeat(still["a"][None], 2, 0)}, WIDTH).payload
    long = encode_group({"a": np.repeat(still["a"][None], 60, 0)}, WIDTH).payload
    assert len(long) <= len(short) + 1
    blank = np.zeros((60, COUNT), np.int64)
    video = encode_group({"a": blank + 77}, WIDTH, VideoOptions(planes={"a": PlaneOptions("video")}, effort=0))
    assert video.sizes["video"] < 60 * 30 + 200


def test_auto_finds_motion_noise_and_chaos() -> None:
    random = np.random.default_rng(2)
    time = np.linspace(0, 1, 20)[:, None]
    amount = random.normal(size=800) * 400
    moves = np.rint(amount * np.sin(3 * time) + amount[::-1] * time**2).astype(np.int64)
    chaos = np.rint(random.normal(size=(20, 800)).cumsum(0) * 12).astype(np.int64)
    noise = random.integers(-3, 4, (20, 800))
    options = VideoOptions(
        planes={
            "moves": PlaneOptions(shift=3),
            "chaos": PlaneOptions(shift=3),
            "noise": PlaneOptions(shift=1, denoise=True),
            "exact": PlaneOptions(shift=1),
        },
        effort=0,
        qp=14,
    )
    group = encode_group({"moves": moves, "chaos": chaos, "noise": noise, "exact": noise}, 32, options)
    assert group.codings == {"moves": "path 2", "chaos": "video", "noise": "still", "exact": "video"}
    decoded = decode_group(group.payload)
    assert np.abs(decoded["moves"] - moves).max() <= 3 * 4 + 6
    assert np.sqrt(np.mean(np.square(decoded["chaos"] - chaos))) < 6
    assert np.sqrt(np.mean(np.square(decoded["noise"] - noise))) < 2.3
    assert np.sqrt(np.mean(np.square(decoded["exact"] - noise))) < 1.5


@given(
    frames=st.integers(1, 5),
    count=st.integers(1, 90),
    width=st.integers(1, 30),
    coding=st.sampled_from(["auto", "still", "path", "video"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_shape_comes_back(frames: int, count: int, width: int, coding: str, seed: int) -> None:
    width = min(width, count)
    random = np.random.default_rng(seed)
    values = random.integers(0, 100) + random.integers(-20, 21, (1, count)) + random.integers(0, 9, (frames, 1))
    options = VideoOptions(planes={"a": PlaneOptions(coding)}, qp=4, effort=0)
    decoded = decode_group(encode_group({"a": values.astype(np.int32)}, width, options).payload)["a"]
    assert decoded.shape == values.shape
    assert np.abs(decoded - values).max() <= (9 if coding == "still" else 4)


def test_qp_is_the_coarsest_that_the_error_allows() -> None:
    planes = {"wild": moving_planes()["wild"]}
    options = VideoOptions(planes={"wild": PlaneOptions("video")}, effort=0)

    def error(payload: bytes) -> float:
        return float(np.sqrt(np.mean(np.square(decode_group(payload)["wild"] - planes["wild"]))))

    group = encode_group_to_error(planes, WIDTH, options, error, 1.0)
    fine, coarse = (error(encode_group(planes, WIDTH, replace(options, qp=qp)).payload) for qp in (8, group.qp + 1))
    assert error(group.payload) <= fine + 1.0 < coarse
    assert group.qp > 8


def test_bad_planes_and_options_are_refused() -> None:
    planes = moving_planes()
    cases: list[tuple[Any, int, VideoOptions]] = [
        ({}, 4, VideoOptions()),
        ({"a": np.zeros((0, 5), np.int64)}, 4, VideoOptions()),
        ({"a": np.zeros((2, 5))}, 4, VideoOptions()),
        ({"a": np.zeros((300, 5), np.int64)}, 4, VideoOptions()),
        ({"a": np.zeros((2, 5), np.int64), "b": np.zeros((3, 5), np.int64)}, 4, VideoOptions()),
        ({"a": np.full((2, 5), 1 << 24)}, 4, VideoOptions()),
        ({"ä": np.zeros((2, 5), np.int64)}, 4, VideoOptions()),
        ({"a": np.zeros((2, 5), np.int64)}, 6, VideoOptions()),
        (planes, WIDTH, VideoOptions(planes={"z": PlaneOptions()})),
        (planes, WIDTH, VideoOptions(planes={"x": PlaneOptions("film")})),
        (planes, WIDTH, VideoOptions(planes={"x": PlaneOptions("direct")})),
        (planes, WIDTH, VideoOptions(planes={"x": PlaneOptions(shift=16)})),
        (planes, WIDTH, VideoOptions(planes={"x": PlaneOptions(steps="y")})),
        (planes, WIDTH, VideoOptions(planes={"y": PlaneOptions(steps="x")})),
        (planes, WIDTH, VideoOptions(planes={"wild": PlaneOptions("video")}, codec="mjpeg")),
    ]
    for values, width, options in cases:
        with pytest.raises(ParameterError):
            encode_group(values, width, options)


# --- damage ---


def _sealed(data: bytes) -> bytes:
    """The payload with a checksum that matches, so that damage is found by what reads it."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def test_every_truncation_is_an_error(payload: bytes) -> None:
    lengths = [*range(0, min(len(payload), 400)), *range(400, len(payload), 37)]
    for length in lengths:
        with pytest.raises(FormatError):
            decode_group(payload[:length])
        if length >= 4:
            with pytest.raises(SplatCodecError):
                decode_group(_sealed(payload[:length]))


def test_flipped_bits_give_planes_or_one_error(payload: bytes) -> None:
    random = np.random.default_rng(0)
    small = Limits(max_array_bytes=1 << 26, max_gaussians=1 << 20)
    wrong = 0
    for _ in range(400):
        at, bit = int(random.integers(0, len(payload) - 4)), int(random.integers(0, 8))
        data = bytearray(payload)
        data[at] ^= 1 << bit
        with pytest.raises(ChecksumError):
            decode_group(bytes(data))
        try:
            decoded = decode_group(_sealed(bytes(data)), small)
        except SplatCodecError:
            wrong += 1
            continue
        assert all(values.dtype == np.int32 for values in decoded.values())
    assert wrong > 100


def test_lying_sizes_do_not_ask_for_memory() -> None:
    def head(frames: int, count: int, width: int) -> bytes:
        from splatcodec.bitstream.container import write_varint

        out = b"\1" + b"".join(write_varint(n) for n in (frames, count, width, 0, 1))
        out += b"\1a" + struct.pack("<ii", 0, 9) + b"\1\0" + write_varint(6) + bytes(6) + b"\0"
        return _sealed(out + bytes(4))

    for frames, count, width in ((256, 1 << 24, 4096), (1, 1 << 24, 1), (300, 5, 5), (1, 5, 6), (0, 5, 5), (2, 0, 0)):
        with pytest.raises(FormatError):
            decode_group(head(frames, count, width))
    with pytest.raises(LimitExceededError):
        decode_group(head(2, 1 << 20, 1024), Limits(max_gaussians=1000))
    with pytest.raises(LimitExceededError):
        decode_group(head(2, 1 << 20, 1024), Limits(max_array_bytes=1 << 20))


# --- scenes ---


@pytest.fixture(scope="module")
def frames() -> list[Gaussians]:
    return list(MovingScene(sample_scene(1200), num_frames=8, noise_db=45.0).frames())


def psnr_db(original: list[Gaussians], decoded: list[Gaussians]) -> float:
    found = []
    for a, b in list(zip(original, decoded))[::3]:
        for camera in evaluation_cameras(a, num_views=3, size_px=160):
            found.append(covered_psnr_db(render(a, camera), render(b, camera)))
    return float(np.mean(found))


@pytest.mark.parametrize(("appearance", "grid"), [("video", "sort"), ("auto", "curve")])
def test_moving_scenes_look_right(frames: list[Gaussians], appearance: str, grid: str) -> None:
    sizes, psnrs = [], []
    for slope in (0.06, 0.01):
        options = SceneOptions(slope=slope, appearance=appearance, grid=grid, qp=14, effort=0, num_views=4)
        group = encode_scene_group(frames, options)
        reader = SceneGroupReader(group.payload)
        assert reader.num_frames == 8
        assert reader.num_gaussians == len(group.rows) <= 1200
        decoded = list(reader.frames())
        assert decoded[0].sh_degree == frames[0].sh_degree
        sizes.append(len(group.payload))
        psnrs.append(psnr_db(frames, decoded))
        assert ("video" in group.planes.codings["alpha"]) or appearance == "auto"
    assert sizes[0] < sizes[1]
    assert psnrs[0] + 3 < psnrs[1]
    assert psnrs[1] > 36


def test_rows_say_which_gaussians_came_back(frames: list[Gaussians]) -> None:
    group = encode_scene_group(frames, SceneOptions(slope=0.004, prune=False, qp=10, effort=0, num_views=2))
    assert np.array_equal(np.sort(group.rows), np.arange(1200))
    decoded = list(SceneGroupReader(group.payload).frames())
    for number in (0, 7):
        size = np.exp(frames[number].scales[group.rows]).mean(1)
        off = np.linalg.norm(decoded[number].means - frames[number].means[group.rows], axis=1) / size
        assert np.median(off) < 0.25


def test_a_wanted_psnr_is_found(frames: list[Gaussians]) -> None:
    few = [frame.with_sh_degree(0) for frame in frames[:4]]
    start = SceneOptions(effort=0, num_views=12, slope=0.05, grid="curve", qp=14)
    group, options, found = encode_scene_to_psnr(few, 36.0, start, trials=6)
    assert abs(found - 36.0) < 1.0
    assert options.slope != start.slope
    assert abs(psnr_db(few, list(SceneGroupReader(group.payload).frames())) - 36.0) < 4.0


def test_scene_groups_refuse_bad_frames_and_damage(frames: list[Gaussians]) -> None:
    nan = frames[1].replaced(means=np.full_like(frames[1].means, np.nan))
    for wrong in (
        [],
        [Gaussians.empty()],
        [frames[0], frames[1].selected(slice(0, 50))],
        [frames[0], frames[1].with_sh_degree(0)],
        [frames[0], nan],
    ):
        with pytest.raises(ParameterError):
            encode_scene_group(wrong, SceneOptions(num_views=1))
    for options in (SceneOptions(grid="tree", num_views=1), SceneOptions(appearance="oil", num_views=1)):
        with pytest.raises(ParameterError):
            encode_scene_group(frames, options)
    payload = encode_scene_group(
        [frame.selected(slice(0, 200)).with_sh_degree(0) for frame in frames[:2]],
        SceneOptions(num_views=1, qp=20, effort=0, grid="curve", prune=False),
    ).payload
    for length in range(0, len(payload), 11):
        with pytest.raises(FormatError):
            list(SceneGroupReader(payload[:length]).frames())
    for at, value in ((0, 9), (1, 7), (12, 0xFF), (11, 0x7F)):
        data = bytearray(payload)
        data[at] = value
        if at > 8:
            data[4:12] = struct.pack("<d", np.inf)
        with pytest.raises(FormatError):
            SceneGroupReader(bytes(data))
