"""Learned parts of a file: vector-quantized attributes and colour fields, alone, in files, and damaged."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec import api
from splatcodec.bitstream.container import Chunk, Container, Feature, write_container
from splatcodec.errors import FormatError, ParameterError, SplatCodecError
from splatcodec.gaussians import Gaussians
from splatcodec.preprocess.codebooks import entries_for, fit_codebooks, nearest, residual_labels
from splatcodec.preprocess.significance import global_significance
from splatcodec.render.camera import encoder_cameras
from splatcodec.sample import sample_scene
from splatcodec.stages.neural_color import ColourField, GridShape, corners
from splatcodec.stages.vector_quantize import ATTRIBUTES, VectorQuantized, dimensions
from splatcodec.static.learned import LearnedParts
from splatcodec.static.learned_encoder import encode_learned
from splatcodec.streaming.pages import check_playable


def quantized(attribute, values, stages, entries, step=1 / 64, rows=None):
    """A part of the values (N, D), of all rows or of some."""
    chosen = np.asarray(values, np.float32) if rows is None else np.asarray(values, np.float32)[rows]
    integers = np.rint(fit_codebooks(chosen, stages, entries) / step).astype(np.int32)
    labels = residual_labels(chosen, (integers * step).astype(np.float32))
    return VectorQuantized(attribute, integers, step, labels, rows)


def some_field(sh_degree=3, hidden=2, levels=4, log2=7, seed=0, scale=3):
    """A field of random integers, mostly small ones."""
    random = np.random.default_rng(seed)
    shape = GridShape(levels, 2, log2, 3, 1.75, (0.25, 0.0, -0.5), 1.5)
    sizes = [2 * levels, *[8] * hidden, 3 * (sh_degree + 1) ** 2]
    draw = lambda *size: random.integers(-scale, scale + 1, size).astype(np.int32)  # noqa: E731
    return ColourField(
        shape,
        draw(sum(shape.entries()), 2),
        np.full(levels, 0.125, np.float32),
        [draw(b, a) for a, b in itertools.pairwise(sizes)],
        [draw(b) for b in sizes[1:]],
        np.full(hidden + 1, 0.0625, np.float32),
    )


def scene_with(parts, scene):
    """How the scene looks with the parts."""
    base = scene.replaced(sh0=0 * scene.sh0, shN=0 * scene.shN) if parts.field is not None else scene
    return parts.applied(base)


# --- codebooks ---


def test_more_stages_and_entries_come_nearer():
    values = np.random.default_rng(0).normal(size=(800, 3)).astype(np.float32)

    def error(stages, entries):
        books = fit_codebooks(values, stages, entries)
        labels = residual_labels(values, books)
        return float(((values - sum(book[labels[:, k]] for k, book in enumerate(books))) ** 2).mean())

    found = [error(1, 8), error(1, 64), error(2, 16), error(4, 16)]
    assert found[0] > 2 * found[1]
    assert found[0] > 2 * found[2] > 4 * found[3]
    assert np.array_equal(fit_codebooks(values, 2, 16), fit_codebooks(values, 2, 16))


def test_fewer_rows_than_entries_are_kept_exactly():
    values = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    books = fit_codebooks(values, 2, 64)
    assert books.shape == (2, 5, 4)
    (first, second), labels = books, residual_labels(values, books)
    assert np.allclose(first[labels[:, 0]] + second[labels[:, 1]], values, atol=1e-6)
    assert (fit_codebooks(np.ones((9, 2)), 1, 4)[0] == 1).all()  # all rows the same
    with pytest.raises(ParameterError, match="no finite values"):
        fit_codebooks(np.zeros((0, 3)), 1, 4)
    with pytest.raises(ParameterError, match="no finite values"):
        fit_codebooks(np.full((3, 3), np.nan), 1, 4)
    with pytest.raises(ParameterError, match="9 stages"):
        fit_codebooks(values, 9, 4)


def test_heavy_rows_are_nearer_to_an_entry():
    values = np.random.default_rng(2).normal(size=(2000, 2)).astype(np.float32)
    heavy = np.where(values[:, 0] > 1, 100.0, 1.0)

    def error(weights):
        (book,) = fit_codebooks(values, 1, 8, weights=weights)
        return float(((values - book[nearest(values, book)]) ** 2)[heavy > 1].mean())

    assert error(heavy) < 0.5 * error(None)


def test_codebooks_grow_with_the_scene():
    assert [entries_for(n, 64) for n in (0, 1, 31, 32, 63, 64, 2048, 10**6)] == [1, 1, 1, 1, 1, 2, 64, 64]


# --- chunks ---


@given(
    attribute=st.sampled_from(ATTRIBUTES),
    count=st.integers(1, 40),
    more=st.integers(0, 9),
    stages=st.integers(1, 8),
    entries=st.integers(1, 40),
    sh_degree=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_vector_chunks_come_back(attribute, count, more, stages, entries, sh_degree, seed):
    random = np.random.default_rng(seed)
    coefficients = (sh_degree + 1) ** 2
    entries = min(entries, count)
    books = random.integers(-300, 300, (stages, entries, dimensions(attribute, coefficients))).astype(np.int32)
    books[0, 0, 0] = 1 << 20
    labels = random.integers(0, entries, (count, stages)).astype(np.int32)
    rows = None
    if more:
        rows = np.zeros(count + more, bool)
        rows[random.permutation(count + more)[:count]] = True
    part = VectorQuantized(attribute, books, 0.25, labels, rows)
    back = VectorQuantized.from_bytes(part.to_bytes(), count, count + more, coefficients)
    assert (back.attribute, back.step) == (attribute, 0.25)
    assert np.array_equal(back.codebooks, books)
    assert np.array_equal(back.labels, labels)
    assert (back.rows is None) == (rows is None)
    assert rows is None or np.array_equal(back.rows, rows)
    assert np.isfinite(back.values()).all()


@pytest.mark.parametrize("hidden", [0, 1, 3])
@pytest.mark.parametrize("sh_degree", [0, 3])
def test_field_chunks_come_back(hidden, sh_degree):
    field = some_field(sh_degree, hidden, seed=hidden)
    back = ColourField.from_bytes(field.to_bytes(), (sh_degree + 1) ** 2)
    assert back.shape == field.shape
    for a, b in zip(
        [field.table, *field.weights, *field.biases], [back.table, *back.weights, *back.biases], strict=True
    ):
        assert np.array_equal(a, b)
    means = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    assert np.array_equal(field.colours(means), back.colours(means))


def plain_colours(field, mean):
    """SPEC.md, section 8.2, sentence by sentence, for one Gaussian."""
    shape = field.shape
    d = [(float(mean[a]) - shape.centre[a]) / shape.radius for a in range(3)]
    n = (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]) ** 0.5
    if n > 1:
        d = [value * ((2 - 1 / n) / n) for value in d]
    u = [min(max(value * 0.25 + 0.5, 0.0), 1.0) for value in d]
    x, r, start, most = [], float(shape.resolution), 0, 1 << shape.log2_entries
    for level in range(shape.levels):
        cells = min(int(r), 1 << 20)
        at = [value * cells for value in u]
        i = [min(int(value), cells - 1) for value in at]
        t = [a - b for a, b in zip(at, i, strict=True)]
        total = [0.0] * shape.features
        for k in range(8):
            bits = [k & 1, k >> 1 & 1, k >> 2]
            weight = 1.0
            for bit, part in zip(bits, t, strict=True):
                weight = weight * (part if bit else 1 - part)
            j = [a + b for a, b in zip(i, bits, strict=True)]
            if (cells + 1) ** 3 <= most:
                entry = j[0] + (cells + 1) * (j[1] + (cells + 1) * j[2])
            else:
                entry = (j[0] ^ (j[1] * 2654435761 & 0xFFFFFFFF) ^ (j[2] * 805459861 & 0xFFFFFFFF)) % most
            for f in range(shape.features):
                total[f] += weight * int(field.table[start + entry, f])
        x += [value * float(field.table_steps[level]) for value in total]
        start += min((cells + 1) ** 3, most)
        r = r * shape.growth
    last = len(field.weights) - 1
    for layer, (weights, biases) in enumerate(zip(field.weights, field.biases, strict=True)):
        y = []
        for row, bias in zip(weights, biases, strict=True):
            total = float(bias)
            for w, value in zip(row, x, strict=True):
                total += float(w) * value
            y.append(total * float(field.layer_steps[layer]))
        x = y if layer == last else [max(value, 0.0) for value in y]
    return np.array(x).reshape(-1, 3)


@pytest.mark.parametrize("log2", [4, 9])
def test_colours_are_their_definition_to_the_bit(log2):
    field = some_field(2, 2, levels=5, log2=log2, scale=40)
    means = np.random.default_rng(3).normal(0, 2, (30, 3)).astype(np.float32)
    means[0], means[1], means[2] = field.shape.centre, 1e30, [-1e30, 1e30, 0]
    found = field.colours(means)
    for row, mean in zip(found, means, strict=True):
        assert np.array_equal(row, plain_colours(field, mean))


def test_corners_stay_in_their_tables():
    shape = GridShape(16, 1, 4, 4096, 4.0, (0.0, 0.0, 0.0), 1e-20)
    means = np.array([[0, 0, 0], [3e38, -3e38, 3e38], [1e-20, 0, 0], [-1, -1, -1]], np.float32)
    index, weight = corners(means, shape)
    ends = np.cumsum(shape.entries())
    assert (index >= (ends - shape.entries())[None, :, None]).all()
    assert (index < ends[None, :, None]).all()
    assert np.allclose(weight.sum(2), 1.0)


def test_entries_that_are_not_needed_cost_little():
    field = some_field(log2=12, levels=6)
    sparse = ColourField(
        field.shape, np.where(np.arange(len(field.table))[:, None] % 50 == 0, field.table, 0), field.table_steps,
        field.weights, field.biases, field.layer_steps,
    )  # fmt: skip
    assert len(sparse.to_bytes()) < 0.25 * len(field.to_bytes())


def damaged(payload, count, seed):
    random = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(payload)
        for _ in range(random.integers(1, 4)):
            at = random.integers(0, len(data) if random.random() < 0.5 else min(len(data), 60))
            data[at] = random.integers(0, 256)
        yield bytes(data[: random.integers(0, len(data))] if random.random() < 0.1 else data)


def test_damaged_chunks_are_parts_or_errors():
    values = sample_scene(60).scales
    part = quantized("scales", values, 3, 16, rows=np.arange(60) % 3 > 0)
    outcomes = {"read": 0, "refused": 0}
    for data in damaged(part.to_bytes(), 600, 0):
        try:
            assert np.isfinite(VectorQuantized.from_bytes(data, 40, 60, 16).values()).all()
            outcomes["read"] += 1
        except FormatError:
            outcomes["refused"] += 1
    field = some_field(1, 1)
    means = sample_scene(20).means
    for data in damaged(field.to_bytes(), 600, 1):
        try:
            assert np.isfinite(ColourField.from_bytes(data, 4).colours(means)).all()
            outcomes["read"] += 1
        except FormatError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


# --- files ---


@pytest.fixture(scope="module")
def scene():
    """Gaussians a quarter apart, so that each is found again after decoding."""
    random = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(7)] * 3, indexing="ij"), -1).reshape(-1, 3) * 0.25 - 0.75
    return sample_scene(len(places)).replaced(
        means=places + random.uniform(-0.05, 0.05, places.shape), scales=random.normal(-2.4, 0.3, places.shape)
    )


def parts_of(scene, kind):
    quats = scene.normalized_quats()
    colours = np.concatenate([scene.sh0, scene.shN], 1).reshape(len(scene), -1)
    vectors = [quantized("scales", scene.scales, 4, 16), quantized("quats", quats, 4, 16)]
    if kind == "geometry and field":
        return LearnedParts(vectors, some_field())
    if kind == "some colours":
        return LearnedParts([quantized("colours", colours, 1, 32, rows=np.arange(len(scene)) % 5 < 3)])
    return LearnedParts([], some_field(hidden=1))


@pytest.mark.parametrize("kind", ["geometry and field", "some colours", "field"])
def test_files_with_learned_parts(scene, kind, tmp_path):
    parts = parts_of(scene, kind)
    looks = scene_with(parts, scene)
    payload = encode_learned(looks, parts, wanted_psnr_db=44, threads=2)
    assert payload == encode_learned(looks, parts, wanted_psnr_db=44, threads=1)
    path = tmp_path / "archive.splc"
    path.write_bytes(payload)
    decoded = api.read(path)
    assert len(decoded) == len(scene)
    assert api.verify(path, full=True)["features"] == ["lossy-1", *[f.name for f in parts.features()]]
    order = nearest(decoded.means, looks.means)
    assert (np.sort(order) == np.arange(len(scene))).all()
    assert np.abs(decoded.means - looks.means[order]).max() < 0.05
    if kind == "geometry and field":
        assert np.array_equal(decoded.scales, looks.scales[order])
        assert np.array_equal(decoded.quats, looks.quats[order])
    if parts.field is not None:
        exact = parts.field.colours(decoded.means).astype(np.float32)
        assert np.array_equal(np.concatenate([decoded.sh0, decoded.shN], 1), exact)
    else:
        rows = parts.vectors[0].rows[order]
        assert np.array_equal(decoded.shN[rows], looks.shN[order][rows])
        assert not np.array_equal(decoded.shN[~rows], looks.shN[order][~rows])
    # A part of the file is that part of the scene.
    low, high = [-9, -9, -9], [0.0, 9, 9]
    inside = (decoded.means[:, 0] <= 0) & (np.abs(decoded.means) <= 9).all(1)
    some = api.decompress(payload, region=(low, high))
    assert np.array_equal(some.shN, decoded.selected(inside).shN)
    assert np.array_equal(some.quats, decoded.selected(inside).quats)
    with api.open(payload) as opened:
        assert opened.blocks() is None
    # Archive files become delivery files.
    with pytest.raises(SplatCodecError, match="-1"):
        check_playable(path)
    done = subprocess.run(
        [sys.executable, "-m", "splatcodec", "convert", str(path), str(tmp_path / "delivery.splc")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert check_playable(tmp_path / "delivery.splc")["num_gaussians"] <= len(scene)


def test_small_scenes():
    for count, sh_degree in ((1, 0), (3, 1), (0, 0)):
        scene = sample_scene(5).selected(slice(0, count)).with_sh_degree(sh_degree)
        vectors = [quantized("scales", scene.scales, 6, 64), quantized("quats", scene.quats, 6, 64)] if count else []
        parts = LearnedParts(vectors, some_field(sh_degree))
        decoded = api.decompress(encode_learned(scene_with(parts, scene), parts, wanted_psnr_db=44))
        assert len(decoded) == count
        assert decoded.sh_degree == sh_degree


def test_parts_follow_a_choice_of_rows(scene):
    parts = parts_of(scene, "some colours")
    order = np.random.default_rng(5).permutation(len(scene))[:37]
    chosen = parts.selected(order)
    assert chosen.vectors[0].codebooks.shape[1] <= len(chosen.vectors[0].labels)
    assert np.array_equal(chosen.applied(scene.selected(order)).shN, parts.applied(scene).selected(order).shN)
    none = np.flatnonzero(~parts.vectors[0].rows)
    assert not parts.selected(none).vectors


def rewritten(payload, change):
    """A file with other chunks and features, checksums made anew."""
    container = Container(io.BytesIO(payload))
    chunks = [
        Chunk(e.type, container.read(e), critical=e.critical, level=e.level, tile=e.tile, count=e.count)
        for e in container.chunks
    ]
    features = [Feature(f.name) for f in container.features]
    chunks, features = change(chunks, features)
    file = io.BytesIO()
    write_container(file, chunks, num_gaussians=container.num_gaussians, features=features)
    return file.getvalue()


def test_files_that_contradict_themselves(scene):
    parts = parts_of(scene, "geometry and field")
    payload = encode_learned(scene_with(parts, scene), parts, wanted_psnr_db=40)
    vector = next(chunk for chunk in parts.chunks() if chunk.type == "VECQ")
    for change in (
        lambda chunks, features: ([*chunks, vector], features),  # scales twice
        lambda chunks, features: ([c for c in chunks if c.type != "VECQ"], features),
        lambda chunks, features: ([c for c in chunks if c.type != "NCOL"], features),
        lambda chunks, features: ([*chunks, chunks[-1]], features),  # two fields
        lambda chunks, features: (chunks, [f for f in features if f.name != "vector-1"]),
        lambda chunks, features: (chunks, [f for f in features if f.name != "neural-1"]),
        lambda chunks, features: (
            [Chunk(c.type, c.payload, c.critical, 2 if c.type == "TILE" else c.level, c.tile, c.count) for c in chunks],
            features,
        ),
    ):
        with pytest.raises(FormatError):
            api.decompress(rewritten(payload, change))


def test_significance_is_what_shows(scene):
    cameras = encoder_cameras(scene, num_views=6, size_px=64)
    found = global_significance(scene, cameras)
    assert found.shape == (len(scene),)
    assert (found >= 0).all()
    faint = scene.replaced(opacities=np.where(np.arange(len(scene)) == 7, -20.0, scene.opacities))
    assert global_significance(faint, cameras)[7] == 0
    flat = global_significance(scene, cameras, volume_power=0.0)
    assert (flat >= found).all()
    assert len(global_significance(Gaussians.empty(0), cameras)) == 0
