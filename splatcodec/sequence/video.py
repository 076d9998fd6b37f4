"""Groups of frames as video planes, in the container: `VGRP` holds what `video_scene` writes (SPEC.md, section 7.8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

from ..bitstream.container import Chunk, Container
from ..errors import FormatError, SplatCodecError
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from .file import VIDEO, GroupChunks
from .fit import Block
from .video_planes import video_of
from .video_scene import HEAD_BYTES, SceneGroupReader, SceneOptions, encode_scene_group, encode_scene_to_psnr
from .video_stream import VideoStream

__all__ = ["VideoEncoder", "VideoFrames", "decode_video_group", "stored_video"]


class VideoEncoder:
    """Encodes groups for video decoders; the first group's slope and QP serve the others.

    Args:
        wanted_db: covered PSNR aimed at. rate: frames a second. prune: leave out what shows less than it costs.
        trials: most slopes tried for the first group.
    """

    def __init__(self, wanted_db: float, rate: Fraction, *, prune: bool = True, trials: int = 4) -> None:
        self._wanted, self._trials = wanted_db, trials
        self._options = SceneOptions(prune=prune, fps=rate)
        self._known = False

    def encode(self, block: Block) -> GroupChunks | None:
        """The next group; None where there is nothing that a video could show."""
        if not len(block):
            return None
        frames: Sequence[Gaussians] = [block.gaussians(f) for f in range(block.num_frames)]
        if self._known:
            group = encode_scene_group(frames, self._options)
        else:
            group, self._options, _ = encode_scene_to_psnr(
                frames, self._wanted, replace(self._options), trials=self._trials
            )
            self._known = True
        count = len(group.rows)
        return GroupChunks([Chunk("VGRP", group.payload, count=count)], block.num_frames, VIDEO)


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
