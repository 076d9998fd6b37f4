"""Check a .splc file for damage.

Header, table of contents, every checksum and count. With --full everything is decoded as well, which proves that it
can be. Ends with exit code 7 if the file is damaged.

examples:
  splatcodec verify scene.splc
  splatcodec verify scene.splc --full
"""

from __future__ import annotations

import argparse

from ..arguments import add_json, human_bytes
from ..console import Console
from ..exit_codes import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("input", metavar="FILE.splc", help="file to check")
    parser.add_argument("--full", action="store_true", help="decode everything too")
    add_json(parser, "the outcome")


def run(args: argparse.Namespace, console: Console) -> int:
    """Check `args.input`."""
    from ... import api
    from ...errors import FormatError

    try:
        facts = api.verify(args.input, full=args.full, progress=console.progress)
    except FormatError as error:
        error.locate(file=args.input)
        if args.json:
            place = {"chunk": error.chunk, "offset": error.offset, "field": error.field}
            console.json({"file": args.input, "ok": False, "error": error.message, **place})
        console.error(f"damaged: {error}")
        return ExitCode.CHECK_FAILED
    if args.json:
        console.json({**facts, "file": args.input, "ok": True})
    else:
        depth = "decoded in full" if args.full else "checksums and counts are right"
        console.result(
            f"{args.input}: ok, {depth}\n"
            f"  version {facts['version']}, {facts['num_gaussians']:,} Gaussians, {facts['num_chunks']} chunks, "
            f"{human_bytes(facts['size_bytes'])}"
        )
    return ExitCode.OK
