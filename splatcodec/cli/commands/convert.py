"""Read a scene in one format, edit it if asked to, and write it in another.

The suffix of OUT names the format, and so does that of IN where its bytes do not. Values that OUT's format cannot hold
are said, not hidden. Without --quality OUT is as exact as is usual in its format; `compress` gives more choice where it
is a .splc file.
Several INs become one scene, before the edit steps.

examples:
  splatcodec convert scene.spz scene.ply
  splatcodec convert scene.sog scene.splc
  splatcodec convert scene.ply scene.spz --quality 60 --format-version 2
  splatcodec convert room.ply chair.spz both.ply
  splatcodec convert scene.ply part.ply --crop-sphere 0,0,0,2 --rotate-xyz -90,0,0 --decimate 20%
  splatcodec convert scene.ply scene.spz --from-frame RDF --frame RUB
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..arguments import add_json, add_overwrite, add_threads, human_bytes
from ..console import Console
from ..edit_options import add_edit_options, apply_edits, edit_blocks, edits_by_row, read_scene
from ..exit_codes import ExitCode

if TYPE_CHECKING:
    from ...formats import Blocks
    from ...gaussians import Gaussians


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.usage = "%(prog)s [options] IN [IN ...] OUT"
    parser.add_argument("paths", metavar="IN", nargs="+", help="scenes in any format that can be read; OUT comes last")
    parser.add_argument("--from", dest="from_format", metavar="NAME", help="format of IN (default: find out)")
    parser.add_argument("--to", dest="to_format", metavar="NAME", help="format of OUT (default: by its suffix)")
    parser.add_argument(
        "--quality", type=float, metavar="Q", help="0 to 100, as for compress: aims at a covered PSNR of 25 + 0.3 Q dB"
    )
    parser.add_argument(
        "--format-version", type=int, metavar="V", help="version of OUT's format, of those with several"
    )
    add_threads(parser)
    add_edit_options(parser)
    add_overwrite(parser)
    add_json(parser, "what was done")


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the scene of all `args.paths` but the last as that one."""
    from ... import api
    from ...errors import ParameterError

    *inputs, output = args.paths
    if not inputs:
        raise ParameterError("there is only one path", hint="give IN, then OUT")
    if not args.overwrite and os.path.lexists(output) and not os.path.isdir(output):
        raise ParameterError("the file exists", file=output, hint="--overwrite replaces it")
    options: dict[str, Any] = {"quality": args.quality, "version": args.format_version, "threads": args.threads}
    options = {name: value for name, value in options.items() if value is not None}
    done = _stream(inputs, output, options, args, console)
    if done is None:
        merged: list[dict[str, Any]] = []
        gaussians, edits = apply_edits(_read(inputs, args, console, merged), args, console)
        losses = api.write(
            gaussians, output, format=args.to_format, overwrite=args.overwrite, progress=console.progress, **options
        )
        done = gaussians.num_gaussians, merged + edits, losses
    count, steps, losses = done
    size = _size_bytes(output)
    if args.json:
        facts = {"file": output, "num_gaussians": count, "size_bytes": size}
        console.json({**facts, "edits": steps, "losses": losses})
    else:
        console.summary(f"{output}: {count:,} Gaussians, {human_bytes(size)}")
    return ExitCode.OK


def _stream(
    inputs: list[str], output: str, options: dict[str, Any], args: argparse.Namespace, console: Console
) -> tuple[int, list[dict[str, Any]], list[str]] | None:
    """Convert one file block by block, where formats and steps allow that; the result is the same, the memory less.

    Returns:
        (number of Gaussians, steps, losses), or None if the scene has to be read whole.
    """
    from ... import api, formats

    if len(inputs) > 1 or not edits_by_row(args):
        return None
    to_splc = args.to_format == "splc" or (args.to_format is None and output.lower().endswith(api.SUFFIX))
    if to_splc:
        return None
    chosen = formats.WriteOptions(**options, progress=console.progress)
    if not formats.writes_blocks(output, format=args.to_format, options=chosen):
        return None
    with api.open_blocks(inputs[0], format=args.from_format) as blocks:
        if blocks is None:
            return None
        blocks, steps = edit_blocks(blocks, inputs[0], args, console)
        blocks = _with_progress(blocks, console)
        losses = formats.write_blocks(blocks, output, format=args.to_format, overwrite=args.overwrite, options=chosen)
        return blocks.num_gaussians, steps, losses


def _with_progress(blocks: Blocks, console: Console) -> Blocks:
    def rows() -> Iterator[Gaussians]:
        done = 0
        for block in blocks.rows():
            yield block
            done += len(block)
            console.progress("convert", done / blocks.num_gaussians if blocks.num_gaussians else 1.0)

    return replace(blocks, rows=rows)


def _read(inputs: list[str], args: argparse.Namespace, console: Console, merged: list[dict[str, Any]]) -> Gaussians:
    """The scene of one file, or of several; what was merged is added to `merged`."""
    scenes = [read_scene(path, args, console, format=args.from_format) for path in inputs]
    if len(scenes) == 1:
        return scenes.pop()
    from ...edits import merge

    counts = [scene.num_gaussians for scene in scenes]
    console.note(f"merge: {' + '.join(f'{count:,}' for count in counts)} = {sum(counts):,} Gaussians")
    merged.append({"step": "merge", "inputs": inputs, "num_gaussians_before": counts, "num_gaussians": sum(counts)})
    return merge(scenes)


def _size_bytes(path: str) -> int:
    """Of a file, or of all files of a folder, which the file that stands for it may name."""
    from ...formats import formats

    if any(fmt.index_name == os.path.basename(path).lower() for fmt in formats().values()):
        path = os.path.dirname(path) or "."
    if os.path.isfile(path):
        return os.path.getsize(path)
    files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sum(os.path.getsize(file) for file in files)
