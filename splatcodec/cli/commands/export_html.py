"""Write one page that shows a scene, with everything in it.

The player and the scene are inside: the page works from disk and from a mail, and fetches nothing. It has a third more
bytes than the scene, and about 170 kB of its own.

examples:
  splatcodec export-html scene.splc scene.html
  splatcodec export-html scene.splc scene.html --title "A bouquet"
"""

from __future__ import annotations

import argparse

from ..arguments import add_overwrite, human_bytes
from ..console import Console
from ..exit_codes import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("input", metavar="FILE.splc", help="lossy scene")
    parser.add_argument("output", metavar="OUT.html", help="page to write")
    parser.add_argument("--title", metavar="TEXT", help="title of the page (the file's name)")
    add_overwrite(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write `args.output`."""
    from ...streaming.pages import export_html

    size = export_html(args.input, args.output, title=args.title, overwrite=args.overwrite)
    console.summary(f"{args.output}: {human_bytes(size)}")
    return ExitCode.OK
