"""Groups of frames as video planes, in the container: `VGRP` holds what `video_scene` writes (SPEC.md, section 7.8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from ..bitstream.container import Chunk, Container
from ..errors import FormatError, ParameterError, SplatCodecError
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from .file import VIDEO, GroupChunks
from .fit import Block
from .video_planes import video_of
from .video_scene import (
    HEAD_BYTES,
    SLOPES,
    SceneGroup,
    SceneGroupReader,
    SceneOptions,
    encode_scene_group,
    encode_scene_to_psnr,
    measured_contributions,
)
from .video_stream import VideoStream

__all__ = ["VideoEncoder", "VideoFrames", "decode_video_group", "stored_video"]

_FITTING_TRIALS = 6


class VideoEncoder:
    """Encodes groups for video decoders; the first group's slope and QP serve the others.

    Args:
        wanted_db: covered PSNR aimed at. rate: frames a second. prune: leave out what shows less than it costs.
        bytes_a_second: not to be exceeded by any group, instead of a PSNR.
        codec: "h264", "hevc" or "av1".
        trials: most slopes tried for the first group.
    """

    def __init__(
        self,
        wanted_db: float,
        rate: Fraction,
        *,
        bytes_a_second: float | None = None,
        prune: bool = True,
        codec: str = "h264",
        trials: int = 4,
    ) -> None:
        self._wanted, self._trials, self._bytes_a_second = wanted_db, trials, bytes_a_second
        self._options = SceneOptions(prune=prune, fps=rate, codec=codec)
        self._known = False

    def encode(self, block: Block) -> GroupChunks | None:
        """The next group; None where there is nothing that a video could show.

        Raises:
            ParameterError: nothing tried fits the bytes of a second.
        """
        if not len(block):
            return None
        frames: Sequence[Gaussians] = [block.gaussians(f) for f in range(block.num_frames)]
        if self._bytes_a_second is not None:
            return self._fitting(frames)
        if self._known:
            group = encode_scene_group(frames, self._options)
        else:
            group, self._options, _ = encode_scene_to_psnr(
                frames, self._wanted, replace(self._options), trials=self._trials
            )
            self._known = True
        return _chunks(group, len(frames))

    def _fitting(self, frames: Sequence[Gaussians]) -> GroupChunks:
        """The finest slope tried at which a group has no more bytes than it may."""
        assert self._bytes_a_second is not None
        budget = self._bytes_a_second * len(frames) / float(self._options.fps)
        measured = measured_contributions(frames, self._options)
        best: tuple[int, GroupChunks, SceneOptions] | None = None
        too_fine, smallest = 0.0, 0
        options = self._options
        for _ in range(_FITTING_TRIALS):
            group = encode_scene_group(frames, options, measured=measured)
            options = replace(options, qp=group.planes.qp)  # nearly the same at every slope
            chunks = _chunks(group, len(frames))
            size = chunks.size_bytes
            smallest = min(smallest or size, size)
            if size > budget:
                too_fine = max(too_fine, options.slope)
            elif best is None or size > best[0]:
                best = size, chunks, options
            if size <= budget and size > 0.9 * budget:
                break
            # Bytes fall with about the power 0.8 of the slope.
            slope = options.slope * (size / (0.95 * budget)) ** 1.25
            if best is not None:
                slope = max(slope, 1.02 * too_fine)
            options = replace(options, slope=float(np.clip(slope, *SLOPES)))
        if best is None:
            raise ParameterError(
                f"a group does not fit {budget:.0f} bytes; the smallest tried has {smallest}", field="target_bitrate"
            )
        self._options = best[2]
        return best[1]


def _chunks(group: SceneGroup, num_frames: int) -> GroupChunks:
    return GroupChunks([Chunk("VGRP", group.payload, count=len(group.rows))], num_frames, VIDEO)


class VideoFrames:
    """Frames of a video group; those in order cost one picture each, going back starts the video again."""

    def __init__(self, reader: SceneGroupReader, container: Container, offset: int) -> None:
        self._reader, self._container, self._offset = reader, container, offset
        self._frames: Iterator[Gaussians] = iter(())
        self._next = reader.num_frames
        self._last: tuple[int, Gaussians] | None = None

    def frame(self, number: int) -> Gaussians:
        """Frame `number` of the group, from 0."""
        if self._last and self._last[0] == number:
            return self._last[1]
        if number < self._next:
            self._frames, self._next = self._reader.frames(), 0
        try:
            for frame in self._frames:
                self._next += 1
                if self._next > number:
                    self._last = number, frame
                    return frame
        except SplatCodecError as error:
            raise error.locate(file=self._container.name, chunk="VGRP", offset=self._offset) from None
        raise FormatError("the video ends too soon", file=self._container.name, chunk="VGRP", offset=self._offset)


def decode_video_group(container: Container, num_frames: int, limits: Limits = DEFAULT_LIMITS) -> VideoFrames:
    """Open the video of a group's container.

    Raises:
        FormatError: damaged, or of another number of frames than the group's.
        BackendUnavailableError: this build of FFmpeg lacks the decoder.
    """
    entry = container.one("VGRP")
    payload = container.read(entry)
    try:
        reader = SceneGroupReader(payload, limits)
        if reader.num_frames != num_frames or reader.num_gaussians < entry.count:
            raise FormatError(f"a video of {reader.num_frames} frames in a group of {num_frames}", offset=0)
        limits.check_gaussians(reader.num_gaussians)
    except SplatCodecError as error:
        if error.chunk is None:
            error.offset = entry.offset + (error.offset or 0)
        raise error.locate(file=container.name, chunk="VGRP") from None
    return VideoFrames(reader, container, entry.offset)


def stored_video(container: Container, limits: Limits = DEFAULT_LIMITS) -> VideoStream | None:
    """The video of a group's container, not decoded; None where all planes are done without one.

    Raises:
        FormatError: damaged.
    """
    entry = container.one("VGRP")
    try:
        return video_of(memoryview(container.read(entry))[HEAD_BYTES:], limits)
    except SplatCodecError as error:
        error.offset = entry.offset + HEAD_BYTES + (error.offset or 0)
        raise error.locate(file=container.name, chunk="VGRP") from None
