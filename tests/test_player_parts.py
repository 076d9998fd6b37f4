"""The decoder in JavaScript: regions, and what is left of damaged files, are those that Python gives."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from test_player import node

from splatcodec import api
from splatcodec.bitstream.container import Container
from splatcodec.limits import DEFAULT_LIMITS
from splatcodec.sample import sample_scene
from splatcodec.static import encoder
from splatcodec.static.decoder import Selection, choose_units, read_units


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "scene.splc"
    with (
        mock.patch.object(encoder, "cut_tiles", functools.partial(encoder.cut_tiles, max_tile=150)),
        mock.patch.object(encoder, "level_shares", return_value=(0.3, 1.0)),
        mock.patch.object(encoder, "thumbnail_count", return_value=30),
    ):
        api.write(sample_scene(900).with_sh_degree(2), path, quality=70, effort=3)
    return path


def case(path: Path, folder: Path, asked: dict[str, Any], **part: Any) -> dict[str, Any]:
    """What parts.mjs compares with."""
    damage: list[str] = []
    with api.open(path) as scene:
        wanted = scene.read(damage=damage, **part)
    number = len(list(folder.glob("*.bin")))
    files = {}
    arrays = {"means": wanted.means, "sh0": wanted.sh0, "shN": wanted.shN, "alphas": wanted.alphas()}
    for name, values in arrays.items():
        files[name] = str(folder / f"{number}-{name}.bin")
        Path(files[name]).write_bytes(values.astype("<f4").tobytes())
    labels = sorted(line.split(":")[0] for line in damage)
    with Container.open(path) as container:
        region = part.get("region")
        units = choose_units(
            container, read_units(container, DEFAULT_LIMITS), Selection(level=part.get("level"), region=region)
        )
        shown = [f"{unit.tile.level}/{unit.tile.tile}" for unit in units]
    lost = {label[5:-1] for label in labels}
    return {
        "stream": str(path),
        "selection": asked,
        "count": len(wanted),
        "damage": labels,
        "files": files,
        "shown": [unit for unit in shown if unit not in lost],
    }


def test_regions(stream, tmp_path):
    scene = api.read(stream)
    low, high = scene.means.min(0), scene.means.max(0)
    middle = np.median(scene.means, axis=0)
    cases = []
    for corners in ((low, middle), (middle, high), (middle - 0.2, middle + 0.3), (high + 100, high + 101), (low, high)):
        numbers = [float(x) for x in np.concatenate(corners)]
        region = (numbers[:3], numbers[3:])
        cases.append(case(stream, tmp_path, {"region": numbers}, region=region))
        cases.append(case(stream, tmp_path, {"region": numbers, "level": 1}, region=region, level=1))
        cases.append(case(stream, tmp_path, {"region": numbers, "level": 0}, region=region, level=0))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (facts,) = node("parts.mjs", tmp_path / "cases.json")
    assert facts["cases"] == 2 * len(cases)
    assert 0 < min(c["count"] for c in cases if c["count"]) < len(scene)
    assert any(c["count"] == 0 for c in cases)


def test_what_is_left_of_damaged_files(stream, tmp_path):
    content = stream.read_bytes()
    with Container.open(stream) as container:
        entries = [entry for entry in container.chunks if re.fullmatch("TILE|SHC[123]", entry.type) and entry.level]
    rng = np.random.default_rng(4)
    cases = [case(stream, tmp_path, {"keepGoing": True}, keep_going=True)]
    for k in range(12):
        damaged = bytearray(content)
        chosen = [entries[i] for i in rng.choice(len(entries), 1 + k % 3, replace=False)]
        for entry in chosen:
            damaged[entry.offset + int(rng.integers(entry.length))] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"damaged-{k}.splc"
        path.write_bytes(damaged)
        for level in (None, 1):
            asked = {"keepGoing": True} if level is None else {"keepGoing": True, "level": level}
            cases.append(case(path, tmp_path, asked, keep_going=True, level=level))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (facts,) = node("parts.mjs", tmp_path / "cases.json")
    assert facts["damage"] > 20
