"""Write a folder that shows a scene, for any static host.

Page, player and scene as plain files, to be copied to a web server. A still scene is the same file, read by ranges:
hosts that know ranges show it sooner. docs/player.md says which headers a host should send.
Other formats, lossless files and edited scenes are compressed first.

A moving scene becomes segments, one file a group of frames, in two or more qualities between which players change, and
a manifest that names them (docs/streaming.md). Qualities that are not there are coded from the frames.

examples:
  splatcodec package scene.splc site/
  splatcodec package scene.ply site/ --quality 50 --remove-floaters
  splatcodec package moving.splc site/ --audio music.m4a
  splatcodec package moving.splc site/ --qualities 50,35
  splatcodec package high.splc low.splc site/
  splatcodec package frames/ site/ --qualities 75,60,45 --fps 30
"""

from __future__ import annotations

import argparse

from .. import moving
from ..arguments import add_json, add_overwrite, add_threads, human_bytes, positive_int
from ..console import Console
from ..edit_options import has_edits
from ..exit_codes import ExitCode
from ..playable import add_playable_options, playable_file


def qualities(text: str) -> list[float]:
    """Numbers from 0 to 100 with commas between; "none" for none.

    >>> qualities("60,45"), qualities("none")
    ([60.0, 45.0], [])
    """
    try:
        found = [] if text == "none" else [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are not qualities such as 60,45") from None
    if not all(0 <= quality <= 100 for quality in found):
        raise argparse.ArgumentTypeError("qualities are from 0 to 100")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE",
        help="scene, a .splc file or in any other format; or a moving one, or several of the same frames, or frames",
    )
    parser.add_argument("output", metavar="DIR", help="folder to write")
    group = parser.add_argument_group("a moving scene")
    group.add_argument(
        "--qualities",
        type=qualities,
        metavar="Q,Q",
        help="further qualities, 0 to 100, or none (default: of one file one at half of its rate; of frames 60,40)",
    )
    group.add_argument("--audio", metavar="FILE", help="sound that starts with the first frame, copied as it is")
    group.add_argument("--no-page", action="store_true", help="manifest and segments only")
    group.add_argument("--fps", metavar="F", help="of frames: how many a second (30)")
    group.add_argument("--group", type=positive_int, metavar="N", help="of frames: how many a group (30)")
    group.add_argument("--profile", choices=("motion", "video", "auto"), help="as in compress")
    group.add_argument("--effort", type=int, choices=range(1, 10), metavar="1..9", help="as in compress")
    group.add_argument("--count", type=positive_int, metavar="N", help="frames to take of a source that has no number")
    add_playable_options(parser)
    add_threads(parser)
    add_overwrite(parser)
    add_json(parser, "what was written")


_MOVING_ONLY = ("qualities", "audio", "no_page", "fps", "group", "profile", "effort", "count")


def run(args: argparse.Namespace, console: Console) -> int:
    """Write `args.output`."""
    from ...errors import ParameterError
    from ...streaming.pages import package_scene

    if len(args.inputs) > 1 or moving.is_moving(args.inputs[0]):
        if has_edits(args) or args.quality is not None:
            told = "edit steps are" if has_edits(args) else "--quality is"
            raise ParameterError(f"{told} for still scenes", file=args.inputs[0], hint="of frames: --qualities")
        return moving.package(args, console)
    given = [name for name in _MOVING_ONLY if getattr(args, name) not in (None, False)]
    if given:
        raise ParameterError(f"--{given[0].replace('_', '-')} is for moving scenes", file=args.inputs[0])
    with playable_file(args.inputs[0], args, console) as path:
        files = package_scene(path, args.output, overwrite=args.overwrite)
    if args.json:
        console.json({"files": files})
        return ExitCode.OK
    console.summary(
        f"{args.output}: {len(files)} files, {human_bytes(sum(files.values()))}; open index.html on its host"
    )
    return ExitCode.OK
