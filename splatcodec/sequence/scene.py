"""A moving scene as programs use it: frames in, a file out; a file in, frames out.

Neither side holds more than a group of frames (and the base that it uses), however long the scene is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ..bitstream.metadata import read_metadata
from ..errors import BackendUnavailableError, FormatError, ParameterError, SplatCodecError
from ..files import PathLike, atomic_write
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from ..static.decoder import worker_count
from .decoder import Base, MotionGroup, decode_base, decode_motion_group, joined_base
from .file import MOTION, GroupChunks, GroupEntry, SequenceFile, SequenceWriter, rate_of

__all__ = ["MovingScene", "Recorder", "SequenceReport", "compress_sequence", "open_sequence"]

Progress = Callable[[str, float], None]
_BASES = 2  # decoded bases kept


@dataclass
class SequenceReport:
    """What `compress_sequence` did.

    Attributes:
        num_frames, num_groups: written.
        num_gaussians: most in a frame of the input.
        input_bytes: of the frames' float arrays. size_bytes: of the file.
        fps: frames a second.
        rate_bits: bits by purpose. seconds: by stage.
        notes: what was changed or assumed, for people.
    """

    num_frames: int = 0
    num_groups: int = 0
    num_gaussians: int = 0
    input_bytes: int = 0
    size_bytes: int = 0
    fps: float = 30.0
    rate_bits: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def bytes_per_frame(self) -> float:
        """Bytes of the file a frame; 0 without frames."""
        return self.size_bytes / self.num_frames if self.num_frames else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "num_frames": self.num_frames,
            "num_groups": self.num_groups,
            "num_gaussians": self.num_gaussians,
            "input_bytes": self.input_bytes,
            "size_bytes": self.size_bytes,
            "fps": self.fps,
            "bytes_per_frame": self.bytes_per_frame,
            "bitrate": 8.0 * self.bytes_per_frame * self.fps,
            "rate_bits": dict(self.rate_bits),
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
        }


class Recorder:
    """Writes a moving scene frame by frame.

    Args:
        file: binary file to write to; for `resume`, open for reading and writing.
        fps: frames a second.
        metadata: facts about all frames; None takes those of the first frame.
        resume: go on with the sequence that is in the file.
        num_frames: frames that will come, if that is known: a bitrate is then kept over all of a short scene.
        threads: worker threads; the bytes do not depend on it.
        progress: called with (stage, share done).
        options: fields of `MotionOptions`.

    Raises:
        ParameterError: an option that does not exist or is out of range.
    """

    def __init__(
        self,
        file: BinaryIO,
        fps: Fraction | float | str = 30,
        *,
        metadata: dict[str, Any] | None = None,
        resume: bool = False,
        num_frames: int | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        from .correspond import Tracker
        from .encoder import MotionEncoder, MotionOptions

        try:
            self.options = MotionOptions(**options)
        except TypeError:
            known = sorted(MotionOptions.__dataclass_fields__)
            unknown = [name for name in options if name not in known]
            raise ParameterError(f"unknown option {', '.join(unknown)}", hint="known: " + ", ".join(known)) from None
        rate = rate_of(fps)
        self.report = SequenceReport(fps=float(rate))
        self._rate, self._file, self._metadata = rate, file, metadata
        self._writer = SequenceWriter.resume(file) if resume else None
        self._tracker = Tracker()
        self._encoder = MotionEncoder(self.options, float(rate), threads=threads, progress=progress)
        if self._writer:
            self._encoder.start_at(self._writer.num_groups)
        self._video: Any = None
        if self.options.profile != "motion":
            from .video import VideoEncoder

            self._video = VideoEncoder(
                self.options.lossy().wanted_psnr_db,
                rate,
                bytes_a_second=self.options.target_bitrate,
                prune=self.options.prune,
                codec=self.options.video_codec,
            )
        self._frames: list[tuple[Any, Gaussians]] = []
        self._degree: int | None = None
        self._cut = False
        self._expected = num_frames
        self._flushed = 0
        self._started = time.perf_counter()

    def cut(self) -> None:
        """Begin a new group with the next frame, whatever it shows."""
        self._cut = True

    def add(self, frame: Gaussians, name: str = "") -> None:
        """Append a frame.

        Args:
            frame: its rows need not be those of the frame before (see `Tracker`). name: for messages.

        Raises:
            ParameterError: another SH degree than the frames before, or values that cannot be drawn in a whole frame.
        """
        number = self.report.num_frames
        cleaned, cleaning = frame.cleaned()
        if cleaning.dropped:
            if not len(cleaned) and len(frame):
                raise ParameterError("no Gaussian of the frame can be drawn", file=name or None)
            self.report.notes.append(f"frame {number}: {cleaning}")
        if self._degree is None:
            self._degree = cleaned.sh_degree
        if cleaned.sh_degree != self._degree:
            raise ParameterError(
                f"frame {number} has SH degree {cleaned.sh_degree}, those before {self._degree}", file=name or None
            )
        if self._writer is None:
            facts = {k: v for k, v in frame.metadata.items() if k not in ("source", "extras", "comments")}
            self._writer = SequenceWriter(self._file, self._rate, facts if self._metadata is None else self._metadata)
        if self.options.group == 1:
            ids, cut = np.arange(len(cleaned)), False
        else:
            ids, cut = self._tracker.follow(cleaned, name)
        if cut and not self._cut:
            self.report.notes.append(f"frame {number} begins a new scene")
        if cut or self._cut or len(self._frames) == self.options.group:
            self._flush()
        self._cut = False
        self._frames.append((ids, cleaned.replaced(extras={})))
        self.report.num_frames += 1
        self.report.input_bytes += frame.array_bytes
        self.report.num_gaussians = max(self.report.num_gaussians, len(frame))

    def _flush(self) -> None:
        from .fit import Block

        if not self._frames:
            return
        assert self._writer is not None
        block = Block.of(self._frames)
        self._frames = []
        if self._expected is not None:
            self._encoder.frames_left = max(self._expected - self._flushed, block.num_frames)
        self._flushed += block.num_frames
        chunks, rate_bits = self._smaller(block)
        self._writer.add(chunks)
        for purpose, bits in rate_bits.items():
            self.report.rate_bits[purpose] = self.report.rate_bits.get(purpose, 0.0) + bits
        self.report.num_groups += 1

    def _smaller(self, block: Any) -> tuple[GroupChunks, dict[str, float]]:
        """A group in the coding that the profile asks for, and its bits by purpose."""
        video = None
        if self._video is not None:
            clock = time.perf_counter()
            try:
                video = self._video.encode(block)
            except BackendUnavailableError as error:
                if self.options.profile != "auto":
                    raise
                self.report.notes.append(f"no group was tried as video: {error}")
                self._video = None
            spent = self._encoder.seconds
            spent["video"] = spent.get("video", 0.0) + time.perf_counter() - clock
        if video is None or self.options.profile == "auto":
            motion = self._encoder.encode(block)
            if video is None or motion.chunks.size_bytes <= video.size_bytes:
                return motion.chunks, motion.rate_bits
            self._encoder.forget(motion)
        else:
            self._encoder.skip()
        return video, {"video planes": 8.0 * video.size_bytes}

    def finish(self) -> SequenceReport:
        """Write what is left and the index."""
        self._flush()
        if self._writer is None:
            self._writer = SequenceWriter(self._file, self._rate, self._metadata or {})
        self.report.size_bytes = self._writer.finish()
        self.report.notes += [note for note in self._encoder.notes if note not in self.report.notes]
        self.report.seconds = {**self._encoder.seconds, "total": time.perf_counter() - self._started}
        return self.report


def compress_sequence(
    frames: Iterable[Gaussians] | PathLike,
    path: PathLike,
    *,
    fps: Fraction | float | str = 30,
    count: int | None = None,
    overwrite: bool = False,
    append: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> SequenceReport:
    """Write a moving scene to a `.splc` file.

    Args:
        frames: Gaussians one after the other, or a path: a folder of scenes, an .npz of trajectories, a Spacetime
            Gaussian PLY.
        path: the file; it appears whole or not at all, but for `append`.
        fps: frames a second.
        count: frames to take of a source that does not say how many it has.
        append: go on with a sequence that is there; its fps stay.
        options: fields of `MotionOptions`: quality, target_psnr, target_bitrate, group, keep ...

    Raises:
        ParameterError: options contradict each other, a frame is missing or does not fit the others.
        SplatCodecError: a frame cannot be read; the message names it.
    """
    from .input import open_frames

    if not append and not overwrite and os.path.lexists(path):
        raise ParameterError("the file exists", file=os.fspath(path), hint="--overwrite replaces it")
    source: Any = open_frames(frames, count=count, limits=limits) if isinstance(frames, str | os.PathLike) else frames
    total = len(source) if hasattr(source, "__len__") else None
    with ExitStack() as stack:
        if append:
            file: BinaryIO = stack.enter_context(open(path, "r+b"))
        else:
            file = stack.enter_context(atomic_write(path, overwrite))

        def tell(stage: str, share: float) -> None:
            if progress:
                done = recorder.report.num_frames / total if total else 0.0
                progress(f"{stage}, frame {recorder.report.num_frames}", done if total else share)

        recorder = Recorder(file, fps, resume=append, num_frames=total, threads=threads, progress=tell, **options)
        for k, frame in enumerate(source):
            recorder.add(frame, source.name(k) if hasattr(source, "name") else "")
            tell("frames", 0.0)
        report = recorder.finish()
    if progress:
        progress("done", 1.0)
    return report


class MovingScene:
    """An open moving scene: frames are decoded when they are asked for.

    Iterating gives all frames in order; `scene[k]` one of them. One group and two bases are kept decoded.

    Attributes:
        num_frames: frames up to the end of the last whole group, gaps included.
        fps: frames a second.
        metadata: facts about all frames.
        complete: whether the file has its index; otherwise it was cut off, or is still being written.
        damage: a line for each gap that is known so far.
    """

    def __init__(self, sequence: SequenceFile, limits: Limits = DEFAULT_LIMITS, threads: int | None = None) -> None:
        self.sequence = sequence
        self.container = sequence.container
        self.limits = limits
        self.metadata = read_metadata(sequence.container, limits)
        self.num_frames = sequence.num_frames
        self.fps = float(sequence.rate)
        self.complete = sequence.complete
        self.damage: list[str] = list(sequence.gaps)
        self.lossless = False
        self._threads = worker_count(threads)
        self._pool: ThreadPoolExecutor | None = None
        self._group: tuple[int, Any] | None = None
        self._bases: dict[int, Base] = {}

    def __enter__(self) -> MovingScene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._pool:
            self._pool.shutdown()
            self._pool = None
        self.sequence.close()

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[Gaussians]:
        return self.frames()

    def __getitem__(self, number: int) -> Gaussians:
        """Frame `number`; negative ones count from the end."""
        if not -self.num_frames <= number < self.num_frames:
            raise IndexError(number)
        return self.frame(number % self.num_frames)

    @property
    def groups(self) -> Sequence[GroupEntry]:
        """Where the groups are."""
        return self.sequence.groups

    def frame(self, number: int) -> Gaussians:
        """One frame.

        Raises:
            ParameterError: there is no such frame.
            FormatError: its group is missing or damaged; the message names the group and its frames.
        """
        if not 0 <= number < self.num_frames:
            raise ParameterError(
                f"there is no frame {number}, the scene has {self.num_frames}", file=self.sequence.name
            )
        entry = self.sequence.group_of(number)
        if entry is None:
            raise FormatError(f"frame {number} is in a gap of the file", file=self.sequence.name)
        group = self._read(entry)
        return self._frame_of(group, number - entry.first_frame)

    def frames(
        self, start: int = 0, stop: int | None = None, step: int = 1, *, keep_going: bool = False
    ) -> Iterator[Gaussians]:
        """Frames start, start + step, ... below stop.

        Args:
            keep_going: leave out what is damaged instead of failing; `damage` gets a line for each group.
        """
        for _, frame in self.numbered_frames(start, stop, step, keep_going=keep_going):
            yield frame

    def numbered_frames(
        self, start: int = 0, stop: int | None = None, step: int = 1, *, keep_going: bool = False
    ) -> Iterator[tuple[int, Gaussians]]:
        """`frames`, each with its number."""
        stop = self.num_frames if stop is None else stop
        if not 0 <= start <= self.num_frames or not 0 <= stop <= self.num_frames or step < 1:
            raise ParameterError(
                f"frames {start}:{stop}, the scene has {self.num_frames}", file=self.sequence.name, field="frames"
            )
        bad = -1
        for number in range(start, stop, step):
            entry = self.sequence.group_of(number)
            if keep_going and (entry is None or entry.number == bad):
                continue
            try:
                frame = self.frame(number)
            except SplatCodecError as error:
                if not keep_going or entry is None:
                    raise
                bad = entry.number
                line = f"{entry}: {error}"
                if line not in self.damage:
                    self.damage.append(line)
                continue
            yield number, frame

    def starts_group(self, number: int) -> bool:
        """Whether a group begins with a frame."""
        entry = self.sequence.group_of(number)
        return entry is not None and entry.first_frame == number

    def identified_frames(self) -> Iterator[Gaussians]:
        """All frames, with a side array `id`: the same Gaussians have the same number, as far as scenes are shared."""
        for entry in self.groups:
            group = self._read(entry)
            scenes = entry.scene, entry.number
            for number in range(entry.num_frames):
                frame = self._frame_of(group, number)
                if isinstance(group, MotionGroup):
                    starts = np.cumsum([0, *(len(tile) for tile in group.base.tiles)])
                    rows = np.concatenate([at + r for at, r in zip(starts, group.rows(number))] or [np.zeros(0, int)])
                    shared = self._bases[entry.scene].num_gaussians
                    later = rows >= shared
                    ids = np.where(later, (scenes[1] << 32) + rows - shared, (scenes[0] << 32) + rows)
                else:
                    ids = (entry.number << 32) + np.arange(len(frame))
                yield frame.replaced(extras={"id": ids.astype(np.int64)})

    def _workers(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads)
        return self._pool

    def _read(self, entry: GroupEntry) -> Any:
        if self._group and self._group[0] == entry.number:
            return self._group[1]
        container, head = self.sequence.read_group(entry)
        try:
            if head.coding == MOTION:
                base = self._base(entry, container, head.scene)
                group: Any = decode_motion_group(container, base, head.num_frames, self._workers(), self.limits)
            else:
                from .video import decode_video_group

                group = decode_video_group(container, head.num_frames, self.limits)
        except SplatCodecError as error:
            if error.file is None:
                error.file = self.sequence.name
            raise
        self._group = entry.number, group
        return group

    def _base(self, entry: GroupEntry, container: Any, scene: int) -> Base:
        """The base of a group: its own, an earlier group's, or both."""
        own: Base | None = None
        if scene == entry.number or container.of_type("PARM"):
            own = decode_base(container, self._workers(), self.limits)
        if scene == entry.number:
            assert own is not None
            self._remember(scene, own)
            return own
        if scene not in self._bases:
            earlier, head = self.sequence.read_group(self.sequence.numbered(scene))
            if head.scene != scene:
                raise FormatError(
                    f"group {scene} has no scene of its own that group {entry.number} could use",
                    file=self.sequence.name, offset=entry.offset,
                )  # fmt: skip
            self._remember(scene, decode_base(earlier, self._workers(), self.limits))
        base = self._bases[scene]
        return joined_base(base, own, container) if own else base

    def _remember(self, number: int, base: Base) -> None:
        self._bases.pop(number, None)
        self._bases[number] = base
        while len(self._bases) > _BASES:
            self._bases.pop(next(iter(self._bases)))

    def _frame_of(self, group: Any, number: int) -> Gaussians:
        if isinstance(group, MotionGroup):
            return group.frame(number, self._workers(), self.metadata)
        frame: Gaussians = group.frame(number)
        return frame.replaced(metadata=self.metadata)

    def verify(self, full: bool = False, progress: Progress | None = None) -> dict[str, Any]:
        """Check every checksum, and with `full` decode everything.

        Raises:
            SplatCodecError: the first thing that is wrong.
        """
        if self.damage:
            raise FormatError(self.damage[0], file=self.sequence.name)
        chunks = len(self.container.chunks)
        for entry in self.container.chunks:
            self.container.check(entry)
        for k, group in enumerate(self.groups):
            container, _ = self.sequence.read_group(group)
            for chunk in container.chunks:
                container.check(chunk)
            chunks += len(container.chunks)
            if full:
                self.frame(group.first_frame)
            if progress:
                progress("check", (k + 1) / len(self.groups))
        return {"num_frames": self.num_frames, "num_groups": len(self.groups), "num_chunks": chunks}

    def describe(self) -> dict[str, Any]:
        """Facts from headers: frames, rate, groups with their bytes, chunk types, what is missing."""
        types: dict[str, dict[str, int]] = {}
        groups = []
        for entry in self.groups:
            facts: dict[str, Any] = {
                "number": entry.number, "first_frame": entry.first_frame, "num_frames": entry.num_frames,
                "uses_scene_of": entry.scene, "offset": entry.offset, "bytes": entry.length,
            }  # fmt: skip
            try:
                container, head = self.sequence.read_group(entry)
                facts["coding"] = "motion" if head.coding == MOTION else "video"
                facts["num_gaussians"] = sum(c.count for c in container.of_type("TRAJ")) or container.num_gaussians
                for chunk in container.chunks:
                    of_type = types.setdefault(chunk.type, {"chunks": 0, "count": 0, "bytes": 0})
                    of_type["chunks"] += 1
                    of_type["count"] += chunk.count
                    of_type["bytes"] += chunk.length
            except SplatCodecError as error:
                facts["damage"] = str(error)
            groups.append(facts)
        size = self.sequence.size_bytes
        return {
            "num_frames": self.num_frames,
            "fps": self.fps,
            "seconds": self.num_frames / self.fps,
            "size_bytes": size,
            "bytes_per_frame": size / self.num_frames if self.num_frames else 0.0,
            "complete": self.complete,
            "damage": list(self.damage),
            "groups": groups,
            "chunk_types": types,
            "metadata": self.metadata,
        }


def open_sequence(file: BinaryIO, name: str = "<bytes>", limits: Limits = DEFAULT_LIMITS) -> MovingScene:
    """Open a moving scene from a binary file, which it closes in the end.

    Raises:
        SplatCodecError: no sequence, or its head is damaged.
    """
    return MovingScene(SequenceFile(file, name), limits)
