"""One video stream of grey pictures: coded and decoded by FFmpeg (PyAV), kept as packets that a page can decode.

Pictures are 8-bit luma in 4:2:0 with neutral chroma, tagged full range and BT.709, so that a page reads the very bytes
(limited range, the default of players, would scale them). No B-frames: a picture in, a picture out. Packets are stored
as WebCodecs wants them: for H.264 and HEVC NAL units with 4-byte lengths and a description record (avcC, hvcC), for AV1
temporal units with the sequence header in the first; with the codec string, there is nothing to demultiplex.

H.264 High is decoded exactly by standard, in every decoder to the bit; so are HEVC Main and AV1 Main.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendUnavailableError, FormatError, LimitExceededError, ParameterError, TruncatedError
from ..limits import DEFAULT_LIMITS, Limits

__all__ = ["CODECS", "VideoStream", "decode_video", "encode_video", "write_mp4"]

Pixels = npt.NDArray[np.uint8]
#: Codecs by the number that stands for them in files, with the encoders and decoders of FFmpeg.
CODECS = {"h264": 1, "hevc": 2, "av1": 3}
_ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}
_DECODERS = {"h264": ("h264",), "hevc": ("hevc",), "av1": ("libdav1d", "av1")}
#: Most luma samples of a picture and most cells a side: H.264 level 5.1, what hardware decoders take.
MAX_SAMPLES = 36864 * 256
MAX_SIDE = 4096
_NEUTRAL = 128
# Encoders' settings. Nothing psychovisual, no adaptive quantization: an error is an error. Data does not move across a
# picture, so hardly any motion is searched. The number of threads is fixed: it changes the bytes.
_ENCODER_THREADS = 2


@dataclass(frozen=True)
class VideoStream:
    """A coded video.

    Attributes:
        codec: "h264", "hevc" or "av1".
        codec_string: as WebCodecs and MIME types name it, such as avc1.64001F.
        width, height: of the pictures, multiples of 16.
        description: avcC or hvcC record; for AV1 the av1C record, which a page need not pass on.
        packets: one a picture, in order.
        keys: whether each can be decoded without those before.
    """

    codec: str
    codec_string: str
    width: int
    height: int
    description: bytes
    packets: list[bytes]
    keys: list[bool]

    @property
    def size_bytes(self) -> int:
        """Bytes of description and packets."""
        return len(self.description) + sum(map(len, self.packets))


def _options(codec: str, qp: int, frames: int, effort: int) -> dict[str, str]:
    if codec == "h264":
        preset = ("veryfast", "medium", "slow")[effort]
        parameters = (
            f"qp={qp}:keyint={frames}:min-keyint={frames}:scenecut=0:bframes=0:ref=1:aq-mode=0:psy=0:mbtree=0:"
            "rc-lookahead=0:me=dia:merange=4:weightp=0:trellis=2:fast-pskip=0:dct-decimate=0:nr=0"
        )
        return {"preset": preset, "profile": "high", "x264-params": parameters}
    if codec == "hevc":
        preset = ("veryfast", "medium", "slow")[effort]
        parameters = (
            f"qp={qp}:keyint={frames}:min-keyint={frames}:scenecut=0:bframes=0:ref=1:aq-mode=0:psy-rd=0:psy-rdoq=0:"
            f"cutree=0:rc-lookahead=0:pools=none:frame-threads=1:info=0:log-level=none:range=full:rd=4:sao=0"
        )
        return {"preset": preset, "x265-params": parameters}
    preset = ("10", "8", "6")[effort]
    parameters = (
        f"rc=0:qp={qp}:aq-mode=0:keyint={frames}:pred-struct=1:scd=0:lookahead=0:enable-tf=0:tune=1:lp=1:"
        "film-grain=0:fast-decode=1"
    )
    return {"preset": preset, "svtav1-params": parameters}


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise BackendUnavailableError("video planes need PyAV", hint="pip install av") from None
    # Messages of FFmpeg are off in PyAV unless someone asks for them, and shall be here: its threads would need the
    # interpreter's lock to log, while the interpreter waits for them to close a damaged stream.
    av.logging.set_level(None)
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder writes to stderr
    return av


def encode_video(
    pictures: Pixels, *, codec: str = "h264", qp: int = 22, fps: Fraction = Fraction(30), effort: int = 1
) -> VideoStream:
    """Code pictures at a constant quantizer, the first as key frame.

    Args:
        pictures: (F, H, W) uint8, F > 0, sides multiples of 16 and within `MAX_SIDE`, `MAX_SAMPLES`.
        codec: "h264", "hevc" or "av1".
        qp: 1..51, in H.264's scale for all: 6 more doubles the step.
        fps: tells rate limits and timestamps.
        effort: 0..2.

    Raises:
        ParameterError: pictures that hardware could not decode, or options out of range.
        BackendUnavailableError: this build of PyAV lacks the encoder.
    """
    if codec not in CODECS:
        raise ParameterError(f"no video codec {codec!r}", hint="known: " + ", ".join(CODECS))
    if pictures.ndim != 3 or pictures.dtype != np.uint8 or not pictures.size:
        raise ParameterError(f"pictures of shape {pictures.shape}, dtype {pictures.dtype}, expected (F, H, W) uint8")
    frames, height, width = pictures.shape
    if width % 16 or height % 16 or max(width, height) > MAX_SIDE or width * height > MAX_SAMPLES:
        raise ParameterError(
            f"a picture of {width} x {height}: sides must be multiples of 16, at most {MAX_SIDE}, and at most "
            f"{MAX_SAMPLES} samples in all",
            hint="fewer planes as video, or fewer Gaussians a group",
        )
    if not 1 <= qp <= 51 or not 0 <= effort <= 2:
        raise ParameterError(f"qp {qp}, effort {effort}: expected 1 to 51 and 0 to 2")
    av = _av()
    try:
        context = av.CodecContext.create(_ENCODERS[codec], "w")
    except av.error.FFmpegError as error:
        raise BackendUnavailableError(
            f"this PyAV build has no {_ENCODERS[codec]} encoder: {error}", hint="use another video codec"
        ) from None
    except ValueError as error:  # what PyAV raises for unknown codecs
        raise BackendUnavailableError(
            f"this PyAV build has no {_ENCODERS[codec]} encoder: {error}", hint="use another video codec"
        ) from None
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base = 1 / Fraction(fps)
    context.framerate = Fraction(fps)
    context.color_range, context.colorspace, context.color_primaries, context.color_trc = 2, 1, 1, 1
    context.thread_count = _ENCODER_THREADS if codec == "h264" else 1
    context.gop_size, context.max_b_frames = frames, 0
    context.options = _options(codec, qp if codec != "av1" else _AV1_QP[qp], frames, effort)
    context.flags |= int(av.codec.context.Flags.global_header)
    packets = []
    try:
        context.open()
        for number, pixels in enumerate(pictures):
            frame = _frame(av, pixels)
            frame.pts, frame.time_base = number, context.time_base
            packets += [(bytes(packet), bool(packet.is_keyframe)) for packet in context.encode(frame)]
        packets += [(bytes(packet), bool(packet.is_keyframe)) for packet in context.encode(None)]
    except av.error.FFmpegError as error:
        raise BackendUnavailableError(f"{_ENCODERS[codec]} failed: {error}") from None
    if len(packets) != frames or [key for _, key in packets] != [True] + [False] * (frames - 1):
        raise BackendUnavailableError(f"{_ENCODERS[codec]} did not give one key frame and a packet a picture")
    extra = bytes(context.extradata or b"")
    raw = [packet for packet, _ in packets]
    keys = [key for _, key in packets]
    if codec == "av1":
        record, name = _av1_record(extra or raw[0])
        return VideoStream(codec, name, width, height, record, raw, keys)
    units = [_units(extra), *map(_units, raw)]
    if codec == "h264":
        sets = [unit for group in units for unit in group if unit[0] & 31 in (7, 8)]
        record, name = _avc_record(_distinct(sets))
        kept = [[unit for unit in group if unit[0] & 31 in (1, 5)] for group in units[1:]]
    else:
        sets = [unit for group in units for unit in group if unit[0] >> 1 & 63 in (32, 33, 34)]
        record, name = _hevc_record(_distinct(sets))
        kept = [[unit for unit in group if unit[0] >> 1 & 63 < 32] for group in units[1:]]
    lengthened = [b"".join(struct.pack(">I", len(unit)) + unit for unit in group) for group in kept]
    return VideoStream(codec, name, width, height, record, lengthened, keys)


# AV1 counts 0..255: the quantizer index whose step is nearest to that of the H.264 scale.
_AV1_QP = [max(1, min(63, round((2 ** ((qp - 4) / 6)) ** 0.62 * 2.6))) for qp in range(52)]


def _frame(av: Any, pixels: Pixels) -> Any:
    height, width = pixels.shape
    frame = av.VideoFrame(width, height, "yuv420p")
    luma = frame.planes[0]
    if luma.line_size == width:
        luma.update(np.ascontiguousarray(pixels))
    else:
        rows = np.zeros((height, luma.line_size), np.uint8)
        rows[:, :width] = pixels
        luma.update(rows)
    for plane in frame.planes[1:]:
        plane.update(bytes([_NEUTRAL]) * plane.buffer_size)
    frame.color_range, frame.colorspace = 2, 1
    return frame


def _units(stream: bytes) -> list[bytes]:
    """NAL units of an Annex B byte stream, without start codes and trailing zeros."""
    units = []
    starts = []
    at = stream.find(b"\0\0\1")
    while at >= 0:
        starts.append(at)
        at = stream.find(b"\0\0\1", at + 3)
    for start, stop in zip(starts, [*starts[1:], len(stream)]):
        unit = stream[start + 3 : stop].rstrip(b"\0")
        if unit:
            units.append(unit)
    return units


def _distinct(units: Sequence[bytes]) -> list[bytes]:
    return list(dict.fromkeys(units))


def _avc_record(sets: Sequence[bytes]) -> tuple[bytes, str]:
    """AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1) and the codec string."""
    sequence = [unit for unit in sets if unit[0] & 31 == 7]
    picture = [unit for unit in sets if unit[0] & 31 == 8]
    if len(sequence) != 1 or not picture:
        raise BackendUnavailableError("libx264 gave no parameter sets")
    profile = sequence[0][1:4]
    record = bytes([1, *profile, 0xFC | 3, 0xE0 | 1]) + struct.pack(">H", len(sequence[0])) + sequence[0]
    record += bytes([len(picture)]) + b"".join(struct.pack(">H", len(unit)) + unit for unit in picture)
    if profile[0] == 100:
        record += bytes([0xFC | 1, 0xF8, 0xF8, 0])  # 4:2:0, 8 bits, 8 bits, no further sets
    return record, "avc1." + profile.hex().upper()


def _hevc_record(sets: Sequence[bytes]) -> tuple[bytes, str]:
    """HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3.1) and the codec string."""
    kinds = {kind: [unit for unit in sets if unit[0] >> 1 & 63 == kind] for kind in (32, 33, 34)}
    if not all(kinds.values()):
        raise BackendUnavailableError("libx265 gave no parameter sets")
    sequence = kinds[33][0].replace(b"\0\0\3", b"\0\0")
    general = sequence[3:15]  # after the NAL header and one byte of sizes: profile, flags, level
    record = bytes([1]) + general + bytes([0xF0, 0, 0xFC, 0xFC | 1, 0xF8, 0xF8, 0, 0, 0x0F, 3])
    for kind, units in kinds.items():
        record += bytes([0x80 | kind]) + struct.pack(">H", len(units))
        record += b"".join(struct.pack(">H", len(unit)) + unit for unit in units)
    compatible = int(f"{int.from_bytes(general[1:5], 'big'):032b}"[::-1], 2)
    constraints = general[5:11].rstrip(b"\0")
    name = f"hvc1.{general[0] & 31}.{compatible:X}.{'H' if general[0] & 32 else 'L'}{general[11]}"
    return record, ".".join([name, *(f"{byte:X}" for byte in constraints)])


def _av1_record(stream: bytes) -> tuple[bytes, str]:
    """av1C record (AV1 in ISOBMFF, 2.3) and the codec string, from a sequence header OBU or what comes before one."""
    if stream[:1] == b"\x81":  # already a record
        stream = stream[4:]
    at = 0
    while at < len(stream):
        header = stream[at]
        size, start = 0, at + 1 + (header >> 2 & 1)
        for k in range(8):
            size |= (stream[start] & 127) << (7 * k)
            start += 1
            if not stream[start - 1] & 128:
                break
        if header >> 3 & 15 == 1:
            unit = stream[at : start + size]
            bits = int.from_bytes(stream[start : start + 8], "big")
            profile, reduced = bits >> 61 & 7, bits >> 59 & 1
            if reduced:
                level, tier = bits >> 54 & 31, 0
            else:  # no timing information, no display delay: one operating point
                level = bits >> (64 - 3 - 1 - 1 - 1 - 1 - 5 - 12 - 5) & 31
                tier = bits >> (64 - 3 - 1 - 1 - 1 - 1 - 5 - 12 - 5 - 1) & 1 if level > 7 else 0
            record = bytes([0x81, profile << 5 | level, tier << 7 | 0x0C, 0]) + unit
            return record, f"av01.{profile}.{level:02}{'MH'[tier]}.08"
        at = start + size
    raise BackendUnavailableError("libsvtav1 gave no sequence header")


def decode_video(stream: VideoStream, *, num_threads: int = 2, limits: Limits = DEFAULT_LIMITS) -> Iterator[Pixels]:
    """The (H, W) pictures of a stream, one for every packet.

    Pictures are views of FFmpeg's memory: use or copy them before the next.

    Raises:
        FormatError: damaged packets, or pictures of another size than announced.
        BackendUnavailableError: this build of PyAV lacks the decoder.
    """
    if stream.width * stream.height > min(limits.max_image_pixels, MAX_SAMPLES):
        raise LimitExceededError(f"a video of {stream.width} x {stream.height} is more than the limit allows")
    av = _av()
    context = None
    for name in _DECODERS[stream.codec]:
        try:
            context = av.CodecContext.create(name, "r")
            break
        except (av.error.FFmpegError, ValueError):
            continue
    if context is None:
        raise BackendUnavailableError(f"this PyAV build cannot decode {stream.codec}")
    # FFmpeg checks the size in the stream against this before it allocates pictures.
    context.options = {"max_pixels": str((stream.width + 64) * (stream.height + 64)), "err_detect": "explode"}
    context.extradata = None if stream.codec == "av1" else stream.description
    context.thread_count = max(1, num_threads)
    context.thread_type = "AUTO"
    done = 0
    try:
        for number in range(len(stream.packets) + 1):
            packet = av.Packet(stream.packets[number]) if number < len(stream.packets) else None
            if packet is not None:
                packet.pts = packet.dts = number
            for frame in context.decode(packet):
                if (frame.width, frame.height) != (stream.width, stream.height) or frame.format.name not in (
                    "yuv420p",
                    "yuvj420p",
                    "gray",
                ):
                    raise FormatError(
                        f"a picture of {frame.width} x {frame.height}, {frame.format.name}, in a video of "
                        f"{stream.width} x {stream.height}"
                    )
                done += 1
                if done > len(stream.packets):
                    raise FormatError("the video has more pictures than packets")
                plane = frame.planes[0]
                yield np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    except (av.error.FFmpegError, ValueError, OSError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"picture {done} of the video cannot be decoded: {error}") from None
    if done != len(stream.packets):
        raise TruncatedError(f"{done} pictures of {len(stream.packets)} in the video")


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def write_mp4(streams: Sequence[VideoStream], fps: Fraction = Fraction(30)) -> bytes:
    """An ordinary MP4 file of streams one after another, for players and inspection.

    Args:
        streams: of one codec and size, each beginning with a key frame; parameter sets of the first are used where all
            are alike, else each has its own sample description.

    Raises:
        ParameterError: none, or of several sizes or codecs.
    """
    if not streams or len({(s.codec, s.width, s.height) for s in streams}) != 1:
        raise ParameterError("an MP4 needs streams of one codec and size")
    first = streams[0]
    records = list(dict.fromkeys(s.description for s in streams))
    packets = [packet for s in streams for packet in s.packets]
    keys = [k + 1 for k, key in enumerate(key for s in streams for key in s.keys) if key]
    rate = Fraction(fps)
    scale, step = rate.numerator, rate.denominator
    duration = step * len(packets)
    kind, record_kind = {"h264": (b"avc1", b"avcC"), "hevc": (b"hvc1", b"hvcC"), "av1": (b"av01", b"av1C")}[first.codec]
    entries = []
    for record in records:
        picture = bytes(6) + struct.pack(
            ">H16x2H2I4xH32xHh", 1, first.width, first.height, 72 << 16, 72 << 16, 1, 24, -1
        )
        color = _box(b"colr", b"nclx", struct.pack(">3HB", 1, 1, 1, 128))
        entries.append(_box(kind, picture, _box(record_kind, record), color))
    runs = [(1, len(packets), 1)] if len(records) == 1 else []
    at = 0
    if not runs:  # one chunk of samples for each stream
        runs = [(k + 1, len(s.packets), records.index(s.description) + 1) for k, s in enumerate(streams)]
    offsets: list[int] = []
    for _, length, _ in runs:
        offsets.append(sum(map(len, packets[:at])))
        at += length
    matrix = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    file_type = _box(b"ftyp", b"isom", struct.pack(">I", 512), b"isomiso2mp41", kind)

    def table(kind: bytes, *parts: bytes) -> bytes:
        return _box(kind, bytes(4), *parts)

    def movie(base: int) -> bytes:
        samples = _box(
            b"stbl",
            table(b"stsd", struct.pack(">I", len(entries)), *entries),
            table(b"stts", struct.pack(">3I", 1, len(packets), step)),
            table(b"stss", struct.pack(">I", len(keys)), *(struct.pack(">I", key) for key in keys)),
            table(b"stsc", struct.pack(">I", len(runs)), *(struct.pack(">3I", *run) for run in runs)),
            table(b"stsz", struct.pack(">2I", 0, len(packets)), *(struct.pack(">I", len(p)) for p in packets)),
            table(b"stco", struct.pack(">I", len(offsets)), *(struct.pack(">I", base + o) for o in offsets)),
        )
        media = _box(
            b"mdia",
            table(b"mdhd", struct.pack(">4I2H", 0, 0, scale, duration, 0x55C4, 0)),
            table(b"hdlr", bytes(4), b"vide", bytes(12), b"planes\0"),
            _box(
                b"minf",
                _box(b"vmhd", struct.pack(">I4H", 1, 0, 0, 0, 0)),
                _box(b"dinf", table(b"dref", struct.pack(">I", 1), _box(b"url ", struct.pack(">I", 1)))),
                samples,
            ),
        )
        size = struct.pack(">2I", first.width << 16, first.height << 16)
        track_header = _box(
            b"tkhd", struct.pack(">5I", 3, 0, 0, 1, 0), struct.pack(">I8x4H", duration, 0, 0, 0, 0), matrix, size
        )
        movie_header = table(
            b"mvhd",
            struct.pack(">4I", 0, 0, scale, duration),
            struct.pack(">IH10x", 1 << 16, 1 << 8),
            matrix,
            bytes(24),
            struct.pack(">I", 2),
        )
        return _box(b"moov", movie_header, _box(b"trak", track_header, media))

    base = len(file_type) + len(movie(0)) + 8
    return file_type + movie(base) + _box(b"mdat", *packets)
