"""Write one page that shows a scene, with everything in it.

The player and the scene are inside: the page works from disk and from a mail, and fetches nothing. It has a third more
bytes than the scene, and about 170 kB of its own.
A lossy .splc file is taken as it is. Other formats, lossless files and edited scenes are compressed first.

examples:
  splatcodec export-html scene.splc scene.html
  splatcodec export-html scene.splc scene.html --title "A bouquet"
  splatcodec export-html scene.ply scene.html --quality 50 --crop-sphere 0,0,0,2
"""

from __future__ import annotations

import argparse
import os

from ..arguments import add_overwrite, add_threads, human_bytes
from ..console import Console
from ..exit_codes import ExitCode
from ..playable import add_playable_options, playable_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("input", metavar="FILE", help="scene: a .splc file, or in any format that can be read")
    parser.add_argument("output", metavar="OUT.html", help="page to write")
    parser.add_argument("--title", metavar="TEXT", help="title of the page (the file's name)")
    add_playable_options(parser)
    add_threads(parser)
    add_overwrite(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write `args.output`."""
    from ...errors import ParameterError
    from ...streaming.pages import export_html

    if not args.overwrite and os.path.lexists(args.output):  # said before the work
        raise ParameterError("the file exists", file=args.output, hint="--overwrite replaces it")
    title = os.path.basename(os.path.normpath(args.input)) if args.title is None else args.title
    with playable_file(args.input, args, console) as path:
        size = export_html(path, args.output, title=title, overwrite=args.overwrite)
    console.summary(f"{args.output}: {human_bytes(size)}")
    return ExitCode.OK
