"""Decode a .splc file, usually to PLY.

A lossless file that was made from a PLY gives that PLY back, byte for byte; the command compares sha256 sums, says so,
and ends with exit code 7 if they differ.

examples:
  splatcodec decompress scene.splc scene.ply
  splatcodec decompress scene.splc preview.ply --levels 1
  splatcodec decompress moving.splc frames/ --frames 0:30
  splatcodec decompress scene.splc phone.ply --max-gaussians 500000 --sh-degree 1
"""

from __future__ import annotations

import argparse
import time

from .. import moving
from ..arguments import add_json, add_overwrite, add_threads, box, human_bytes, nonnegative_int, positive_int
from ..console import Console
from ..exit_codes import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("input", metavar="IN.splc", help="file to decode")
    parser.add_argument("output", metavar="OUT", help="file to write; its suffix names the format; frames: a folder")
    parser.add_argument("--format", metavar="NAME", help="format to write, whatever the suffix")
    part = parser.add_argument_group("a part of the scene (lossy files)")
    part.add_argument(
        "--levels",
        type=nonnegative_int,
        metavar="N",
        help="levels 1 to N, over the thumbnail until all are there; 0 = the thumbnail (default: all)",
    )
    part.add_argument(
        "--max-gaussians", type=positive_int, metavar="N", help="as much from the file's beginning as has at most N"
    )
    part.add_argument(
        "--tile", type=nonnegative_int, action="append", metavar="T", help="only this tile; may be repeated"
    )
    part.add_argument(
        "--region", type=box, metavar="X0,Y0,Z0,X1,Y1,Z1", help="only Gaussians whose means are in this box"
    )
    part.add_argument("--sh-degree", type=nonnegative_int, metavar="D", help="leave out SH bands above D")
    part.add_argument("--sh-layers", type=nonnegative_int, metavar="N", help="read N of 3 layers of SH components")
    part.add_argument(
        "--keep-going", action="store_true", help="leave out damaged chunks, say which, and end with exit code 7"
    )
    parser.add_argument(
        "--frames", type=moving.frame_range, metavar="A:B", help="of a moving scene frames A to B - 1, also A:B:STEP"
    )
    parser.add_argument(
        "--planes",
        action="store_true",
        help="of a moving scene with --profile video: its planes as MP4, a file a group",
    )
    add_threads(parser)
    add_overwrite(parser)
    add_json(parser, "what was done")


def run(args: argparse.Namespace, console: Console) -> int:
    """Decode `args.input` into `args.output`."""
    from ... import api
    from ...errors import ParameterError

    if api.is_moving(args.input):
        return moving.decompress(args, console)
    if args.frames or args.planes:
        raise ParameterError(f"--{'frames' if args.frames else 'planes'} is for moving scenes", file=args.input)
    started = time.perf_counter()
    damage: list[str] = []
    part = {
        "level": args.levels,
        "tile": args.tile,
        "region": args.region,
        "max_gaussians": args.max_gaussians,
        "sh_degree": args.sh_degree,
        "sh_layers": args.sh_layers,
        "keep_going": args.keep_going,
        "damage": damage,
    }
    facts = api.decompress_file(
        args.input,
        args.output,
        overwrite=args.overwrite,
        format=args.format,
        threads=args.threads,
        progress=console.progress,
        **part,
    )
    seconds = time.perf_counter() - started
    identical = facts.get("identical")
    if args.json:
        console.json({"file": args.output, **facts, "damage": damage, "seconds": seconds})
    else:
        console.summary(
            f"{args.output}: {facts['num_gaussians']:,} Gaussians, {human_bytes(facts['size_bytes'])}\n"
            f"  {seconds:.1f} s"
        )
        if identical:
            console.summary("  identical to the source (sha256)")
        elif facts.get("identical_content"):
            console.summary("  every value identical to the source's, compressed anew")
    for line in damage:
        console.error(f"left out: {line}")
    if damage:
        return ExitCode.CHECK_FAILED
    if identical is False and not facts.get("identical_content"):
        differs = ", ".join(facts.get("differs", ())) or "sha256"
        console.error(f"error: {args.output}: not identical to the source: {differs}")
        return ExitCode.CHECK_FAILED
    return ExitCode.OK
