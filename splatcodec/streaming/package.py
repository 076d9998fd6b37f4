"""Moving scenes as segments for any static host: a manifest, a head and one file a group, in several qualities.

Head and groups are copied as they are in `.splc` files (bitstreams/SPEC.md, section 7.11); docs/streaming.md has the
members of the manifest. Renditions have the same groups of frames, so that a player changes between them at any group.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..bitstream.container import Container
from ..errors import FormatError, ParameterError, SplatCodecError, UnsupportedError
from ..files import PathLike, atomic_folder, open_for_reading
from ..gaussians import Gaussians
from ..limits import DEFAULT_LIMITS, Limits
from ..sequence.file import MOTION, GroupEntry
from ..sequence.scene import MovingScene, Recorder
from ..version import __version__
from .pages import MEDIA_TYPE, write_page

__all__ = ["MANIFEST_VERSION", "PackageReport", "package_sequence"]

MANIFEST_VERSION = 1
_FORMAT = "splatcodec-segments"
_BLOCK_BYTES = 1 << 20
#: Of frames, where none are asked for.
DEFAULT_QUALITIES = (60.0, 40.0)
_HALF = 0.5
#: What browsers play, by suffix.
AUDIO_TYPES = {
    ".m4a": "audio/mp4", ".mp4": "audio/mp4", ".aac": "audio/aac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg",
    ".oga": "audio/ogg", ".opus": "audio/ogg", ".webm": "audio/webm", ".flac": "audio/flac", ".wav": "audio/wav",
}  # fmt: skip
_AUDIO_CODECS = {"aac": "mp4a.40.2", "mp3": "mp3", "opus": "opus", "vorbis": "vorbis", "flac": "flac"}
_AUDIO_OFF_S = 0.5
_SCENE_CHUNKS = ("META", "PARM", "TBOX", "TILE", "SHC1", "SHC2", "SHC3", "GRPH")

Progress = Callable[[str, float], None]


@dataclass
class PackageReport:
    """What `package_sequence` wrote.

    Attributes:
        files: bytes of each file, by its path in the folder.
        manifest: the content of manifest.json.
        notes: for people.
    """

    files: dict[str, int] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"files": dict(self.files), "manifest": dict(self.manifest), "notes": list(self.notes)}


@dataclass
class _Source:
    """A moving scene that becomes a rendition."""

    id: str
    path: PathLike
    asked: dict[str, float] = field(default_factory=dict)


def package_sequence(
    sources: PathLike | Sequence[PathLike] | Iterable[Gaussians],
    folder: PathLike,
    *,
    qualities: Sequence[float] | None = None,
    audio: PathLike | None = None,
    page: bool = True,
    fps: Fraction | float | str | None = None,
    count: int | None = None,
    overwrite: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PackageReport:
    """Write a folder that any static host can serve: a moving scene in segments and several qualities.

    Args:
        sources: a moving `.splc` file, or several of the same frames in the same groups; or frames: a folder, an
            .npz, a Spacetime Gaussian PLY, an iterator of Gaussians.
        folder: to write. What is in it already stays, unless it has the same name and `overwrite` is true.
        qualities: further renditions, coded from the frames (of files: from the frames of the largest). None: of one
            file one at half of its bitrate, of several none, of frames 60 and 40. Empty: none.
        audio: a file that browsers play, copied as it is.
        page: with a page and the player.
        fps, count, options: of frames, as in `compress_sequence`.

    Returns:
        a PackageReport. `manifest.json` is written last: a reader that finds it finds the rest.

    Raises:
        ParameterError: files whose groups of frames differ, frames that cannot be coded, nothing to write.
        FormatError: a file is damaged.
    """
    report = PackageReport()
    tell = progress or (lambda stage, share: None)
    paths: list[PathLike] = []
    if isinstance(sources, str | os.PathLike):
        paths = [sources]
    elif isinstance(sources, Sequence) and all(isinstance(source, str | os.PathLike) for source in sources):
        paths = list(sources)  # type: ignore[arg-type]
        if not paths:
            raise ParameterError("nothing to package")
    track = _audio_facts(audio) if audio is not None else None
    with ExitStack() as stack:
        place = stack.enter_context(atomic_folder(folder, overwrite, last="manifest.json"))
        # Beside the result, where there is room for it; gone whatever happens.
        work = stack.enter_context(tempfile.TemporaryDirectory(prefix=".splatcodec-", dir=os.path.dirname(place)))
        renditions = [_Source(_id_of(path), path) for path in paths if _is_splc(path)]
        if renditions and len(renditions) < len(paths):
            raise ParameterError("moving .splc files or frames, not both")
        if renditions and (fps is not None or count is not None):
            raise ParameterError("fps and count are for frames; a file says them", field="fps")
        if len(paths) > 1 and not renditions:
            raise ParameterError("frames come from one place", file=os.fspath(paths[1]))
        if renditions:
            renditions += _recoded(renditions, work, qualities, limits, threads, tell, report, options)
        else:
            frames: Any = paths[0] if paths else sources
            renditions = _coded(frames, work, qualities, fps or 30, count, limits, threads, tell, report, options)
        _write(Path(place), renditions, track, limits, tell, report)
        if page:
            report.files |= write_page(Path(place), "manifest.json", _headers(report.manifest))
    tell("done", 1.0)
    return report


# --- renditions -------------------------------------------------------------------------------------------------------


def _is_splc(path: PathLike) -> bool:
    from .. import api

    return os.path.isfile(path) and api.is_splc(path)


def _id_of(path: PathLike) -> str:
    text = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(os.fspath(path)).stem).strip("-")[:40]
    return text or "file"


def _quality_id(quality: float) -> str:
    return f"q{quality:g}".replace(".", "_")


def _coded(
    frames: Any,
    work: str,
    qualities: Sequence[float] | None,
    fps: Fraction | float | str,
    count: int | None,
    limits: Limits,
    threads: int | None,
    tell: Progress,
    report: PackageReport,
    options: dict[str, Any],
) -> list[_Source]:
    """One rendition a quality, all coded while the frames pass once."""
    from ..sequence.input import open_frames

    if isinstance(frames, str | os.PathLike):
        frames = open_frames(frames, count=count, limits=limits)
    wanted = list(DEFAULT_QUALITIES if qualities is None else qualities)
    if not wanted:
        raise ParameterError("no quality to code the frames in", field="qualities")
    total = len(frames) if hasattr(frames, "__len__") else None
    found = []
    with ExitStack() as stack:
        recorders = []
        for quality in sorted(set(wanted), reverse=True):
            path = os.path.join(work, f"{_quality_id(quality)}.splc")
            found.append(_Source(_quality_id(quality), path, {"quality": quality}))
            file = stack.enter_context(open(path, "wb"))
            recorders.append(Recorder(file, fps, num_frames=total, threads=threads, **{**options, "quality": quality}))
        for number, frame in enumerate(frames):
            for recorder in recorders:
                recorder.add(frame, frames.name(number) if hasattr(frames, "name") else "")
            tell(f"coding, frame {number + 1}", (number + 1) / total if total else 0.0)
        for source, recorder in zip(found, recorders):
            report.notes += [f"{source.id}: {note}" for note in recorder.finish().notes]
    return found


def _recoded(
    files: list[_Source],
    work: str,
    qualities: Sequence[float] | None,
    limits: Limits,
    threads: int | None,
    tell: Progress,
    report: PackageReport,
    options: dict[str, Any],
) -> list[_Source]:
    """Further renditions of files, from the frames of the largest, in its groups."""
    from .. import api

    if qualities is None and len(files) > 1:
        return []
    if qualities is not None and not qualities:
        return []
    largest = max(files, key=lambda source: os.path.getsize(source.path))
    with ExitStack() as stack:
        scene = stack.enter_context(api.open_moving(largest.path, limits=limits))
        if not scene.groups:
            return []
        codings = {scene.sequence.read_group(entry)[1].coding for entry in scene.groups}
        asked: list[tuple[str, dict[str, float]]] = []
        if qualities is None:
            if codings == {MOTION}:
                rate = _HALF * sum(entry.length for entry in scene.groups) * scene.fps / scene.num_frames
                asked.append(("half", {"target_bitrate": rate}))
            else:
                asked.append((_quality_id(DEFAULT_QUALITIES[-1]), {"quality": DEFAULT_QUALITIES[-1]}))
        else:
            asked += [(_quality_id(q), {"quality": q}) for q in sorted(set(qualities), reverse=True)]
        profile = options.get("profile") or ("motion" if codings == {MOTION} else "video")
        # New scenes begin where the file has them (identities change there), and groups where it has them.
        users = [sum(entry.scene == k for entry in scene.groups) for k in {entry.scene for entry in scene.groups}]
        settings = {"group": max(entry.num_frames for entry in scene.groups), "keep": max(users), "profile": profile}
        found, recorders = [], []
        for name, how in asked:
            path = os.path.join(work, f"{name}.splc")
            found.append(_Source(name, path, how))
            file = stack.enter_context(open(path, "wb"))
            facts = dict(scene.metadata)
            recorders.append(
                Recorder(
                    file,
                    scene.sequence.rate,
                    metadata=facts,
                    num_frames=scene.num_frames,
                    threads=threads,
                    **{**options, **settings, **how},
                )
            )
        for number, frame in enumerate(scene.identified_frames()):
            for recorder in recorders:
                if scene.starts_group(number):
                    recorder.cut()
                recorder.add(frame, os.fspath(largest.path))
            tell(f"coding, frame {number + 1}", (number + 1) / scene.num_frames)
        for source, recorder in zip(found, recorders):
            report.notes += [f"{source.id}: {note}" for note in recorder.finish().notes]
    smaller = []
    for source in found:
        if os.path.getsize(source.path) < os.path.getsize(largest.path):
            smaller.append(source)
        else:
            report.notes.append(f"{source.id} takes no fewer bytes than {largest.id}: left out")
    return smaller


# --- files ------------------------------------------------------------------------------------------------------------


def _write(
    place: Path,
    sources: list[_Source],
    track: tuple[PathLike, dict[str, Any]] | None,
    limits: Limits,
    tell: Progress,
    report: PackageReport,
) -> None:
    """Segments of all renditions, the head, audio, and the manifest."""
    from .. import api

    with ExitStack() as stack:
        scenes = [(source, stack.enter_context(api.open_moving(source.path, limits=limits))) for source in sources]
        first_source, first = scenes[0]
        groups = [[entry.first_frame, entry.num_frames] for entry in first.groups]
        if not groups:
            raise ParameterError("a moving scene without frames", file=os.fspath(first_source.path))
        for source, scene in scenes:
            if scene.damage:
                raise FormatError(scene.damage[0], file=os.fspath(source.path))
            _same(source, scene, first_source, first)
            if not scene.complete:
                report.notes.append(
                    f"{os.fspath(source.path)} is cut off, or still being written: {scene.num_frames} frames; players "
                    "ask again for more"
                )
        scenes.sort(key=lambda pair: -pair[1].sequence.size_bytes)
        taken: set[str] = set()
        renditions = []
        for source, scene in scenes:
            name = source.id
            while name in taken or name == "player":
                name += "-2"
            taken.add(name)
            renditions.append(_rendition(place, name, source, scene, limits, tell, report))
        init = first.sequence.read_bytes(0, first.sequence.head)
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "version": MANIFEST_VERSION,
            "generator": f"splatcodec {__version__}",
            "fps": [first.sequence.rate.numerator, first.sequence.rate.denominator],
            "num_frames": first.num_frames,
            "duration_s": round(first.num_frames / first.fps, 6),
            "complete": all(scene.complete for _, scene in scenes),
            "init": _put(place, "init.splc", init, report),
            "groups": groups,
            "renditions": renditions,
            "audio": [],
        }
    if track is not None:
        path, facts = track
        manifest["audio"] = [{**_put_file(place, path, report), **facts}]
        off = abs(facts.get("duration_s", manifest["duration_s"]) - manifest["duration_s"])
        if off > _AUDIO_OFF_S:
            report.notes.append(
                f"the audio takes {facts['duration_s']:.1f} s, the frames {manifest['duration_s']:.1f} s"
            )
    text = _json(manifest) + "\n"
    (place / "manifest.json").write_text(text, encoding="utf-8")
    report.files["manifest.json"] = len(text.encode())
    report.manifest = manifest


def _json(value: Any, margin: str = "") -> str:
    """JSON with what holds nothing further on one line each: segments are many."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(part, dict | list) for part in inside):
        return json.dumps(value, ensure_ascii=False)
    more = margin + " "
    if isinstance(value, dict):
        lines = [f"{more}{json.dumps(key)}: {_json(part, more)}" for key, part in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{margin}}}"
    return "[\n" + ",\n".join(more + _json(part, more) for part in value) + f"\n{margin}]"


def _same(source: _Source, scene: MovingScene, other: _Source, reference: MovingScene) -> None:
    """Whether two renditions can stand for each other.

    Raises:
        ParameterError: they have other frames, groups or rates.
    """
    name, against = os.fspath(source.path), os.fspath(other.path)
    if scene.sequence.rate != reference.sequence.rate:
        raise ParameterError(
            f"{scene.sequence.rate} frames a second, {against} has {reference.sequence.rate}", file=name
        )
    if scene.num_frames != reference.num_frames:
        raise ParameterError(f"{scene.num_frames} frames, {against} has {reference.num_frames}", file=name)
    for a, b in zip(scene.groups, reference.groups):
        if a.frames != b.frames:
            raise ParameterError(
                f"group {a.number} has frames {a.first_frame} to {a.frames.stop - 1}, in {against} it has "
                f"{b.first_frame} to {b.frames.stop - 1}",
                file=name,
                hint="code all of them with the same --group",
            )


def _rendition(
    place: Path,
    name: str,
    source: _Source,
    scene: MovingScene,
    limits: Limits,
    tell: Progress,
    report: PackageReport,
) -> dict[str, Any]:
    """Write the segments of a rendition; what the manifest says of it."""
    from ..sequence.video import stored_video

    segments: list[dict[str, Any]] = []
    features: dict[str, None] = {}
    codings: set[str] = set()
    videos: dict[str, list[int]] = {}
    (place / name).mkdir()
    for k, entry in enumerate(scene.groups):
        container, head = scene.sequence.read_group(entry)
        for chunk in container.chunks:
            container.check(chunk)
        features |= {feature.name: None for feature in container.features if feature.required}
        coding = "motion" if head.coding == MOTION else "video"
        codings.add(coding)
        content = scene.sequence.read_bytes(entry.offset, entry.length)
        facts: dict[str, Any] = _put(place, f"{name}/{entry.number:05}.splc", content, report, digest=True)
        facts["scene"] = entry.scene
        if coding == "motion" and entry.scene == entry.number:
            facts["scene_bytes"] = _scene_bytes(container, entry)
        if coding == "video":
            stream = stored_video(container, limits)
            if stream is not None:
                size = videos.setdefault(stream.codec_string, [0, 0])
                size[:] = max(size[0], stream.width), max(size[1], stream.height)
        facts["num_gaussians"] = (
            sum(c.count for c in container.of_type("TRAJ"))
            or sum(c.count for c in container.of_type("VGRP"))
            or container.num_gaussians
        )
        facts["coding"] = coding
        segments.append(facts)
        tell(f"segments of {name}", (k + 1) / len(scene.groups))
    sizes = [segment["bytes"] for segment in segments]
    seconds = [entry.num_frames / scene.fps for entry in scene.groups]
    with_scene = [
        segment["bytes"] + (segments[segment["scene"]].get("scene_bytes", 0) if segment["scene"] != k else 0)
        for k, segment in enumerate(segments)
    ]
    return {
        "id": name,
        "profile": codings.pop() if len(codings) == 1 else "mixed",
        "features": sorted(features),
        "video": [{"codec": codec, "width": w, "height": h} for codec, (w, h) in videos.items()],
        "sh_degree": scene.frame(0).sh_degree,
        "max_gaussians": max(segment["num_gaussians"] for segment in segments),
        "bytes": sum(sizes),
        "bitrate": round(8 * sum(sizes) / sum(seconds)),
        "peak_bitrate": round(max(8 * size / time for size, time in zip(sizes, seconds))),
        "seek_bitrate": round(max(8 * size / time for size, time in zip(with_scene, seconds))),
        **source.asked,
        "segments": segments,
    }


def _scene_bytes(container: Container, entry: GroupEntry) -> int:
    """How many of a group's first bytes hold all of its scene."""
    own = [c.offset + c.length - container.base for c in container.chunks if c.type in _SCENE_CHUNKS]
    others = [c.offset - container.base for c in container.chunks if c.type not in _SCENE_CHUNKS]
    return max(own) if max(own) <= min(others, default=entry.length) else entry.length


def _integrity(digest: bytes) -> str:
    return "sha256-" + base64.b64encode(digest).decode()


def _put(place: Path, name: str, content: bytes, report: PackageReport, digest: bool = False) -> dict[str, Any]:
    """Write a file; what the manifest says of it."""
    found = hashlib.sha256(content).digest()
    if digest:
        stem, suffix = os.path.splitext(name)
        name = f"{stem}-{found.hex()[:8]}{suffix}"
    (place / name).write_bytes(content)
    report.files[name] = len(content)
    return {"file": name, "bytes": len(content), "integrity": _integrity(found)}


def _put_file(place: Path, path: PathLike, report: PackageReport) -> dict[str, Any]:
    """Copy the audio; what the manifest says of it."""
    found = hashlib.sha256()
    temporary = place / "audio.part"
    with open_for_reading(path) as file, temporary.open("wb") as copy:
        while block := file.read(_BLOCK_BYTES):
            found.update(block)
            copy.write(block)
    name = f"audio-{found.hexdigest()[:8]}{os.path.splitext(os.fspath(path))[1].lower()}"
    temporary.rename(place / name)
    report.files[name] = (place / name).stat().st_size
    return {"file": name, "bytes": report.files[name], "integrity": _integrity(found.digest())}


def _audio_facts(path: PathLike) -> tuple[PathLike, dict[str, Any]]:
    """Media type, codec and length of an audio file.

    Raises:
        UnsupportedError: browsers do not play such files.
        FormatError: there is no audio in it.
    """
    name = os.fspath(path)
    kind = AUDIO_TYPES.get(os.path.splitext(name)[1].lower())
    if kind is None:
        raise UnsupportedError(
            "browsers do not play such audio", file=name, hint="files that can be packaged: " + ", ".join(AUDIO_TYPES)
        )
    facts: dict[str, Any] = {"type": kind}
    with open_for_reading(path) as file:
        try:
            import av
        except ImportError:  # what is in it stays unsaid
            return path, facts
        av.logging.set_level(None)
        try:
            with av.open(file) as container:
                streams = container.streams.audio
                if not streams:
                    raise FormatError("there is no audio in the file", file=name)
                codec = _AUDIO_CODECS.get(streams[0].codec_context.name)
                seconds = _seconds(container, streams[0])
        except SplatCodecError:
            raise
        except Exception as error:  # FFmpeg has a class of errors for each of its codes
            raise FormatError(f"not an audio file: {error}", file=name) from None
    if codec:
        facts["codec"] = codec
    if seconds is not None:
        facts["duration_s"] = round(seconds, 3)
    return path, facts


def _seconds(container: Any, stream: Any) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _headers(manifest: dict[str, Any]) -> str:
    """For hosts that read `_headers`: segments never change, what names them may."""
    lines = ["/manifest.json", "  Cache-Control: no-cache", "/init.splc", "  Cache-Control: no-cache"]
    lines.append(f"  Content-Type: {MEDIA_TYPE}")
    for rendition in manifest["renditions"]:
        lines += [f"/{rendition['id']}/*", "  Cache-Control: max-age=31536000, immutable"]
        lines.append(f"  Content-Type: {MEDIA_TYPE}")
    for track in manifest["audio"]:
        lines += [f"/{track['file']}", "  Cache-Control: max-age=31536000, immutable"]
    return "\n".join(lines) + "\n"
