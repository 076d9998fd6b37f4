"""Several scenes as one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ParameterError, SplatCodecWarning
from ..frames import convert_frame, parse_frame
from ..gaussians import Gaussians, num_sh_coefficients

__all__ = ["merge"]

_SCENE_FACTS = ("frame", "antialiased", "up", "background", "camera", "unit_m", "colour_space")


def merge(scenes: Sequence[Gaussians]) -> Gaussians:
    """All Gaussians of several scenes, in the order given.

    Lower SH degrees are filled up with zeros. Scenes in another stated frame are converted to the first one's. Side
    arrays that not every scene has in the same shape are left out, with a SplatCodecWarning that names them. Of
    statements about the scene (metadata) that differ the first one's counts, facts about files that differ are left
    out, both with a SplatCodecWarning; `comments` are joined. Scenes without Gaussians change nothing.

    Raises:
        ParameterError: there is no scene; some say which frame they are in and some do not; or some are drawn with
            anti-aliased opacities and some not.
    """
    if not scenes:
        raise ParameterError("nothing to merge")
    parts = [scene for scene in scenes if scene.num_gaussians] or [scenes[0]]
    if len(parts) == 1:
        return parts[0]
    parts = _in_one_frame(parts)
    flags = [bool(scene.metadata.get("antialiased", False)) for scene in parts]
    if any(flags) and not all(flags):
        raise ParameterError(
            "some of the scenes are anti-aliased (Mip-Splatting) and some are not: no renderer draws both at once",
            field="antialiased",
        )
    sh_degree = max(scene.sh_degree for scene in parts)
    shN = np.zeros((sum(len(scene) for scene in parts), num_sh_coefficients(sh_degree) - 1, 3), np.float32)
    start = 0
    for scene in parts:
        shN[start : start + len(scene), : scene.shN.shape[1]] = scene.shN
        start += len(scene)
    return Gaussians(
        means=np.concatenate([scene.means for scene in parts]),
        quats=np.concatenate([scene.quats for scene in parts]),
        scales=np.concatenate([scene.scales for scene in parts]),
        opacities=np.concatenate([scene.opacities for scene in parts]),
        sh0=np.concatenate([scene.sh0 for scene in parts]),
        shN=shN,
        extras=_common_extras(parts),
        metadata=_joined_metadata(parts),
    )


def _in_one_frame(scenes: list[Gaussians]) -> list[Gaussians]:
    frames = [scene.metadata.get("frame") for scene in scenes]
    stated = [parse_frame(frame) for frame in frames if frame is not None]
    if stated and len(stated) < len(frames):
        silent = ", ".join(str(k + 1) for k, frame in enumerate(frames) if frame is None)
        raise ParameterError(
            f"some of the scenes say that they are in {stated[0]}, but number {silent} does not say",
            field="frame",
            hint="state the frame of those that do not",
        )
    if len(set(stated)) < 2:
        return scenes
    return [
        scene if parse_frame(scene.metadata["frame"]) == stated[0] else convert_frame(scene, stated[0])
        for scene in scenes
    ]


def _common_extras(scenes: list[Gaussians]) -> dict[str, npt.NDArray[Any]]:
    names = list(dict.fromkeys(name for scene in scenes for name in scene.extras))
    common, dropped = {}, []
    for name in names:
        arrays = [scene.extras[name] for scene in scenes if name in scene.extras]
        if len(arrays) < len(scenes) or len({array.shape[1:] for array in arrays}) > 1:
            dropped.append(name)
        else:
            common[name] = np.concatenate(arrays)
    if dropped:
        warnings.warn(
            f"side arrays that not all of the merged scenes have are left out: {', '.join(dropped)}",
            SplatCodecWarning,
            stacklevel=3,
        )
    return common


def _joined_metadata(scenes: list[Gaussians]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    differing: list[str] = []
    for scene in scenes:
        for name, value in scene.metadata.items():
            if name in ("comments", "source"):
                continue
            if name not in joined:
                joined[name] = value
            elif joined[name] != value and name not in differing:
                differing.append(name)
    if comments := list(dict.fromkeys(text for scene in scenes for text in _comments(scene))):
        joined["comments"] = comments
    # Facts about a file, such as its version, are no facts about what was merged from several.
    dropped = [name for name in differing if name not in _SCENE_FACTS]
    for name in dropped:
        del joined[name]
    for names, what in (([n for n in differing if n in _SCENE_FACTS], "the first one's counts"), (dropped, "left out")):
        if names:
            warnings.warn(f"the merged scenes differ in {', '.join(names)}: {what}", SplatCodecWarning, stacklevel=3)
    return joined


def _comments(scene: Gaussians) -> list[str]:
    stated = scene.metadata.get("comments") or []
    return [str(text) for text in stated] if isinstance(stated, list | tuple) else [str(stated)]
