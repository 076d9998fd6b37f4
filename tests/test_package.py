"""Moving scenes as segments: what is in the folder is what the manifest says, and plays."""

from __future__ import annotations

import base64
import hashlib
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splatcodec import api
from splatcodec.bitstream.container import Container
from splatcodec.cli.main import main
from splatcodec.errors import FormatError, ParameterError
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.compare import compare
from splatcodec.sample import sample_scene
from splatcodec.sequence.scene import MovingScene
from splatcodec.streaming.package import package_sequence

OPTIONS: dict[str, Any] = {"effort": 1, "group": 4, "keep": 2}


class Moving:
    """A scene most of which rests, while a tenth travels: groups can share what stays."""

    def __init__(self, count: int = 900) -> None:
        self.scene = sample_scene(count).with_sh_degree(1)

    def frame(self, number: int) -> Gaussians:
        means = self.scene.means.copy()
        means[::10, 0] += 0.02 * number
        return self.scene.replaced(means=means)

    def frames(self, count: int = 14) -> Iterator[Gaussians]:
        return (self.frame(number) for number in range(count))


@pytest.fixture(scope="module")
def moving() -> Moving:
    return Moving()


@pytest.fixture(scope="module")
def coded(moving: Moving, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("moving") / "scene one.splc"
    api.compress_sequence(moving.frames(), path, fps=24, quality=60, **OPTIONS)
    return path


@pytest.fixture(scope="module")
def site(coded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    package_sequence(coded, folder, effort=1)
    return folder


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def checked(folder: Path, entry: dict[str, Any]) -> bytes:
    """A file that the manifest names, if it is what it says."""
    assert not entry["file"].startswith(("/", "."))
    assert ":" not in entry["file"]
    content = (folder / entry["file"]).read_bytes()
    assert len(content) == entry["bytes"]
    assert entry["integrity"] == "sha256-" + base64.b64encode(hashlib.sha256(content).digest()).decode()
    return content


def joined(folder: Path, rendition: dict[str, Any]) -> MovingScene:
    """Head and segments of a rendition as one file."""
    head = checked(folder, manifest_of(folder)["init"])
    return api.open_moving(head + b"".join(checked(folder, segment) for segment in rendition["segments"]))


def test_segments_joined_are_the_file(site: Path, coded: Path) -> None:
    manifest = manifest_of(site)
    assert (manifest["format"], manifest["version"], manifest["complete"]) == ("splatcodec-segments", 1, True)
    assert manifest["fps"] == [24, 1]
    assert manifest["num_frames"] == 14
    assert manifest["groups"] == [[0, 4], [4, 4], [8, 4], [12, 2]]
    best = manifest["renditions"][0]
    assert best["id"] == "scene-one"
    assert best["profile"] == "motion"
    assert best["video"] == []
    assert best["bytes"] == sum(segment["bytes"] for segment in best["segments"])
    assert best["seek_bitrate"] >= best["peak_bitrate"] >= best["bitrate"] > 0
    with joined(site, best) as again, api.open_moving(coded) as scene:
        assert len(again) == len(scene)
        assert not again.complete
        assert not again.damage
        for number in (0, 5, 13):
            np.testing.assert_array_equal(again[number].means, scene[number].means)


def test_half_is_half_and_looks_like_it(site: Path, moving: Moving) -> None:
    best, half = manifest_of(site)["renditions"]
    assert half["id"] == "half"
    assert 0 < half["bytes"] <= best["bytes"] * 0.5
    with joined(site, half) as scene:
        assert [[g.first_frame, g.num_frames] for g in scene.groups] == manifest_of(site)["groups"]
        frame = scene[9]
    assert compare(moving.frame(9), frame, num_views=3, size_px=96).psnr_db > 25


def test_a_scene_is_carried_where_the_manifest_says(site: Path) -> None:
    for rendition in manifest_of(site)["renditions"]:
        segments = rendition["segments"]
        users = [k for k, segment in enumerate(segments) if segment["scene"] != k]
        assert users, "the test wants a group that uses another's scene"
        for k in users:
            carrier = segments[segments[k]["scene"]]
            assert carrier["scene"] == segments[k]["scene"]
            assert 0 < carrier["scene_bytes"] < carrier["bytes"]
            # Those bytes are enough: with the rest blank the group that uses them decodes to the same.
            contents = [checked(site, segment) for segment in segments]
            head = checked(site, manifest_of(site)["init"])
            with api.open_moving(head + b"".join(contents)) as scene:
                number = scene.groups[k].first_frame
                expected = scene[number]
            at = segments[k]["scene"]
            contents[at] = contents[at][: carrier["scene_bytes"]].ljust(carrier["bytes"], b"\0")
            with api.open_moving(head + b"".join(contents)) as scene:
                np.testing.assert_array_equal(scene[number].means, expected.means)


def test_the_page_is_there_and_names_the_manifest(site: Path) -> None:
    assert '<meta name="splatcodec-src" content="manifest.json" />' in (site / "index.html").read_text()
    assert (site / "player" / "player.js").is_file()
    headers = (site / "_headers").read_text()
    assert "/half/*\n  Cache-Control: max-age=31536000, immutable" in headers
    assert "/manifest.json\n  Cache-Control: no-cache" in headers


def test_frames_become_a_rendition_a_quality(moving: Moving, tmp_path: Path) -> None:
    report = package_sequence(
        moving.frames(), tmp_path / "site", qualities=[30, 60], fps="30000/1001", page=False, **OPTIONS
    )
    manifest = manifest_of(tmp_path / "site")
    assert manifest == report.manifest
    assert manifest["fps"] == [30000, 1001]
    assert [(r["id"], r["quality"]) for r in manifest["renditions"]] == [("q60", 60), ("q30", 30)]
    assert not (tmp_path / "site" / "index.html").exists()
    assert {
        p.relative_to(tmp_path / "site").as_posix() for p in (tmp_path / "site").rglob("*.*") if p.is_file()
    } == set(report.files)
    for rendition in manifest["renditions"]:
        with joined(tmp_path / "site", rendition) as scene:
            assert scene[13].num_gaussians > 0
    assert not [p for p in tmp_path.iterdir() if p.name != "site"], "work files are left behind"


def test_files_that_cannot_stand_for_each_other_are_refused(coded: Path, moving: Moving, tmp_path: Path) -> None:
    other = tmp_path / "other.splc"
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"group": 3}, 14, "group 0 has frames 0 to 2.*same --group"),
        ({"fps": 25}, 14, "25 frames a second"),
        ({}, 8, "8 frames"),
    ]
    for changed, frames, said in cases:
        settings = {**OPTIONS, "fps": 24, "quality": 20, **changed}
        api.compress_sequence(moving.frames(frames), other, overwrite=True, **settings)
        with pytest.raises(ParameterError, match=said.split(".*")[0]) as told:
            package_sequence([coded, other], tmp_path / "site")
        assert all(part in str(told.value) for part in said.split(".*"))
        assert not (tmp_path / "site").exists()
    with pytest.raises(ParameterError, match="not both"):
        package_sequence([coded, tmp_path], tmp_path / "site")


def test_damage_is_refused_and_a_cut_is_said(coded: Path, tmp_path: Path) -> None:
    whole = coded.read_bytes()
    with api.open_moving(coded) as scene:
        entry, last = scene.groups[1], scene.groups[-1]
    hurt = bytearray(whole)
    hurt[entry.offset + entry.length - 5] ^= 255
    (tmp_path / "hurt.splc").write_bytes(bytes(hurt))
    with pytest.raises(FormatError, match="checksum"):
        package_sequence(tmp_path / "hurt.splc", tmp_path / "site", qualities=[])
    assert not (tmp_path / "site").exists()
    (tmp_path / "cut.splc").write_bytes(whole[: last.offset + 30])
    report = package_sequence(tmp_path / "cut.splc", tmp_path / "site", qualities=[])
    assert report.manifest["num_frames"] == 12
    assert report.manifest["complete"] is False
    assert "cut off" in report.notes[0]
    # Recording went on: the same folder grows, and segments that are there stay what they were.
    before = [segment["file"] for segment in report.manifest["renditions"][0]["segments"]]
    (tmp_path / "cut.splc").write_bytes(whole)
    report = package_sequence(tmp_path / "cut.splc", tmp_path / "site", qualities=[], overwrite=True)
    assert [segment["file"] for segment in report.manifest["renditions"][0]["segments"]][:3] == before
    assert report.manifest["complete"] is True


def test_command(coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with wave.open(str(tmp_path / "tone.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(np.zeros(4000, np.int16).tobytes())
    site = tmp_path / "site"

    def run(*arguments: Any) -> tuple[int, str]:
        code = main(["package", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, text = run(
        coded, site, "--qualities", "25", "--effort", 1, "--audio", tmp_path / "tone.wav", "--json", "--quiet"
    )
    assert code == 0
    manifest = json.loads(text)["manifest"]
    (track,) = manifest["audio"]
    assert (track["type"], track["duration_s"]) == ("audio/wav", 0.5)
    assert checked(site, track) == (tmp_path / "tone.wav").read_bytes()
    assert [rendition["id"] for rendition in manifest["renditions"]] == ["scene-one", "q25"]
    assert not json.loads(text)["notes"]
    code, text = run(coded, site)
    assert code == 2
    assert "exists" in text
    (tmp_path / "text.mp3").write_text("no sound")
    for name, said in (("text.mp3", "not an audio file"), ("tone.aiff", "do not play"), ("gone.mp3", "")):
        code, text = run(coded, tmp_path / "b", "--qualities", "none", "--audio", tmp_path / name)
        assert code in (2, 3, 4), (name, text)
        assert said in text
        assert not (tmp_path / "b").exists()
    still = tmp_path / "still.splc"
    api.compress_file(sample_scene(200), still)
    assert run(still, tmp_path / "c", "--qualities", "30")[0] == 2
    assert run(still, coded, tmp_path / "c")[0] == 2
    assert run(coded, tmp_path / "c", "--fps", 30)[0] == 2
    assert run(tmp_path / "nothing.splc", tmp_path / "c")[0] != 0


def test_video_renditions_say_their_codec(moving: Moving, tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "v.splc"
    rng = np.random.default_rng(1)
    noisy = [f.replaced(sh0=f.sh0 + rng.normal(0, 0.1, f.sh0.shape).astype(np.float32)) for f in moving.frames(4)]
    api.compress_sequence(noisy, path, group=4, effort=1, quality=40, profile="video")
    report = package_sequence(path, tmp_path / "site", qualities=[], page=False)
    (rendition,) = report.manifest["renditions"]
    assert rendition["profile"] == "video"
    assert "video-1" in rendition["features"]
    with Container.open(tmp_path / "site" / rendition["segments"][0]["file"]) as container:
        from splatcodec.sequence.video import stored_video

        stream = stored_video(container)
    assert stream is not None
    assert rendition["video"][0]["codec"] == stream.codec_string
    assert stream.codec_string.startswith("avc1.64")
    assert rendition["video"][0]["width"] == stream.width
