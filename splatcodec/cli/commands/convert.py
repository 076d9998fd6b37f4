"""Read a scene in one format and write it in another.

The suffix of OUT names the format, and so does that of IN where its bytes do not. Values that OUT's format cannot hold
are said, not hidden. `compress` gives more choice where OUT is a .splc file; here it gets the default quality.

examples:
  splatcodec convert scene.spz scene.ply
  splatcodec convert scene.sog scene.splc
"""

from __future__ import annotations

import argparse
import os

from ..arguments import add_json, add_overwrite, human_bytes
from ..console import Console
from ..exit_codes import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("input", metavar="IN", help="scene in any format that can be read")
    parser.add_argument("output", metavar="OUT", help="file to write")
    parser.add_argument("--from", dest="from_format", metavar="NAME", help="format of IN (default: find out)")
    parser.add_argument("--to", dest="to_format", metavar="NAME", help="format of OUT (default: by its suffix)")
    add_overwrite(parser)
    add_json(parser, "what was done")


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the scene of `args.input` as `args.output`."""
    from ... import api
    from ...errors import ParameterError

    if not args.overwrite and os.path.lexists(args.output):
        raise ParameterError("the file exists", file=args.output, hint="--overwrite replaces it")
    gaussians = api.read(args.input, format=args.from_format)
    losses = api.write(gaussians, args.output, format=args.to_format, overwrite=args.overwrite)
    size = _size_bytes(args.output)
    if args.json:
        facts = {"file": args.output, "num_gaussians": gaussians.num_gaussians, "size_bytes": size}
        console.json({**facts, "losses": losses})
    else:
        console.summary(f"{args.output}: {gaussians.num_gaussians:,} Gaussians, {human_bytes(size)}")
    return ExitCode.OK


def _size_bytes(path: str) -> int:
    """Of a file, or of all files of a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sum(os.path.getsize(file) for file in files)
