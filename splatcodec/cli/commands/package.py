"""Write a folder that shows a scene, for any static host.

Page, player and scene as plain files, to be copied to a web server. The scene is the same file, read by ranges: hosts
that know ranges show it sooner. docs/player.md says which headers a host should send.

examples:
  splatcodec package scene.splc site/
"""

from __future__ import annotations

import argparse

from ..arguments import add_overwrite, human_bytes
from ..console import Console
from ..exit_codes import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("input", metavar="FILE.splc", help="lossy scene")
    parser.add_argument("output", metavar="DIR", help="folder to write")
    add_overwrite(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write `args.output`."""
    from ...streaming.pages import package_scene

    files = package_scene(args.input, args.output, overwrite=args.overwrite)
    console.summary(
        f"{args.output}: {len(files)} files, {human_bytes(sum(files.values()))}; open index.html on its host"
    )
    return ExitCode.OK
