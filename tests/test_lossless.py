"""Lossless columns: every bit comes back, damage is an error, and what is regular in the columns is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec.entropy.tables import ALPHABET
from splatcodec.errors import FormatError, LimitExceededError, ParameterError, TruncatedError
from splatcodec.limits import Limits
from splatcodec.stages.lossless import (
    BLOCK_ROWS,
    block_counts,
    decode_columns,
    encode_columns,
    read_specs,
    spatial_order,
)
from splatcodec.stages.lossless_blocks import file_links, model_block, pack_block, spatial_links
from splatcodec.stages.lossless_fit import fit_plan
from splatcodec.stages.lossless_kernels import CLASSES
from splatcodec.stages.lossless_plan import CONSTANT, COPY, DICTIONARY, PLAIN, ColumnSpec, read_plan, write_plan

INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
DTYPES = [np.dtype(order + code) for order in "<>" for code in (*INTEGERS, "f4", "f8")]
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "static"
SPECIAL_F4 = np.array(
    [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 0x7F800001, 1, 0x807FFFFF, 0x3F800000, 0x7F7FFFFF],
    np.uint32,
)
SPECIAL_F8 = np.array(
    [0, 1 << 63, 0x7FF << 52, 0xFFF << 52, 0x7FF8000000000001, (1 << 64) - 1, 0x7FF0000000000001, 1, (1 << 52) - 1],
    np.uint64,
)


def size_of(encoded: tuple[bytes, list[bytes]]) -> int:
    return len(encoded[0]) + sum(map(len, encoded[1]))


def round_trip(columns: dict[str, np.ndarray], block_rows: int = BLOCK_ROWS, threads: int = 1) -> int:
    """Check that the columns come back and return their coded size."""
    encoded = encode_columns(columns, block_rows, threads)
    rows = len(next(iter(columns.values()), ()))
    decoded = decode_columns(*encoded, block_counts(rows, block_rows), threads)
    assert list(decoded) == list(columns)
    for name, values in columns.items():
        assert decoded[name].dtype == values.dtype
        assert decoded[name].tobytes() == values.tobytes(), name
    return size_of(encoded)


def random_columns(rng: np.random.Generator, dtype: np.dtype, rows: int) -> dict[str, np.ndarray]:
    """Columns of one dtype: noise, smooth, constant, copied, few values, mostly zero, ascending, special."""
    size = dtype.itemsize
    noise = np.frombuffer(rng.bytes(rows * size), dtype)
    smooth = rng.standard_normal(rows) * 40
    few = np.frombuffer(rng.bytes(9 * size), dtype)
    columns = {
        "noise": noise,
        "smooth": smooth.astype(dtype) if dtype.kind == "f" else smooth.astype(np.int64).astype(dtype),
        "constant": np.full(rows, few[0], dtype),
        "few": few[rng.integers(0, 9, rows)],
        "ascending": np.arange(rows).astype(dtype),
    }
    columns["copy"] = columns["smooth"].copy()
    columns["zeros"] = np.where(rng.random(rows) < 0.9, 0, columns["smooth"]).astype(dtype)
    if dtype.kind == "f":
        special = (SPECIAL_F4 if size == 4 else SPECIAL_F8).astype(f"{dtype.byteorder}u{size}").view(dtype)
        columns["special"] = special[rng.integers(0, len(special), rows)]
        columns["tiny"] = (smooth * (1e-42 if size == 4 else 1e-311)).astype(dtype)
        columns["large"] = (smooth * (1e36 if size == 4 else 1e300)).astype(dtype)
        columns["half"] = smooth.astype(np.float16).astype(dtype)
    return {f"{name} {dtype.str}": values for name, values in columns.items()}


def trained_columns(rows: int, seed: int = 0, sh_degree: int = 1) -> dict[str, np.ndarray]:
    """Columns like those of a trained scene: on a surface, colours alike nearby and across channels."""
    rng = np.random.default_rng(seed)
    u, v = rng.uniform(0, 6.3, rows), rng.uniform(0, 6.3, rows)
    xyz = np.stack([(2 + np.cos(v)) * np.cos(u), (2 + np.cos(v)) * np.sin(u), np.sin(v)])
    field = np.sin(2 * xyz[0]) + np.cos(3 * xyz[1] + xyz[2])
    quats = rng.standard_normal((rows, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    columns = dict(zip("xyz", xyz + 0.01 * rng.standard_normal((3, rows))))
    columns |= {f"f_dc_{c}": field + 0.2 * rng.standard_normal(rows) for c in range(3)}
    for k in range((sh_degree + 1) ** 2 - 1):
        shared = 0.1 * field * rng.standard_normal(rows)
        for channel in range(3):
            name = f"f_rest_{channel * ((sh_degree + 1) ** 2 - 1) + k}"
            columns[name] = shared + 0.02 * rng.standard_normal(rows)
    columns["opacity"] = rng.standard_normal(rows) * 3
    columns |= {f"scale_{k}": rng.standard_normal(rows) * 0.5 - 5 for k in range(3)}
    columns |= {f"rot_{k}": quats[:, k] for k in range(4)}
    return {name: values.astype(np.float32) for name, values in columns.items()}


# ---- Every bit comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 700])
def test_all_dtypes(rows):
    rng = np.random.default_rng(rows)
    columns: dict[str, np.ndarray] = {}
    for dtype in DTYPES:
        columns |= random_columns(rng, dtype, rows)
    round_trip(columns)
    round_trip(columns, block_rows=max(rows // 3, 1))


@pytest.mark.parametrize("rows", [1, 2, 300])
def test_positions_of_every_kind(rows):
    """Not finite, all in one place, very far, and of another dtype than the rest."""
    rng = np.random.default_rng(rows)
    rest = random_columns(rng, np.dtype("f4"), rows)
    x = rng.standard_normal(rows).astype(np.float32)
    strange = np.resize(SPECIAL_F4, rows).view(np.float32)
    for xyz in ((x, x, x), (x, strange, -x), (strange, strange, strange), (x * 0, x * 0, x * 0), (x, x * 1e30, x)):
        round_trip({**dict(zip("xyz", xyz)), **rest})
    round_trip({"x": x.astype(np.float64), "y": x.astype(">f8") * 1e300, "z": x.astype(">f4"), **rest})
    round_trip({"x": x.astype(np.int32), "y": x, "z": x, **rest})


def test_no_columns():
    assert decode_columns(*encode_columns({}), []) == {}


def test_more_rows_than_a_block():
    rng = np.random.default_rng(0)
    rows = BLOCK_ROWS + 1
    columns = {name: rng.standard_normal(rows).astype(np.float32) for name in ("x", "y", "z", "a")}
    columns["label"] = rng.integers(0, 7, rows).astype(np.uint8)
    assert block_counts(rows) == [BLOCK_ROWS, 1]
    assert len(encode_columns(columns)[1]) == 2
    round_trip(columns)


def test_tokens_missing_from_the_sample_are_escaped():
    """Tables come from a few blocks; what only others hold must still be coded."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(2000).astype(np.float32)
    values[:100] *= 1e6
    values[950:1050] = np.nan
    labels = np.zeros(2000, np.int32)
    labels[:100] = 1 << 30
    round_trip({"a": values, "b": values[::-1].copy(), "label": labels}, block_rows=100)


def test_strided_columns_and_their_order():
    rows = 500
    table = np.zeros(rows, [("b", "<f4"), ("x", "<f4"), ("a", "u1"), ("y", "<f4"), ("z", ">f8")])
    rng = np.random.default_rng(0)
    for name in table.dtype.names:
        table[name] = rng.standard_normal(rows) * 50 + 100
    columns = {name: table[name] for name in table.dtype.names}
    decoded = decode_columns(*encode_columns(columns), [rows])
    assert list(decoded) == list(table.dtype.names)
    for name in decoded:
        assert np.array_equal(decoded[name], table[name])
    assert [(spec.name, spec.dtype) for spec in read_specs(encode_columns(columns)[0])] == [
        (name, table.dtype[name]) for name in table.dtype.names
    ]


@settings(deadline=None, max_examples=40)
@given(
    bits=st.lists(st.one_of(st.sampled_from(SPECIAL_F4.tolist()), st.integers(0, 2**32 - 1)), max_size=60),
    copies=st.integers(1, 4),
    block_rows=st.integers(1, 40),
)
def test_any_floats(bits, copies, block_rows):
    values = np.tile(np.array(bits, np.uint32).view(np.float32), copies)
    names = ("x", "y", "z", "rot_0", "rot_1")
    round_trip({name: np.roll(values, k) for k, name in enumerate(names)}, block_rows)


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=60), scale=st.integers(0, 62))
def test_any_integers(values, scale):
    array = np.array(values, np.int64) >> scale
    round_trip({"a": array, "b": array.astype(np.uint64), "c": array.astype(np.int32), "d": array.astype(">u2")})


def test_blocks_decode_alone():
    columns = trained_columns(1000)
    description, blocks = encode_columns(columns, block_rows=300)
    counts = block_counts(1000, 300)
    for k, block in enumerate(blocks):
        decoded = decode_columns(description, [block], [counts[k]])
        for name, values in columns.items():
            assert np.array_equal(decoded[name], values[300 * k : 300 * k + counts[k]])


def test_bytes_do_not_depend_on_threads():
    columns = trained_columns(3000)
    one = encode_columns(columns, block_rows=500, threads=1)
    assert encode_columns(columns, block_rows=500, threads=2) == one
    for threads in (1, 2, 5):
        decoded = decode_columns(*one, block_counts(3000, 500), threads)
        assert all(np.array_equal(decoded[name], columns[name]) for name in columns)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_parameters(data):
    """However bad a prediction, the bits come back: the encoder's choices only decide the size."""
    columns = trained_columns(40, sh_degree=0)
    columns |= {"id": np.arange(40) << 55, "double": columns["x"] * np.float64(1e-200)}
    arrays = list(columns.values())
    plan = fit_plan(tuple(ColumnSpec(name, a.dtype) for name, a in columns.items()), arrays, [40]).plan
    exponents = st.one_of(st.sampled_from([-150, 150]), st.integers(-150, 150))
    weights = st.integers(-(2**14), 2**14)
    changed = []
    for column in plan.columns:
        movable = column.is_modelled and not plan.spec_of(column).name.startswith("rot_")
        if movable and data.draw(st.booleans()):
            column = replace(
                column,
                spread=data.draw(exponents),
                unit=data.draw(exponents),
                centre=data.draw(st.floats(-(2.0**64), 2.0**64, width=32)),
                mean_weight=data.draw(weights),
                near_weight=data.draw(weights),
                scale=tuple(data.draw(st.integers(0, 2**16)) for _ in range(3)),
            )
        changed.append(column)
    flat = np.full((1, ALPHABET), 32, np.int64)
    cells = plan.num_families * CLASSES
    description = write_plan(
        replace(plan, columns=tuple(changed), twins=True, context_map=np.zeros(cells, np.uint8)), flat
    )
    twin = np.array([data.draw(st.integers(-1, i - 1)) for i in range(40)], np.int32)
    plan = read_plan(description)
    block = model_block(plan, arrays, np.ones((cells, ALPHABET), np.bool_), lambda _: twin)
    decoded = decode_columns(description, [pack_block(plan, block)], [40])
    assert all(decoded[name].tobytes() == values.tobytes() for name, values in columns.items())


# ---- What cannot be coded, and damage ------------------------------------------------------------------------------


def test_wrong_arguments_are_refused():
    good = np.zeros(4, np.float32)
    for columns in (
        {"a": good.astype(np.float16)},
        {"a": good > 0},
        {"a": good.astype(np.complex64)},
        {"a": good.reshape(2, 2)},
        {"a": good, "b": good[:3]},
        {"a" * 2000: good},
        {str(k): good for k in range(5000)},
    ):
        with pytest.raises(ParameterError):
            encode_columns(columns)
    for block_rows in (0, BLOCK_ROWS + 1):
        with pytest.raises(ParameterError):
            encode_columns({"a": good}, block_rows)
    description, blocks = encode_columns({"a": good})
    with pytest.raises(ParameterError):
        decode_columns(description, blocks, [2, 2])


def test_memory_stays_in_proportion():
    """A block of constant columns is padded, and a count that its bytes cannot justify is refused."""
    columns = {str(k): np.zeros(60_000, np.float64) for k in range(20)}
    description, blocks = encode_columns(columns)
    assert 60_000 * 160 <= 2048 * len(blocks[0]) < 60_000 * 160 + 2048
    decode_columns(description, blocks, [60_000])
    with pytest.raises(LimitExceededError):
        decode_columns(description, blocks, [60_020])
    with pytest.raises(LimitExceededError):
        decode_columns(description, blocks, [60_000], limits=Limits(max_array_bytes=10**6))
    for count in (0, -1, BLOCK_ROWS + 1):
        with pytest.raises(FormatError):
            decode_columns(description, blocks, [count])


def damaged_example() -> tuple[bytes, bytes, int]:
    """A description with every column mode, and one block."""
    rows = 24
    rng = np.random.default_rng(0)
    columns = trained_columns(rows, sh_degree=0)
    for name in ("opacity", "scale_0", "scale_1", "scale_2"):
        del columns[name]
    for channel in range(3):
        columns[f"f_dc_{channel}"][18:] = columns[f"f_dc_{channel}"][:6]
    columns["few"] = np.float32([1.5, -3.25, 7])[rng.integers(0, 3, rows)]
    columns["copy"] = columns["rot_0"].copy()
    columns["constant"] = np.zeros(rows, np.int16)
    columns["id"] = rng.integers(0, 1000, rows)
    description, blocks = encode_columns(columns)
    plan = read_plan(description)
    assert {column.mode for column in plan.columns} == {CONSTANT, COPY, DICTIONARY, PLAIN}
    assert plan.spatial
    assert plan.twins
    assert any(column.sphere for column in plan.columns)
    return description, blocks[0], rows


def decode_or_refuse(description: bytes, block: bytes, rows: int) -> bool:
    """Whether damaged bytes still decode; any other outcome than that or a proper error fails the test."""
    try:
        decoded = decode_columns(description, [block], [rows], threads=1)
    except (FormatError, LimitExceededError):
        return False
    assert all(len(values) == rows for values in decoded.values())
    return True


def test_every_prefix_is_refused():
    description, block, rows = damaged_example()
    assert decode_or_refuse(description, block, rows)
    for length in range(len(description)):
        assert not decode_or_refuse(description[:length], block, rows)
    for length in range(len(block)):
        assert not decode_or_refuse(description, block[:length], rows)


def test_every_changed_byte_is_an_error_or_harmless():
    description, block, rows = damaged_example()
    changes = np.random.default_rng(0).integers(1, 256, len(description) + len(block)).tolist()
    for at in range(len(description)):
        damaged = bytearray(description)
        damaged[at] ^= changes.pop()
        decode_or_refuse(bytes(damaged), block, rows)
    for at in range(len(block)):
        damaged = bytearray(block)
        damaged[at] ^= changes.pop()
        decode_or_refuse(description, bytes(damaged), rows)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_random_bytes_and_edits(data):
    description, block, rows = damaged_example()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(description) - 1))
        description = description[:at] + data.draw(st.binary(max_size=4)) + description[at + 1 :]
    decode_or_refuse(description, data.draw(st.one_of(st.just(block), st.binary(max_size=200))), rows)


def test_surplus_bytes_are_refused():
    description, block, rows = damaged_example()
    assert decode_or_refuse(description, block + b"\0\0", rows)  # padding
    assert not decode_or_refuse(description, block + b"\1", rows)
    assert not decode_or_refuse(description + b"\0\0", block, rows)


def test_more_rows_than_stored_are_refused():
    description, block, rows = damaged_example()
    with pytest.raises((TruncatedError, FormatError)):
        decode_columns(description, [block], [rows + 1])


# ---- Rows ----------------------------------------------------------------------------------------------------------


def test_spatial_order_is_a_permutation_that_keeps_neighbours_together():
    rng = np.random.default_rng(0)
    x, y, z = rng.standard_normal((3, 5000))
    order = spatial_order(x, y, z)
    assert np.array_equal(np.sort(order), np.arange(5000))
    points = np.stack([x, y, z], 1)
    steps = np.linalg.norm(np.diff(points[order], axis=0), axis=1)
    assert np.median(steps) < 0.2 * np.median(np.linalg.norm(np.diff(points, axis=0), axis=1))
    assert spatial_order(x[:0], y[:0], z[:0]).tolist() == []
    assert spatial_order(x * 0, y * 0, z * 0).tolist() == list(range(5000))


def test_near_rows_are_the_nearest_of_the_last():
    rng = np.random.default_rng(0)
    positions = rng.standard_normal((3, 200))
    links = spatial_links(positions)
    assert links.near[0].tolist() == [0, 0, 0, 0]
    for i in range(5, 200):
        window = np.arange(max(i - 32, 0), i)
        distance = ((positions[:, window] - positions[:, i : i + 1]) ** 2).sum(0)
        assert np.array_equal(links.near[i] - 1, window[np.argsort(distance)[:4]])
    assert np.allclose(links.weight[1:].sum(1), 1)
    assert file_links(3).near.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [2, 1, 0, 0]]


# ---- Size ----------------------------------------------------------------------------------------------------------


def noise(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(rows).astype(np.float32)


def test_regular_columns_cost_nothing():
    rows = 4000
    plain = round_trip({"a": noise(rows)})
    assert round_trip({"a": noise(rows), "constant": np.full(rows, 1.5)}) < plain + 40
    assert round_trip({"a": noise(rows), "copy": noise(rows)}) < plain + 40
    assert round_trip({"id": np.arange(rows)}) < 200
    assert round_trip({"nan": np.full(rows, np.nan, np.float32), "empty": np.zeros(rows, np.uint8)}) < 200


def test_few_values_cost_their_entropy():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(16).astype(np.float32)
    columns = {name: values[rng.integers(0, 16, 5000)] for name in ("a", "b")}
    assert round_trip(columns) < 1.05 * 2 * 5000 * 4 / 8 + 400


def test_short_mantissas_cost_only_what_they_have():
    half = noise(5000).astype(np.float16).astype(np.float32)
    assert round_trip({"half": half}) < round_trip({"full": noise(5000)}) - 5000 * 11 / 8


def test_near_rows_and_channels_predict():
    """Smooth in space, and one channel much like another: both must pay, in a random order of rows."""
    columns = trained_columns(5000)
    alone = sum(round_trip({name: values}) for name, values in columns.items())
    assert round_trip(columns) < 0.97 * alone
    unrelated = {name: np.random.default_rng(k).permutation(v) for k, (name, v) in enumerate(columns.items())}
    assert round_trip(columns) < 0.97 * round_trip(unrelated)


def test_a_unit_quaternion_costs_three_numbers():
    columns = {f"rot_{k}": trained_columns(5000)[f"rot_{k}"] for k in range(4)}
    three = {name: columns[name] for name in ("rot_0", "rot_1", "rot_2")}
    assert round_trip(columns) < round_trip(three) + 5000 * 9 / 8


def test_shared_values_are_found():
    """Clones keep some of their parent's values exactly."""
    columns = trained_columns(4000)
    parents = np.random.default_rng(1).integers(0, 2000, 1000)
    before = round_trip(columns)
    names = [name for name in columns if name.startswith("f_rest")]
    for name in names:
        columns[name][3000:] = columns[name][parents]
    assert round_trip(columns) < before - 0.8 * 1000 * len(names) * 3


def test_sorted_rows_cost_less():
    columns = trained_columns(5000)
    order = spatial_order(columns["x"], columns["y"], columns["z"])
    assert round_trip({name: values[order] for name, values in columns.items()}) < round_trip(columns) - 5000


@pytest.mark.parametrize(
    ("name", "xz_bytes", "ratio"),
    [("donut", 2_348_336, 0.85), ("banana", 2_454_628, 0.85), ("leica", 1_737_844, 0.85)],
)
def test_real_scenes_against_xz(name, xz_bytes, ratio):
    """Against `xz -9` of the whole file, rows in file order."""
    path = REAL / f"{name}.ply"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    plyfile = pytest.importorskip("plyfile")
    table = plyfile.PlyData.read(path)["vertex"].data
    assert round_trip({field: table[field] for field in table.dtype.names}) < ratio * xz_bytes
