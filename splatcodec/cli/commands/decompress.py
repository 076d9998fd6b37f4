"""Decode a .splc file, usually to PLY.

A lossless file that was made from a PLY gives that PLY back, byte for byte; the command compares sha256 sums, says so,
and ends with exit code 7 if they differ.

examples:
  splatcodec decompress scene.splc scene.ply
  splatcodec decompress scene.splc preview.ply --levels 1
  splatcodec decompress moving.splc frames/ --frames 0:30
  splatcodec decompress scene.splc phone.ply --max-gaussians 500000 --sh-degree 1
  splatcodec decompress scene.splc chair.ply --crop-box -1,0,-1,1,2,1 --rotate-xyz -90,0,0
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from .. import moving
from ..arguments import add_json, add_overwrite, add_threads, box, human_bytes, nonnegative_int, positive_int
from ..console import Console
from ..edit_options import (
    add_edit_options,
    apply_edits,
    edit_blocks,
    edits_by_row,
    has_edits,
    no_edits_of_moving,
    stated,
)
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
    add_edit_options(parser, without=("sh-degree",))
    add_threads(parser)
    add_overwrite(parser)
    add_json(parser, "what was done")


def run(args: argparse.Namespace, console: Console) -> int:
    """Decode `args.input` into `args.output`."""
    from ... import api
    from ...errors import ParameterError

    if api.is_moving(args.input):
        no_edits_of_moving(args)
        return moving.decompress(args, console)
    if args.frames or args.planes:
        raise ParameterError(f"--{'frames' if args.frames else 'planes'} is for moving scenes", file=args.input)
    started = time.perf_counter()
    damage: list[str] = []
    part: dict[str, Any] = {
        "level": args.levels,
        "tile": args.tile,
        "region": args.region,
        "max_gaussians": args.max_gaussians,
        "sh_degree": args.sh_degree,
        "sh_layers": args.sh_layers,
        "keep_going": args.keep_going,
        "damage": damage,
    }
    if has_edits(args):
        facts = _edited(args, console, part)
    else:
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


def _edited(args: argparse.Namespace, console: Console, part: dict[str, Any]) -> dict[str, Any]:
    """Decode, edit and write; block by block where format and steps allow that.

    Returns:
        What `api.decompress_file` returns of a part of a scene, and `edits`.
    """
    from ... import api, formats
    from ...errors import ParameterError

    if not args.overwrite and os.path.lexists(args.output):
        raise ParameterError("the file exists", file=args.output, hint="--overwrite replaces it")
    target: dict[str, Any] = {"format": args.format, "overwrite": args.overwrite}
    to_splc = args.format == "splc" or (args.format is None and args.output.lower().endswith(api.SUFFIX))
    how: dict[str, Any] = {"threads": args.threads, "progress": console.progress, **part}
    with api.open(args.input) as scene:
        blocks = None
        if edits_by_row(args) and not to_splc and formats.writes_blocks(args.output, format=args.format):
            blocks = scene.blocks(**how)
        if blocks is not None:
            blocks, steps = edit_blocks(blocks, args.input, args, console)
            losses, count = formats.write_blocks(blocks, args.output, **target), blocks.num_gaussians
        else:
            decoded = stated(scene.read(**how), args.input, args, console)
            decoded, steps = apply_edits(decoded, args, console, threads=args.threads)
            losses, count = api.write(decoded, args.output, **target), decoded.num_gaussians
        facts = {"num_gaussians": count, "lossless": scene.lossless, "losses": losses, "edits": steps}
    return {**facts, "size_bytes": os.path.getsize(args.output) if os.path.isfile(args.output) else 0}
