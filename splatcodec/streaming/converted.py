"""Scenes of other formats for the player: compressed into a temporary file that goes when it is no longer shown."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BackendUnavailableError
from .server import list_scenes

if TYPE_CHECKING:
    from ..gaussians import Gaussians

__all__ = ["needs_conversion", "playable_file"]

Progress = Callable[[str, float], None]
# As little work as there is, at a quality at which one looks at the scene and not at the codec.
_EFFORT = 1
_QUALITY = 80.0


def needs_conversion(target: Path) -> bool:
    """Whether the player cannot be given a file or folder as it is: another format, or frames of a moving scene.

    A folder with anything in it that can be served is a folder of scenes.
    """
    from ..sequence.input import is_moving_source

    if target.is_dir():
        return not list_scenes(target) and is_moving_source(target)
    return target.suffix.lower() != ".splc"


@contextlib.contextmanager
def playable_file(source: Path, progress: Progress | None = None, *, scene: Gaussians | None = None) -> Iterator[Path]:
    """A `.splc` file of a scene in any format that can be read, or of frames; it is removed at the end.

    Args:
        scene: what is to be shown instead of what `source` holds, whose name it keeps.

    Raises:
        BackendUnavailableError: the extra `serve` is not installed (said before the work).
        SplatCodecError: the source cannot be read, or the temporary file cannot be written.
    """
    from .. import api
    from ..sequence.input import is_moving_source

    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise BackendUnavailableError(
            "serving needs starlette and uvicorn", hint="pip install 'splatcodec[serve]'"
        ) from None
    # The name is part of an address.
    name = re.sub(r"[^\w.-]+", "-", source.resolve().name if source.is_dir() else source.stem).strip(".-") or "scene"
    with tempfile.TemporaryDirectory(prefix="splatcodec-serve-") as folder:
        path = Path(folder) / f"{name}.splc"
        if scene is not None:
            api.write(scene, path, effort=_EFFORT, quality=_QUALITY, progress=progress)
        elif is_moving_source(source):
            api.compress_sequence(source, path, effort=_EFFORT, quality=_QUALITY, progress=progress)
        else:
            api.compress_file(os.fspath(source), path, effort=_EFFORT, quality=_QUALITY, progress=progress)
        yield path
