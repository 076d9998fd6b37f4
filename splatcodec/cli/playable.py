"""Scenes that a page cannot show as they are, made into files that it can."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
def playable_file(
    path: str, args: argparse.Namespace, console: Console, *, name: str = "scene", **making: float
) -> Iterator[str]:
    """A file that the player can show: `path` itself where that will do, else a compressed copy while this lasts.

    A scene is compressed if it is in another format, lossless or of the archive profile, if it is to be edited, or if
    `args.quality` asks for it; frames of a moving scene are.

    Args:
        path: a still scene in any format, a moving `.splc` file, which is left as it is, or frames.
        args: with `add_edit_options`; also with `quality` and `threads`, where the command has them.
        name: of the copy, without a suffix.
        making: `quality` and `effort` of a copy where `args` says nothing else; those of `compress` by default.

    Raises:
        ParameterError: edit steps or a quality for a moving scene.
        SplatCodecError: the scene cannot be read.
    """
    from .. import api
    from ..errors import ParameterError, UnsupportedError
    from ..sequence.input import is_moving_source
    from ..streaming.pages import check_playable

    quality, threads = getattr(args, "quality", None), getattr(args, "threads", None)
    wanted = has_edits(args) or quality is not None
    is_splc = not os.path.isdir(path) and (api.is_splc(path) or path.lower().endswith(api.SUFFIX))
    frames = not is_splc and is_moving_source(path)
    if frames or (is_splc and api.is_moving(path)):
        no_edits_of_moving(args)
        if wanted:
            raise ParameterError("--quality is for still scenes", file=path)
    if is_splc:
        try:
            check_playable(path)
        except UnsupportedError:
            wanted = True
        if not wanted:
            yield path
            return
    options: dict[str, Any] = dict(making) if quality is None else {**making, "quality": quality}
    options |= {"threads": threads, "progress": console.progress}
    console.note("a temporary file is made for the page (`splatcodec compress` makes one to keep)")
    with tempfile.TemporaryDirectory(prefix="splatcodec-") as folder:
        copy = os.path.join(folder, name + api.SUFFIX)
        made = ""
        if frames:
            api.compress_sequence(path, copy, **options)
        else:
            scene, _ = apply_edits(read_scene(path, args, console), args, console, threads=threads)
            for note in api.write(scene, copy, **options):
                console.detail(f"note: {note}")
            made = f"{scene.num_gaussians:,} Gaussians, "
            del scene
        console.note(f"compressed: {made}{human_bytes(os.path.getsize(copy))}")
        yield copy
