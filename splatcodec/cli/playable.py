"""Scenes that a page cannot show as they are, made into files that it can."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from .arguments import human_bytes
from .console import Console
from .edit_options import add_edit_options, apply_edits, has_edits, no_edits_of_moving, read_scene

__all__ = ["add_playable_options", "playable_file"]


def add_playable_options(parser: argparse.ArgumentParser) -> None:
    """`--quality` and the edit steps."""
    parser.add_argument(
        "--quality", type=float, metavar="Q", help="compress the scene anew, 0 to 100 (60 where it has to be)"
    )
    add_edit_options(parser)


@contextmanager
def playable_file(path: str, args: argparse.Namespace, console: Console) -> Iterator[str]:
    """A file that the player can show: `path` itself where that will do, else a compressed copy while this lasts.

    A scene is compressed if it is in another format, lossless or of the archive profile, if it is to be edited, or if
    `args.quality` asks for it.

    Args:
        path: a still scene in any format, or a moving `.splc` file, which is left as it is.
        args: with `add_playable_options`, `input` and `threads`.

    Raises:
        ParameterError: edit steps or a quality for a moving scene.
        SplatCodecError: the scene cannot be read.
    """
    from .. import api
    from ..errors import ParameterError, UnsupportedError
    from ..streaming.pages import check_playable

    wanted = has_edits(args) or args.quality is not None
    if not os.path.isdir(path) and (api.is_splc(path) or path.lower().endswith(api.SUFFIX)):
        if api.is_moving(path):
            no_edits_of_moving(args)
            if wanted:
                raise ParameterError("--quality is for still scenes", file=path)
        try:
            check_playable(path)
        except UnsupportedError:
            wanted = True
        if not wanted:
            yield path
            return
    scene, _ = apply_edits(read_scene(path, args, console), args, console, threads=args.threads)
    with tempfile.TemporaryDirectory(prefix="splatcodec-") as folder:
        copy = os.path.join(folder, "scene" + api.SUFFIX)
        options = {} if args.quality is None else {"quality": args.quality}
        notes = api.write(scene, copy, threads=args.threads, progress=console.progress, **options)
        size = human_bytes(os.path.getsize(copy))
        console.note(f"compressed: {scene.num_gaussians:,} Gaussians, {size}")
        for note in notes:
            console.detail(f"note: {note}")
        del scene
        yield copy
