"""Moving scenes in the player, in a real browser: pictures like Python's, playing, qualities, damage, sound, memory."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import struct
import threading
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_sequences import MovingScene as MovingTestScene
from test_player import JS, NODE, PLAYER, _absent, node
from test_player_moving import motion_file, moving_scene, video_file  # noqa: F401 (fixtures)
from test_player_page import SIZE_PX, _view, browse, serving

from splatcodec import api
from splatcodec.bitstream.container import Chunk
from splatcodec.render.camera import evaluation_cameras
from splatcodec.render.cpu import render
from splatcodec.sample import sample_scene
from splatcodec.sequence.file import GroupChunks, SequenceFile, SequenceWriter
from splatcodec.streaming import pages
from splatcodec.streaming.package import package_sequence
from splatcodec.streaming.server import Throttle, self_signed

MIN_PSNR_DB = 30.0
MAX_MOVING_GZIPPED = 30_000


def _play(
    url: str,
    folder: Path,
    seconds: float,
    cameras: Any = (),
    numbers: tuple[int, ...] = (),
    buffered: bool = False,
) -> dict[str, Any]:
    """What tests/js/player_page.mjs says of frames `numbers`, and of playing all of the clip."""
    (folder / "views.json").write_text(json.dumps([_view(camera) for camera in cameras]))
    more = ["buffered"] if buffered else []
    (facts,) = browse("clip", url, folder / "views.json", folder, seconds, json.dumps(numbers), *more)
    return facts


def _same_pictures(path: Path, facts: dict[str, Any], folder: Path, cameras: Any, numbers: tuple[int, ...]) -> None:
    with api.open_moving(path) as scene:
        for k, number in enumerate(numbers):
            frame = scene.frame(number)
            assert facts["frames"][k] >= len(frame)
            camera = cameras[k % len(cameras)]
            expected = render(frame, camera)
            got = (
                np.fromfile(folder / f"{number}.rgba", np.uint8).reshape(camera.height, camera.width, 4)[..., :3]
                / 255.0
            )
            error = (got - np.clip(expected.rgb, 0, 1))[expected.alpha > 0.02]
            assert error.size > 1000
            assert -10 * np.log10(np.mean(error**2)) >= MIN_PSNR_DB, (number, facts["clip"])


@pytest.mark.parametrize("profile", ["motion", "video"])
def test_frames_are_those_of_python_and_it_plays(profile: str, tmp_path: Path, request: Any) -> None:
    path = request.getfixturevalue(f"{profile}_file")
    with api.open_moving(path) as scene:
        total, groups = scene.num_frames, len(scene.groups)
        middle = scene.frame(total // 2)
    views = evaluation_cameras(middle, num_views=24, size_px=SIZE_PX)
    cameras, numbers = [views[3], views[11]], (total - 1, 0, 5, 6)
    with serving(path) as url:
        facts = _play(url(f"/scenes/{path.name}"), tmp_path, 20, cameras, numbers)
    assert facts["problems"] == []
    assert facts["notices"] == []
    _same_pictures(path, facts, tmp_path, cameras, numbers)
    # Every group was shown, and it stood still at its end.
    assert facts["groups"] == list(range(groups))
    assert facts["took"] is not None
    assert facts["took"] > 1000 * (total - 1) / 24
    assert facts["clip"]["frame"] == total - 1
    assert facts["controls"]["hidden"] is False
    assert facts["controls"]["play"] == "Play"
    assert {"Play", "Position", "Loop"} <= set(facts["controls"]["names"])
    assert all(name.startswith(("http://127.0.0.1", "data:")) for name in facts["asked"])


def test_files_that_are_cut_off_or_damaged(motion_file: Path, tmp_path: Path) -> None:  # noqa: F811
    content = motion_file.read_bytes()
    with open(motion_file, "rb") as file:
        groups = SequenceFile(file).groups
    (tmp_path / "cut.splc").write_bytes(content[: groups[2].offset + 99])
    hurt = bytearray(content)
    hurt[groups[1].offset + groups[1].length - 30] ^= 4
    (tmp_path / "hurt.splc").write_bytes(hurt)
    (tmp_path / "head.splc").write_bytes(content[: groups[0].offset + 50])
    with serving(tmp_path) as url:
        cut = _play(url("/scenes/cut.splc"), tmp_path, 20)
        damaged = _play(url("/scenes/hurt.splc"), tmp_path, 20)
        (head,) = browse("errors", url("/scenes/head.splc"))
    assert cut["groups"] == [0, 1]
    assert cut["clip"]["numFrames"] == 10
    assert any("not finished" in notice for notice in cut["notices"])
    assert damaged["groups"] == [0, 2]
    assert any("group 1 (frames 5 to 9)" in notice for notice in damaged["notices"])
    assert damaged["took"] is not None
    assert head["phase"] == "failed"
    assert "no whole group" in head["text"]


@pytest.mark.parametrize("profile", ["motion", "video"])
def test_a_lost_graphics_device_comes_back_while_a_clip_plays(profile: str, request: Any) -> None:
    path = request.getfixturevalue(f"{profile}_file")
    with serving(path) as url:
        (facts,) = browse("lostclip", url(f"/scenes/{path.name}"), 6)
    assert facts["lit"] > 10_000
    # The same frame has the same picture, whether it was lost standing still or while playing.
    assert (facts["still"], facts["after"]) == (0, 0)
    assert facts["playing"] is True
    assert len(facts["groups"]) == (3 if profile == "motion" else 2)
    assert min(facts["said"]) > 0
    assert facts["notices"] == []
    assert facts["problems"] == []


@pytest.mark.slow
def test_twenty_seconds_play_without_a_dropped_group(motion_file: Path, tmp_path: Path) -> None:  # noqa: F811
    """The first group again and again: 96 groups of 5 frames at 24 frames a second."""
    with api.open_moving(motion_file) as scene, open(tmp_path / "long.splc", "wb") as file:
        container, head = scene.sequence.read_group(scene.groups[0])
        chunks = [
            Chunk(entry.type, container.read(entry), level=entry.level, tile=entry.tile, count=entry.count)
            for entry in container.chunks
            if entry.type != "GRPH"
        ]
        writer = SequenceWriter(file, 24, scene.metadata)
        for _ in range(96):
            count = container.num_gaussians
            writer.add(GroupChunks(chunks, head.num_frames, num_gaussians=count, features=("lossy-1",)))
        writer.finish()
    with serving(tmp_path) as url:
        facts = _play(url("/scenes/long.splc"), tmp_path, 60)
    assert facts["groups"] == list(range(96))
    assert facts["took"] > 19_000  # longer where the machine does other work, too: the clock waits for frames


def test_exported_page_plays_from_disk(motion_file: Path, tmp_path: Path) -> None:  # noqa: F811
    pages.export_html(motion_file, tmp_path / "page.html")
    facts = _play(f"file://{tmp_path / 'page.html'}?play=0", tmp_path, 20)
    assert facts["groups"] == [0, 1, 2]
    assert facts["problems"] == []


def test_many_scenes_leave_memory_as_it_was(motion_file: Path, video_file: Path) -> None:  # noqa: F811
    folder = motion_file.parent
    shutil.copy(video_file, folder / "video.splc")
    with serving(folder) as url:
        names = [f"/scenes/{motion_file.name}", "/scenes/video.splc"]
        (facts,) = browse("memory", url(""), 10, *names)
    assert facts["problems"] == []
    assert facts["left"] < 100_000  # a row of the textures is the least there is
    assert facts["workers"] == 0
    assert facts["after"] < facts["before"] + 2e6


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds in two qualities, with sound."""
    folder = tmp_path_factory.mktemp("package")
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"".join(struct.pack("<h", int(3000 * math.sin(k / 8))) for k in range(48_000)))
    frames = list(MovingTestScene(sample_scene(1500), 24).frames())
    options: dict[str, Any] = {"fps": 4, "group": 2, "effort": 1, "keep": 1}
    package_sequence(frames, folder / "site", qualities=(85, 25), audio=folder / "sound.wav", **options)
    return folder / "site"


def _manifest(package: Path) -> dict[str, Any]:
    return json.loads((package / "manifest.json").read_text())


class _Link:
    """A link whose rate changes some time after the page has begun to play."""

    def __init__(self, folder: Path, rate_bits: float, *later: tuple[float, float]) -> None:
        self.throttle = Throttle(rate_bits, 0.01)
        self._mark = folder / "playing"
        self._mark.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._change, args=(later,), daemon=True)
        self._thread.start()

    def _change(self, later: tuple[tuple[float, float], ...]) -> None:
        end = time.monotonic() + 120
        while not self._mark.exists() and time.monotonic() < end:
            time.sleep(0.02)
        for seconds, rate_bits in later:
            time.sleep(seconds)
            object.__setattr__(self.throttle, "rate_bits", rate_bits)


def _qualities(facts: dict[str, Any]) -> list[str]:
    return [entry["quality"] for entry in facts["log"] if entry["frame"] > 0]


def test_quality_follows_the_link(package: Path, tmp_path: Path) -> None:
    manifest = _manifest(package)
    best, least = (rendition["id"] for rendition in manifest["renditions"])
    high, low = (rendition["bitrate"] for rendition in manifest["renditions"])
    assert high > 1.8 * low
    fast, slow = max(40 * high, 8e6), 1.4 * low
    # It begins with what is cheap, and comes up.
    link = _Link(tmp_path, fast)
    with serving(package, throttle=link.throttle) as url:
        facts = _play(url("/scenes/manifest.json&ahead=2"), tmp_path, 60)
    assert facts["problems"] == []
    assert facts["groups"] == list(range(12))
    assert _qualities(facts)[-1] == best
    assert facts["clip"]["hasSound"] is True
    # It goes down with the link, and up again.
    link = _Link(tmp_path, fast, (1.0, slow), (3.5, fast))
    with serving(package, throttle=link.throttle) as url:
        facts = _play(url("/scenes/manifest.json&ahead=2"), tmp_path, 60)
    assert facts["problems"] == []
    assert facts["groups"] == list(range(12))
    steps = [name for name, before in zip(_qualities(facts), [None, *_qualities(facts)]) if name != before]
    assert least in steps[1:] or steps[0] == least, steps
    assert steps[-1] == best
    assert len(steps) <= 5, steps


def test_no_stall_when_the_link_drops_for_less_than_the_buffer(package: Path, tmp_path: Path) -> None:
    link = _Link(tmp_path, 1e8, (0.0, 500.0))
    with serving(package, throttle=link.throttle) as url:
        facts = _play(url("/scenes/manifest.json"), tmp_path, 60, buffered=True)
    assert facts["groups"] == list(range(12))
    assert not any(entry["waiting"] for entry in facts["log"] if 0 < entry["frame"] < 23)
    # The sound is where the picture is: frame n is shown from n / fps on.
    apart = [entry["sound"] - entry["frame"] / 4 for entry in facts["log"] if entry["sound"] is not None]
    assert len(apart) > 10
    assert -0.1 < float(np.median(apart)) < 0.35
    assert facts["dropped"] <= 2


def test_sites_of_packages_play(package: Path, tmp_path: Path) -> None:
    """On any static host: the page of the package itself."""
    import functools
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(package))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        facts = _play(f"http://127.0.0.1:{http.server_address[1]}/", tmp_path, 30)
        http.shutdown()
    assert facts["problems"] == []
    assert facts["groups"] == list(range(12))


def test_a_manifest_cannot_lead_elsewhere(package: Path, tmp_path: Path) -> None:
    manifest = _manifest(package)
    bad: dict[str, Any] = {
        "other-origin": {"init": {**manifest["init"], "file": "https://example.com/init.splc"}},
        "protocol": {"init": {**manifest["init"], "file": "//example.com/init.splc"}},
        "outside": {"init": {**manifest["init"], "file": "../init.splc"}},
        "hidden": {"audio": [{**manifest["audio"][0], "file": ".x/a.wav"}]},
        "script": {"audio": [{**manifest["audio"][0], "file": "javascript:alert(1)"}]},
        "groups": {"groups": [[0, 2], [5, 2]]},
        "large": {"init": {**manifest["init"], "bytes": 1 << 40}},
        "renditions": {"renditions": manifest["renditions"] * 20},
        "version": {"version": 2},
        "fps": {"fps": [0, 1]},
        "format": {"format": "<script>alert(1)</script>"},
    }
    texts = {name: json.dumps({**manifest, **change}) for name, change in bad.items()}
    texts |= {"text": "[" * 100_000, "empty": "", "list": "[]", "null": "null"}
    (tmp_path / "manifests.json").write_text(json.dumps([{"name": k, "text": text} for k, text in texts.items()]))
    found = node("moving.mjs", "manifests", tmp_path / "manifests.json")
    assert len(found) == len(texts)
    for facts in found:
        assert facts["typed"], facts
        assert facts["code"] in ("format", "unsupported"), facts
        assert "manifest" in facts["message"], facts
        assert facts["asked"] == ["https://here.example/a/manifest.json"], facts
    # On the page too, where it is text and not markup.
    for name in ("other-origin", "format"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(texts[name])
    with serving(tmp_path) as url:
        found = browse("errors", *(url(f"/scenes/{name}/manifest.json") for name in ("other-origin", "format")))
    for facts in found:
        assert facts["phase"] == "failed"
        assert "manifest" in facts["text"]
        assert "<script" not in facts["html"]
        assert all(asked.startswith(("http://127.0.0.1", "data:")) for asked in facts["asked"])


def test_damaged_segments_are_gaps(package: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(package, site)
    for rendition in _manifest(site)["renditions"]:
        path = site / rendition["segments"][3]["file"]
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        (site / rendition["segments"][6]["file"]).unlink()
    with serving(site) as url:
        facts = _play(url("/scenes/manifest.json"), tmp_path, 40)
    assert facts["groups"] == [0, 1, 2, 4, 5, 7, 8, 9, 10, 11]
    assert any("group 3 (frames 6 to 7)" in notice for notice in facts["notices"])
    assert any("group 6 (frames 12 to 13)" in notice for notice in facts["notices"])


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


@pytest.fixture
def insecure_address() -> str:
    try:
        address = _own_address()
    except OSError:
        pytest.skip("this machine has no address but its own")
    if address.startswith("127."):
        pytest.skip("this machine has no address but its own")
    return address


def test_video_without_a_secure_context_is_explained(
    video_file: Path,  # noqa: F811
    motion_file: Path,  # noqa: F811
    insecure_address: str,
    tmp_path: Path,
) -> None:
    with serving(video_file, host="0.0.0.0") as url:
        address = re.sub(r"//[^/:]+", f"//{insecure_address}", url(f"/scenes/{video_file.name}"))
        (facts,) = browse("errors", address)
    assert facts["phase"] == "failed"
    assert "https" in facts["text"]
    assert "WebCodecs" in facts["text"]
    # Over TLS with a certificate of its own, once that is accepted, it plays.
    pytest.importorskip("cryptography", reason="the extra serve is not installed")
    with self_signed("0.0.0.0") as certificate, serving(video_file, host="0.0.0.0", certificate=certificate) as url:
        address = re.sub(r"//[^/:]+", f"//{insecure_address}", url(f"/scenes/{video_file.name}"))
        facts = _play(address, tmp_path, 30)
    assert address.startswith("https:")
    assert facts["groups"] == [0, 1]
    # A package that has the same frames without video is played in that quality.
    with api.open_moving(video_file) as scene:
        frames = list(scene)
    api.compress_sequence(frames, tmp_path / "m.splc", fps=24, group=4, effort=1, quality=40)
    package_sequence([video_file, tmp_path / "m.splc"], tmp_path / "site")
    with serving(tmp_path / "site", host="0.0.0.0") as url:
        address = re.sub(r"//[^/:]+", f"//{insecure_address}", url("/scenes/manifest.json"))
        facts = _play(address, tmp_path, 30)
    assert facts["groups"] == [0, 1]
    assert facts["clip"]["quality"] == "m"
    assert any("WebCodecs" in notice for notice in facts["notices"])


# --- the modules ------------------------------------------------------------------------------------------------------


def test_what_moving_scenes_add_is_small() -> None:
    if NODE is None or not (JS / "node_modules" / "esbuild").is_dir():
        _absent("esbuild (npm install in tests/js)")
    entries = [PLAYER / f"{name}.js" for name in ("page", "loader")]
    without = sum(facts["gzipped"] for facts in node("size.mjs", *entries, package="esbuild"))
    whole = sum(facts["gzipped"] for facts in node("size.mjs", "--later", *entries, package="esbuild"))
    assert 10_000 < whole - without <= MAX_MOVING_GZIPPED
