"""Write the synthetic sample scene.

A made-up scene with a fixed seed for trying things out: no download, no licence. It is not a trained scene, so sizes
measured on it say nothing about trained ones.

examples:
  splatcodec sample sample.ply
  splatcodec sample small.ply --gaussians 2000
"""

from __future__ import annotations

import argparse
import os

from ..arguments import add_overwrite, human_bytes, nonnegative_int, positive_int
from ..console import Console
from ..exit_codes import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("output", metavar="OUT", help="file to write; the suffix names the format")
    parser.add_argument("--gaussians", type=positive_int, metavar="N", default=100_000, help="how many (100000)")
    parser.add_argument("--seed", type=nonnegative_int, metavar="S", default=1, help="another seed, other numbers (1)")
    add_overwrite(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the scene to `args.output`."""
    from ... import api
    from ...sample import sample_scene

    api.write(sample_scene(args.gaussians, args.seed), args.output, overwrite=args.overwrite)
    console.summary(
        f"{args.output}: synthetic scene, {args.gaussians:,} Gaussians, {human_bytes(os.path.getsize(args.output))}"
    )
    return ExitCode.OK
