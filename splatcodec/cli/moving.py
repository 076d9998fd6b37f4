"""What the commands do with moving scenes: folders of frames, trajectories, `.splc` files with groups of frames."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .arguments import human_bytes, positive_int, size_bytes
from .console import Console
from .edit_options import has_edits
from .exit_codes import ExitCode

if TYPE_CHECKING:
    from ..gaussians import Gaussians

_VIEWS = 4
_STILL_FRAMES = 120


def frame_range(text: str) -> tuple[int, int | None, int]:
    """A:B or A:B:STEP, as in Python; A alone is one frame.

    >>> frame_range("10:20"), frame_range("7"), frame_range(":")
    ((10, 20, 1), (7, 8, 1), (0, None, 1))
    """
    match = re.fullmatch(r"(\d*):(\d*)(?::(\d+))?|(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of frames such as 0:30")
    if match[4]:
        return int(match[4]), int(match[4]) + 1, 1
    start, stop, step = int(match[1] or 0), int(match[2]) if match[2] else None, int(match[3] or 1)
    if step < 1 or (stop is not None and stop < start):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of frames such as 0:30")
    return start, stop, step


def add_compress_options(parser: argparse.ArgumentParser) -> None:
    """Options of `compress` for frames."""
    group = parser.add_argument_group("a moving scene (IN is a folder of frames, an .npz or a Spacetime Gaussian PLY)")
    group.add_argument("--fps", metavar="F", help="frames a second, such as 30, 29.97 or 30000/1001 (30)")
    group.add_argument("--group", type=positive_int, metavar="N", help="frames a group, at most 256 (30)")
    group.add_argument("--keep", type=positive_int, metavar="N", help="groups that share what stays the same (8)")
    group.add_argument(
        "--profile",
        choices=("motion", "video", "auto"),
        help="how groups are coded: motion (default), video for a phone's video decoder, auto = the smaller",
    )
    group.add_argument(
        "--video-codec",
        choices=("h264", "hevc", "av1"),
        help="of --profile video: h264 (default), which every phone decodes; hevc and av1 where devices have them",
    )
    group.add_argument("--target-bitrate", type=size_bytes, metavar="BYTES", help="bytes a second not to exceed")
    group.add_argument("--count", type=positive_int, metavar="N", help="frames to take of a source that has no number")
    group.add_argument("--append", action="store_true", help="go on with the moving scene that OUT.splc holds")


_MOVING_ONLY = ("fps", "group", "keep", "profile", "video_codec", "target_bitrate", "count", "append")
_STILL_ONLY = (
    "lossless",
    "reorder",
    "target_size",
    "drop_unseen",
    "levels",
    "refine",
    "compact",
    "method",
    "iterations",
)


def is_moving_input(args: argparse.Namespace) -> bool:
    """Whether `compress` shall write a moving scene.

    Raises:
        ParameterError: options of one kind with an input of the other.
    """
    from ..errors import ParameterError
    from ..sequence.input import is_moving_source

    given = [name for name in _MOVING_ONLY if getattr(args, name, None)]
    if not is_moving_source(args.input):
        if given:
            raise ParameterError(f"--{given[0].replace('_', '-')} is for moving scenes", file=args.input)
        return False
    wrong = [name for name in _STILL_ONLY if getattr(args, name, None) not in (None, False)]
    if wrong or has_edits(args):
        option = wrong[0].replace("_", "-") if wrong else "an edit step"
        raise ParameterError(f"{option} is not for moving scenes", file=args.input)
    return True


def compress(args: argparse.Namespace, console: Console) -> int:
    """Compress frames into `args.output`."""
    from .. import api

    names = ("quality", "target_psnr", "target_bitrate", "effort", "prune", "group", "keep", "profile", "video_codec")
    options = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    report = api.compress_sequence(
        args.input,
        args.output,
        fps=args.fps or 30,
        count=args.count,
        append=args.append,
        overwrite=args.overwrite,
        threads=args.threads,
        progress=console.progress,
        **options,
    )
    for stage, seconds in report.seconds.items():
        console.detail(f"{stage}: {seconds:.2f} s")
    for purpose, bits in sorted(report.rate_bits.items(), key=lambda item: -item[1]):
        console.detail(f"{purpose}: {human_bytes(round(bits / 8))}")
    if args.json:
        console.json(report.to_dict())
    else:
        ratio = f", {report.input_bytes / report.size_bytes:.0f} times smaller" if report.size_bytes else ""
        lines = [
            f"{args.output}: {human_bytes(report.size_bytes)}{ratio} (from {human_bytes(report.input_bytes)})",
            f"  {report.num_frames} frames of up to {report.num_gaussians:,} Gaussians in {report.num_groups} groups",
            f"  {human_bytes(round(report.bytes_per_frame))} a frame, "
            f"{8e-6 * report.bytes_per_frame * report.fps:.2f} Mbit/s at {report.fps:g} frames a second",
            f"  {report.seconds.get('total', 0.0):.1f} s",
            *(f"  note: {note}" for note in report.notes),
        ]
        console.summary("\n".join(lines))
    return ExitCode.OK


def package(args: argparse.Namespace, console: Console) -> int:
    """Write a moving scene as segments for a static host."""
    from ..errors import ParameterError
    from ..streaming.package import package_sequence

    still = [path for path in args.inputs if not is_moving(path)]
    if still:
        raise ParameterError("not a moving scene", file=still[0])
    names = ("group", "profile", "effort")
    report = package_sequence(
        args.inputs,
        args.output,
        qualities=args.qualities,
        audio=args.audio,
        page=not args.no_page,
        fps=args.fps,
        count=args.count,
        overwrite=args.overwrite,
        threads=args.threads,
        progress=console.progress,
        **{name: getattr(args, name) for name in names if getattr(args, name) is not None},
    )
    if args.json:
        console.json({"folder": args.output, **report.to_dict()})
        return ExitCode.OK
    manifest = report.manifest
    lines = [
        f"{args.output}: {len(report.files)} files, {human_bytes(sum(report.files.values()))}; "
        f"{manifest['num_frames']} frames in {len(manifest['groups'])} groups",
        *(
            f"  {r['id']}: {r['profile']}, {human_bytes(r['bytes'])}, {r['bitrate'] / 1e6:.2f} Mbit/s"
            for r in manifest["renditions"]
        ),
        *(f"  audio: {track['file']}, {track['type']}" for track in manifest["audio"]),
        *(f"  note: {note}" for note in report.notes),
    ]
    console.summary("\n".join(lines))
    return ExitCode.OK


_PART_OPTIONS = ("levels", "max_gaussians", "tile", "region", "sh_degree", "sh_layers")


def decompress(args: argparse.Namespace, console: Console) -> int:
    """Decode frames of a moving scene into a folder, a file a frame."""
    from .. import api, formats
    from ..errors import ParameterError
    from ..files import atomic_folder

    wrong = [name for name in _PART_OPTIONS if getattr(args, name, None) is not None]
    if wrong:
        raise ParameterError(f"--{wrong[0].replace('_', '-')} is not for moving scenes", file=args.input)
    if args.planes:
        return _export_planes(args, console)
    started = time.perf_counter()
    start, stop, step = args.frames or (0, None, 1)
    suffix = ".ply"
    if args.format:
        known = formats.formats()
        if args.format not in known:
            raise ParameterError(f"no format is called {args.format!r}", hint="known: " + ", ".join(sorted(known)))
        suffix = known[args.format].suffixes[0]
    with api.open_moving(args.input) as scene:
        stop = min(scene.num_frames if stop is None else stop, scene.num_frames)
        written = 0
        with atomic_folder(args.output, args.overwrite) as folder:
            for number, frame in scene.numbered_frames(min(start, stop), stop, step, keep_going=args.keep_going):
                api.write(frame, os.path.join(folder, f"frame_{number:05}{suffix}"), format=args.format)
                written += 1
                console.progress("frames", (number + 1) / max(stop, 1))
        if not scene.complete:
            console.note(f"{args.input}: cut off, or still being written: {scene.num_frames} frames are whole")
        damage = list(scene.damage) if args.keep_going else []
    seconds = time.perf_counter() - started
    if args.json:
        console.json(
            {
                "file": args.output, "num_frames": written, "complete": scene.complete, "damage": damage,
                "seconds": seconds,
            }
        )  # fmt: skip
    else:
        console.summary(f"{args.output}: {written} frames\n  {seconds:.1f} s")
    for line in damage:
        console.error(f"left out: {line}")
    return ExitCode.CHECK_FAILED if damage else ExitCode.OK


def _export_planes(args: argparse.Namespace, console: Console) -> int:
    """Write the video of each group as an MP4, to be looked at."""
    from .. import api
    from ..errors import ParameterError
    from ..files import atomic_folder
    from ..sequence.file import VIDEO
    from ..sequence.video import stored_video
    from ..sequence.video_stream import write_mp4

    given = [name for name in ("format", "frames", "keep_going") if getattr(args, name)]
    if given:
        raise ParameterError(f"--{given[0].replace('_', '-')} is not for --planes")
    written: list[dict[str, Any]] = []
    with api.open_moving(args.input) as scene, atomic_folder(args.output, args.overwrite) as folder:
        for entry in scene.groups:
            container, head = scene.sequence.read_group(entry)
            stream = stored_video(container) if head.coding == VIDEO else None
            if stream is None:
                continue
            name = f"group_{entry.number:05}.mp4"
            with open(os.path.join(folder, name), "wb") as file:
                file.write(write_mp4([stream], scene.sequence.rate))
            written.append({"file": name, "codec": stream.codec_string, "width": stream.width, "height": stream.height})
        if not written:
            raise ParameterError("no group has a video", file=args.input, hint="compress with --profile video")
    if args.json:
        console.json({"file": args.output, "videos": written})
    else:
        console.summary(f"{args.output}: {len(written)} videos of {len(scene.groups)} groups")
    return ExitCode.OK


def describe(path: str, with_groups: bool) -> tuple[dict[str, Any], list[str]]:
    """Facts of a moving `.splc` file, and how to say them."""
    from .. import api

    with api.open_moving(path) as scene:
        container = scene.container
        facts: dict[str, Any] = {
            "file": path,
            "format": "splc",
            "moving": True,
            "version": f"{container.version[0]}.{container.version[1]}",
            "features": [{"name": f.name, "required": f.required} for f in container.features],
            **scene.describe(),
        }
    groups = facts["groups"]
    own = sum(group["uses_scene_of"] == group["number"] for group in groups)
    codings = sorted({group.get("coding", "damaged") for group in groups})
    lines = [
        f"{path}: .splc version {facts['version']}, moving",
        f"  {human_bytes(facts['size_bytes'])}, {facts['num_frames']} frames at {facts['fps']:g} a second "
        f"({facts['seconds']:.1f} s), {human_bytes(round(facts['bytes_per_frame']))} a frame",
        f"  {len(groups)} groups ({', '.join(codings) or 'none'}), {own} with a scene of their own",
        f"  finished: {'yes' if facts['complete'] else 'no, cut off or still being written'}",
        *(f"  damage: {line}" for line in facts["damage"]),
    ]
    for name, of_type in facts["chunk_types"].items():
        share = 100 * of_type["bytes"] / max(facts["size_bytes"], 1)
        lines.append(f"    {of_type['chunks']:5} {name}  {human_bytes(of_type['bytes']):>10}  {share:5.1f} %")
    for group in groups if with_groups else [g for g in groups if "damage" in g]:
        last = group["first_frame"] + group["num_frames"] - 1
        told = group.get("damage") or f"{group['coding']}, {group['num_gaussians']:,} Gaussians"
        lines.append(
            f"    group {group['number']}: frames {group['first_frame']} to {last}, {group['bytes']} bytes at "
            f"{group['offset']}, scene of group {group['uses_scene_of']}, {told}"
        )
    if facts["metadata"]:
        lines += ["  metadata:", *(f"    {name}: {value}" for name, value in facts["metadata"].items())]
    return facts, lines


class _Frames:
    """Frames of a moving scene in whatever form, by number."""

    def __init__(self, path: str) -> None:
        from .. import api
        from ..sequence.input import open_frames

        self.path = path
        self._scene = api.open_moving(path) if api.is_moving(path) else None
        self._source: Any = None if self._scene is not None else open_frames(path)

    def __enter__(self) -> _Frames:
        return self

    def __exit__(self, *_: object) -> None:
        if self._scene is not None:
            self._scene.close()

    @property
    def rate(self) -> Any:
        """Frames a second; 30 where the source does not say."""
        return self._scene.sequence.rate if self._scene is not None else 30

    def __len__(self) -> int:
        return self._scene.num_frames if self._scene is not None else len(self._source)

    def walk(self, start: int, stop: int, step: int) -> Iterator[Gaussians]:
        """Frames in order."""
        if self._scene is not None:
            yield from self._scene.frames(start, stop, step)
            return
        for number, frame in enumerate(self._source):
            if number >= stop:
                return
            if number >= start and (number - start) % step == 0:
                yield frame


def is_moving(path: str) -> bool:
    """Whether a path is a moving scene in any form that can be read."""
    from .. import api
    from ..sequence.input import is_moving_source

    return is_moving_source(path) or (os.path.isfile(path) and api.is_moving(path))


def compare(args: argparse.Namespace, console: Console) -> int:
    """Compare two moving scenes frame by frame."""
    from ..errors import ParameterError

    if args.report:
        raise ParameterError("--report is not for moving scenes")
    with _Frames(args.reference) as reference, _Frames(args.decoded) as decoded:
        return _compare((reference, decoded), args, console)


def _compare(sides: tuple[_Frames, _Frames], args: argparse.Namespace, console: Console) -> int:
    from ..errors import ParameterError
    from ..metrics.moving import compare_frames
    from ..render.camera import evaluation_cameras

    start, stop, step = args.frames or (0, None, 1)
    lengths = [len(side) for side in sides]
    stop = min(lengths) if stop is None else min(stop, *lengths)
    if lengths[0] != lengths[1]:
        console.note(f"warning: {lengths[0]} and {lengths[1]} frames; compared are {start} to {stop - 1}")
    if start >= stop:
        raise ParameterError("nothing to compare: no frames")
    middle = next(sides[0].walk((start + stop) // 2, (start + stop) // 2 + 1, 1))
    cameras = evaluation_cameras(middle.cleaned()[0], num_views=args.views or _VIEWS, size_px=args.size, seed=args.seed)
    total = len(range(start, stop, step))
    walks = [side.walk(start, stop, step) for side in sides]
    pairs = ((start + k * step, a.cleaned()[0], b) for k, (a, b) in enumerate(zip(*walks, strict=True)))
    result = compare_frames(
        pairs, cameras, num_threads=args.threads, progress=lambda done: console.progress("rendering", done / total)
    )
    passed = args.min_psnr is None or result.psnr_db >= args.min_psnr
    if args.json:
        facts = {"reference": args.reference, "decoded": args.decoded, "num_views": len(cameras), **result.to_dict()}
        if args.min_psnr is not None:
            facts |= {"min_psnr_db": args.min_psnr, "passed": passed}
        console.json(facts)
    else:
        console.result("\n".join(_table(result)))
    if not passed:
        console.error(
            f"error: {args.decoded}: covered PSNR {result.psnr_db:.2f} dB is below --min-psnr {args.min_psnr:g}"
        )
        return ExitCode.CHECK_FAILED
    return ExitCode.OK


def _table(result: Any) -> list[str]:
    worst = result.worst_frame["frame"]
    lines = ["frame   PSNR dB  worst view  flicker dB"]
    for frame in result.frames:
        flicker = f"{frame['flicker_db']:11.2f}" if "flicker_db" in frame else " " * 11
        mark = "  worst" if frame["frame"] == worst else ""
        lines.append(f"{frame['frame']:5}  {frame['psnr_db']:8.2f} {frame['worst_view_db']:11.2f} {flicker}{mark}")
    flicker = f"{result.flicker_db:11.2f}" if result.flicker_db is not None else ""
    lines.append(f"mean   {result.psnr_db:8.2f} {'':11} {flicker}")
    lines.append("PSNR is over covered pixels; flicker is the PSNR of what changes from a frame to the next.")
    return lines


def render_video(args: argparse.Namespace, console: Console) -> int:
    """Draw a moving (or still) scene as a video, with a camera that goes around it."""
    from .. import api
    from ..errors import BackendUnavailableError, ParameterError
    from ..files import atomic_write
    from ..render.cpu import render

    try:
        import av
    except ImportError:
        raise BackendUnavailableError("videos need PyAV", hint="pip install av") from None
    import numpy as np

    from .commands.render import orbit_camera

    if not args.output.lower().endswith(".mp4"):
        raise ParameterError("only MP4 videos can be written", file=args.output, hint="let the name end in .mp4")
    if not args.overwrite and os.path.lexists(args.output):
        raise ParameterError("the file exists", file=args.output, hint="--overwrite replaces it")
    size = args.size - args.size % 2
    if size < 16:
        raise ParameterError("videos are at least 16 pixels wide", field="size")
    with ExitStack() as stack:
        if is_moving(args.input):
            source = stack.enter_context(_Frames(args.input))
            rate, total = source.rate, len(source)
            frames: Iterator[Gaussians] = source.walk(0, total, 1)
        else:
            scene, rate, total = api.read(args.input), 30, _STILL_FRAMES
            frames = (scene for _ in range(total))
        file = stack.enter_context(atomic_write(args.output, args.overwrite))
        try:
            container = av.open(file, "w", format="mp4")
            stream = container.add_stream("libx264", rate=rate)
        except Exception as error:  # an encoder that this build of FFmpeg lacks has an error of its own
            raise BackendUnavailableError(f"no H.264 encoder: {error}", hint="another build of PyAV") from None
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        first = None
        for number, frame in enumerate(frames):
            first = frame if first is None else first
            camera = orbit_camera(first, round(1000 * args.orbit * number / max(total, 1)), 1000, size_px=size)
            picture = render(frame, camera, background=args.background, num_threads=args.threads)
            pixels = np.clip(np.rint(picture.rgb * 255.0), 0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
            console.progress("rendering", (number + 1) / max(total, 1))
        for packet in stream.encode():
            container.mux(packet)
        container.close()
    console.summary(f"{args.output}: {total} frames, {size} x {size} pixels")
    return ExitCode.OK
