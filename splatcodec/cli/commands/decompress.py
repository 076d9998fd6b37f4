"""Decode a .splc file, usually to PLY.

A lossless file that was made from a PLY gives that PLY back, byte for byte; the command compares sha256 sums, says so,
and ends with exit code 7 if they differ.

examples:
  splatcodec decompress scene.splc scene.ply
  splatcodec decompress scene.splc scene.ply --overwrite
"""

from __future__ import annotations

import argparse
import time

from ..arguments import add_json, add_overwrite, add_threads, human_bytes
from ..console import Console
from ..exit_codes import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("input", metavar="IN.splc", help="file to decode")
    parser.add_argument("output", metavar="OUT", help="file to write; the suffix names the format")
    parser.add_argument("--format", metavar="NAME", help="format to write, whatever the suffix")
    add_threads(parser)
    add_overwrite(parser)
    add_json(parser, "what was done")


def run(args: argparse.Namespace, console: Console) -> int:
    """Decode `args.input` into `args.output`."""
    from ... import api

    started = time.perf_counter()
    facts = api.decompress_file(
        args.input,
        args.output,
        overwrite=args.overwrite,
        format=args.format,
        threads=args.threads,
        progress=console.progress,
    )
    seconds = time.perf_counter() - started
    identical = facts.get("identical")
    if args.json:
        console.json({"file": args.output, **facts, "seconds": seconds})
    else:
        console.summary(
            f"{args.output}: {facts['num_gaussians']:,} Gaussians, {human_bytes(facts['size_bytes'])}\n"
            f"  {seconds:.1f} s"
        )
        if identical:
            console.summary("  identical to the source (sha256)")
    if identical is False:
        differs = ", ".join(facts.get("differs", ())) or "sha256"
        console.error(f"error: {args.output}: not identical to the source: {differs}")
        return ExitCode.CHECK_FAILED
    return ExitCode.OK
