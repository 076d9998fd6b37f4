"""Levels of detail, tiles and layers of SH components: what a part of a file gives."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import splatcodec
from splatcodec.bitstream.container import Chunk, Container, Feature, write_container
from splatcodec.errors import ChecksumError, FormatError, ParameterError
from splatcodec.gaussians import Gaussians
from splatcodec.metrics.compare import compare
from splatcodec.preprocess.levels import (
    UNDER_LOOK,
    best_look,
    best_prefix_looks,
    display_ranks,
    joined,
    level_shares,
    scaled,
    thumbnail_count,
)
from splatcodec.preprocess.thumbnail import cluster, merged, thumbnail_of
from splatcodec.preprocess.thumbnail_fit import OVER_LOOK, _below, fitted
from splatcodec.render.camera import encoder_cameras
from splatcodec.render.contribution import contributions
from splatcodec.render.cpu import render
from splatcodec.sample import sample_scene
from splatcodec.static import encoder

GOLDEN = Path(__file__).resolve().parent.parent / "bitstreams" / "golden"


@pytest.fixture(scope="module")
def scene() -> Gaussians:
    return sample_scene(6000, seed=11)


@pytest.fixture(scope="module")
def payload(scene: Gaussians) -> bytes:
    return splatcodec.compress(scene, effort=3)


@pytest.fixture(scope="module")
def tiled(scene: Gaussians) -> bytes:
    """Several tiles, every Gaussian kept, with side arrays that name the Gaussians."""
    whole = encoder.cut_tiles
    numbered = scene.replaced(extras={"id": np.arange(len(scene), dtype=np.int32)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "cut_tiles", lambda means, rows: whole(means, rows, 1000))
        return splatcodec.compress(numbered, effort=1, prune=False)


def rechunked(payload: bytes, change: object) -> bytes:
    """The file with another list of chunks."""
    with Container(io.BytesIO(payload)) as container:
        chunks = [Chunk(e.type, container.read(e), e.critical, e.level, e.tile, e.count) for e in container.chunks]
        out = io.BytesIO()
        chunks = change(chunks)  # type: ignore[operator]
        write_container(out, chunks, num_gaussians=container.num_gaussians, features=[Feature("lossy-1")])
        return out.getvalue()


# ----------------------------------------------------------------------------------------------------------- encoder


def test_levels_are_nested_and_each_improves_the_picture(scene: Gaussians, payload: bytes) -> None:
    with splatcodec.open(payload) as file:
        levels = file.levels()
        assert [facts["level"] for facts in levels] == [0, 1, 2]
        assert levels[0]["end"] < 0.1 * len(payload)
        assert [facts["end"] for facts in levels] == sorted(facts["end"] for facts in levels)
        assert sum(facts["num_gaussians"] for facts in levels[1:]) == file.num_gaussians
        parts = [file.read(level=level) for level in (0, 1, 2)]
        whole = file.read()
    assert len(parts[0]) == levels[0]["num_gaussians"]
    for name in ("means", "quats", "scales", "opacities", "sh0", "shN"):
        assert np.array_equal(getattr(parts[2], name), getattr(whole, name))
    # A prefix has the thumbnail and the first Gaussians of the whole scene; only sizes and opacities are scaled.
    at = 0
    for before, first in ((parts[0], len(parts[0])), (whole, levels[1]["num_gaussians"])):
        shown = slice(at, at + first)
        assert np.array_equal(parts[1].means[shown], before.means[:first])
        assert np.array_equal(parts[1].sh0[shown], before.sh0[:first])
        assert np.ptp(parts[1].scales[shown] - before.scales[:first]) < 1e-4
        at += first
    assert at == len(parts[1])
    psnrs = [compare(scene, part, num_views=8, size_px=128).psnr_db for part in parts]
    assert psnrs[0] > 21
    assert psnrs[0] + 1 < psnrs[1]
    assert psnrs[1] + 5 < psnrs[2]


def test_no_level_has_holes(scene: Gaussians, payload: bytes) -> None:
    cameras = encoder_cameras(scene, num_views=6, size_px=128, seed=7)
    for level in (0, 1):
        part = splatcodec.decompress(payload, level=level)
        for camera in cameras:
            whole, shown = (render(g, camera).alpha.sum() for g in (scene, part))
            assert abs(shown - whole) < 0.1 * whole


def test_levels_cost_little(scene: Gaussians) -> None:
    sizes = [len(splatcodec.compress(scene, effort=1, levels=levels)) for levels in (False, True)]
    assert sizes[0] < sizes[1] < 1.08 * sizes[0]


def test_small_scenes_have_one_level() -> None:
    with splatcodec.open(splatcodec.compress(sample_scene(500), effort=1)) as file:
        assert [facts["level"] for facts in file.levels()] == [1]
        with pytest.raises(ParameterError, match="no thumbnail"):
            file.read(level=0)


def test_shares_and_counts() -> None:
    for count in (0, 1, 2047, 2048, 10**5, 10**6, 10**7):
        for sh_degree in (0, 3):
            shares = level_shares(count, sh_degree)
            assert shares[-1] == 1.0
            assert list(shares) == sorted(shares)
        assert 0 <= thumbnail_count(count, 0) <= max(count // 10, 0)
    assert thumbnail_count(10**7, 0) < 25_000


def test_ranks_are_an_order_that_serves_prefixes(scene: Gaussians) -> None:
    cameras = encoder_cameras(scene, num_views=12, size_px=96, seed=3)
    measured = contributions(scene, cameras, equalize=True)
    ranks = display_ranks(scene, measured, cameras)
    assert sorted(ranks) == list(range(len(scene)))
    first = scene.selected(ranks < 0.2 * len(scene))
    random = scene.selected(np.random.default_rng(0).permutation(len(scene))[: len(first)])
    views = encoder_cameras(scene, num_views=4, size_px=96, seed=9)
    assert compare(scene, first, cameras=views).psnr_db > compare(scene, random, cameras=views).psnr_db + 3


def test_look_closes_holes(scene: Gaussians) -> None:
    cameras = encoder_cameras(scene, num_views=4, size_px=96, seed=3)
    originals = [render(scene, camera) for camera in cameras]
    part = scene.selected(np.arange(0, len(scene), 6))
    grow, gain = best_look(part, cameras, originals)
    plain, shown = (compare(scene, g, cameras=cameras).psnr_db for g in (part, scaled(part, grow, gain)))
    assert shown >= plain
    assert grow > 0


def test_a_thumbnail_below_a_prefix_stands_for_what_is_missing(scene: Gaussians) -> None:
    cameras = encoder_cameras(scene, num_views=4, size_px=96, seed=3)
    originals = [render(scene, camera) for camera in cameras]
    part = scene.selected(np.arange(0, len(scene), 6))
    thumbnail = thumbnail_of(scene, np.ones(len(scene)), 300)
    own, under = best_prefix_looks(part, thumbnail, cameras, originals)
    both = joined(scaled(part, *own), scaled(thumbnail, *under))
    alone = scaled(part, *best_look(part, cameras, originals))
    views = encoder_cameras(scene, num_views=4, size_px=96, seed=9)
    assert compare(scene, both, cameras=views).psnr_db > compare(scene, alone, cameras=views).psnr_db + 1.0


def test_a_fitted_thumbnail_looks_more_like_the_scene_alone_and_below_a_prefix(scene: Gaussians) -> None:
    cameras = encoder_cameras(scene, num_views=24, size_px=96, seed=3)
    originals = [render(scene, camera) for camera in cameras]
    merged = thumbnail_of(scene, np.ones(len(scene)), 250)
    first = scene.selected(np.arange(0, len(scene), 7))
    better = [
        fitted(merged, first, cameras, originals, steps=120, share_under=0.5, num_threads=threads) for threads in (1, 3)
    ]
    for name in ("means", "quats", "scales", "opacities", "sh0", "shN"):
        assert np.array_equal(getattr(better[0], name), getattr(better[1], name))
    views = encoder_cameras(scene, num_views=6, size_px=96, seed=9)

    def psnrs(thumbnail: Gaussians) -> tuple[float, float]:
        both = joined(scaled(first, *OVER_LOOK), scaled(thumbnail, *UNDER_LOOK))
        return tuple(compare(scene, shown, cameras=views).psnr_db for shown in (thumbnail, both))

    before, after = psnrs(merged), psnrs(better[0])
    assert after[0] > before[0] + 0.8
    assert after[1] > before[1] + 0.3
    nothing = scene.selected(slice(0))
    assert len(fitted(nothing, first, cameras, originals, steps=3, share_under=0.5)) == 0
    assert fitted(merged, first, [], [], steps=3, share_under=0.5) is merged


def test_logits_below_a_prefix_have_the_derivatives_of_their_look() -> None:
    values = [np.zeros((5, 3), np.float32)] * 3 + [np.array([-3, -1, 0, 1, 3], np.float32)] + [np.zeros(0)] * 2
    below, slope = _below(values)
    step = np.float32(1e-2)
    moved, _ = _below([*values[:3], values[3] + step, *values[4:]])
    assert np.allclose((moved[3] - below[3]) / step, slope, rtol=0.02)
    shown = scaled(
        Gaussians(*(np.zeros((5, w), np.float32) for w in (3, 4, 3)), values[3], np.zeros((5, 1, 3))), *UNDER_LOOK
    )
    assert np.allclose(below[3], shown.opacities, atol=1e-5)
    assert np.allclose(below[2], shown.scales, atol=1e-6)


def test_merging_keeps_moments() -> None:
    rng = np.random.default_rng(4)
    n = 40
    scene = Gaussians(
        rng.normal(size=(n, 3)), rng.normal(size=(n, 4)), rng.normal(-2, 0.4, (n, 3)), rng.normal(size=n),
        rng.normal(size=(n, 1, 3)), rng.normal(size=(n, 3, 3)),
    )  # fmt: skip
    weights = rng.uniform(0.5, 2.0, n)
    one = merged(scene, weights, np.zeros(n, np.int64))
    share = weights / weights.sum()
    mean = share @ scene.means
    assert np.allclose(one.means[0], mean, atol=1e-5)
    assert np.allclose(one.sh0[0, 0], share @ scene.sh0[:, 0], atol=1e-5)
    assert np.allclose(one.shN[0], np.tensordot(share, scene.shN, 1), atol=1e-5)
    # Its variance is that of the members about the mean: at least the spread of their centres.
    spread = np.einsum("n,ni,nj->ij", share, scene.means - mean, scene.means - mean)
    assert np.exp(2 * one.scales[0].astype(float)).sum() > np.trace(spread)


def test_clusters_are_full_and_split_what_differs() -> None:
    rng = np.random.default_rng(1)
    near = rng.normal(size=(300, 3)) * 0.01
    features = np.concatenate([near + offset for offset in np.eye(3) * 5])
    labels = cluster(features, np.ones(900), 3)
    assert [len(set(labels[k : k + 300])) for k in (0, 300, 600)] == [1, 1, 1]
    assert len(set(labels)) == 3
    assert len(set(cluster(np.zeros((50, 3)), np.ones(50), 10))) == 1
    assert sorted(set(cluster(rng.normal(size=(50, 3)), np.ones(50), 100))) == list(range(50))
    assert len(thumbnail_of(sample_scene(300), np.zeros(300), 20)) == 20


# ----------------------------------------------------------------------------------------------------------- decoder


def test_tiles(tiled: bytes) -> None:
    with splatcodec.open(tiled) as file:
        whole = file.read()
        parts = [file.read(tile=tile) for tile in range(6)]
        assert np.array_equal(np.sort(np.concatenate([part.extras["id"] for part in parts])), np.arange(6000))
        rows = np.argsort(whole.extras["id"])
        for part in parts:
            same = rows[part.extras["id"]]
            assert np.array_equal(part.means, whole.means[same])
            assert np.array_equal(part.shN, whole.shN[same])
        two = file.read(tile=[1, 4], level=1)
        assert len(two) < len(parts[1]) + len(parts[4])
        with pytest.raises(ParameterError, match="no tile 6"):
            file.read(tile=6)


def test_region_reads_what_is_in_it_and_no_more_tiles_than_needed(tiled: bytes) -> None:
    with splatcodec.open(tiled) as file:
        whole = file.read()
        low, high = np.quantile(whole.means, [0.02, 0.2], axis=0)
        inside = ((whole.means >= low) & (whole.means <= high)).all(1)
        part = file.read(region=(low, high))
        assert 0 < len(part) == inside.sum()
        assert set(part.extras["id"]) == set(whole.extras["id"][inside])
        nothing = file.read(region=([1e6] * 3, [2e6] * 3))
        assert len(nothing) == 0
        with pytest.raises(ParameterError, match="region"):
            file.read(region=([1, 1, 1], [0, 0, 0]))


def test_max_gaussians(tiled: bytes) -> None:
    with splatcodec.open(tiled) as file:
        thumbnail = len(file.read(level=0))
        for most in (thumbnail, 600, 1500, 3000, 5999, 6000, 10**9):
            assert 0.4 * min(most, 6000) < len(file.read(max_gaussians=most)) <= most or most < 2000
            assert len(file.read(max_gaussians=most)) <= most
        assert len(file.read(max_gaussians=6000)) == 6000
        with pytest.raises(ParameterError, match="fewer than"):
            file.read(max_gaussians=5)


def test_sh_layers_and_degree(scene: Gaussians, payload: bytes) -> None:
    with splatcodec.open(payload) as file:
        whole = file.read()
        psnrs = []
        for layers in range(4):
            part = file.read(sh_layers=layers)
            assert part.sh_degree == 3
            assert np.array_equal(part.means, whole.means)
            psnrs.append(compare(scene, part, num_views=6, size_px=96).psnr_db)
        assert psnrs == sorted(psnrs)
        assert np.array_equal(part.shN, whole.shN)
        assert not file.read(sh_layers=0).shN.any()
        first = file.read(sh_degree=1)
        assert first.sh_degree == 1
        assert np.array_equal(first.shN, whole.shN[:, :3])
        assert file.read(sh_degree=0).shN.shape[1] == 0
        for wrong in ({"sh_layers": 4}, {"sh_degree": -1}, {"level": -1}, {"max_gaussians": 0}):
            with pytest.raises(ParameterError):
                file.read(**wrong)  # type: ignore[arg-type]


def test_lossless_files_have_no_parts() -> None:
    payload = splatcodec.compress(sample_scene(50), lossless=True)
    with pytest.raises(ParameterError, match="lossless"):
        splatcodec.decompress(payload, level=1)
    assert splatcodec.decompress(payload, sh_degree=1).sh_degree == 1


def test_damaged_chunks_are_named_and_the_rest_comes_on_request(tiled: bytes) -> None:
    with splatcodec.open(tiled) as file:
        entries = file.container.of_type("TILE") + file.container.of_type("SHC2")
        whole = file.read()
    for entry in entries[8:20:3]:
        damaged = bytearray(tiled)
        damaged[entry.offset + entry.length // 2] ^= 0x10
        with pytest.raises(ChecksumError, match=rf"chunk {entry.type}\[{entry.level}/{entry.tile}\]"):
            splatcodec.decompress(bytes(damaged))
        report: list[str] = []
        rest = splatcodec.decompress(bytes(damaged), keep_going=True, damage=report)
        assert len(report) == 1
        assert f"{entry.type}[{entry.level}/{entry.tile}]" in report[0]
        if entry.type == "TILE":
            assert len(rest) == len(whole) - entry.count
            kept = np.isin(whole.extras["id"], rest.extras["id"])
            assert np.array_equal(whole.means[kept], rest.means)
        else:  # positions and base colours are still good
            assert np.array_equal(whole.sh0, rest.sh0)
            assert (whole.shN != rest.shN).any(axis=(1, 2)).sum() <= entry.count


def test_damage_that_checksums_do_not_see(payload: bytes) -> None:
    """Chunks whose bytes are wrong but whose checksums are right, as a faulty writer makes them."""

    def halved(kind: str) -> bytes:
        return rechunked(
            payload,
            lambda chunks: [
                Chunk(c.type, c.payload[: len(c.payload) // 2], c.critical, c.level, c.tile, c.count)
                if c.type == kind and c.level == 2
                else c
                for c in chunks
            ],
        )

    for kind in ("TILE", "SHC1", "SHC3"):
        with pytest.raises(FormatError, match=rf"chunk {kind}\[2/0\]: byte \d+"):
            splatcodec.decompress(halved(kind))
        report: list[str] = []
        rest = splatcodec.decompress(halved(kind), keep_going=True, damage=report)
        assert len(report) == 1
        assert len(rest) > 0


def test_chunks_that_do_not_belong_together(payload: bytes) -> None:
    def changed(kind: str, **facts: int) -> bytes:
        return rechunked(
            payload,
            lambda chunks: [Chunk(**{**vars(c), **facts}) if c.type == kind and c.level == 2 else c for c in chunks],
        )

    for wrong in (
        changed("SHC1", count=7),
        changed("SHC1", tile=1),
        changed("SHC1", level=1),
        changed("TILE", level=1),
        changed("TILE", level=0),
        rechunked(payload, lambda chunks: [*chunks, *(c for c in chunks if c.type == "TILE")]),
        rechunked(payload, lambda chunks: [c for c in chunks if c.type != "TILE"]),
    ):
        with pytest.raises(FormatError):
            splatcodec.decompress(wrong)
    # A layer may be absent: its components are then zero.
    fewer = splatcodec.decompress(rechunked(payload, lambda chunks: [c for c in chunks if c.type != "SHC3"]))
    assert np.array_equal(fewer.shN, splatcodec.decompress(payload, sh_layers=2).shN)


@pytest.mark.parametrize("case", ["lossy-levels-sh0", "lossy-levels-sh3", "lossy-levels-mixing"])
def test_golden_prefixes(case: str) -> None:
    stream = (GOLDEN / case / "stream.splc").read_bytes()
    with splatcodec.open(stream) as file:
        whole = file.read()
        counts = [facts["num_gaussians"] for facts in file.levels()]
        for level in range(1, len(counts)):
            part = file.read(level=level)
            count = sum(counts[1 : level + 1])
            below = len(part) - count  # of the thumbnail, as long as a tile is not whole
            assert 0 < below <= counts[0] if level < len(counts) - 1 else below == 0
            assert np.array_equal(part.means[below:], whole.means[:count])
        assert len(file.read(level=0)) == counts[0]
