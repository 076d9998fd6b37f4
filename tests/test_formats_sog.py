"""SOG: random textures of both versions against a plain decoder, containers, and everything the JSON can get wrong."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import format_writers as writers
import numpy as np
import pytest
from PIL import Image

from splatcodec import formats
from splatcodec.errors import (
    ChecksumError,
    FormatError,
    LimitExceededError,
    SplatCodecWarning,
    TruncatedError,
    UnsupportedError,
)
from splatcodec.gaussians import Gaussians
from splatcodec.limits import Limits

DATA = Path(__file__).parent / "data"


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def files(rng):
    return writers.random_sog(rng, 30, 1)


def _read(tmp_path: Path, content: bytes | dict[str, bytes], **kwargs) -> Gaussians:
    path = tmp_path / "scene.sog"
    path.write_bytes(content if isinstance(content, bytes) else writers.zip_bytes(content))
    return formats.read(path, **kwargs)


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")).astype(int)


def _decode(files: dict[str, bytes], i: int) -> dict[str, np.ndarray]:
    """Gaussian i by the description, in plain numbers."""
    meta = json.loads(files["meta.json"])
    images = {name[:-5]: _pixels(content) for name, content in files.items() if name.endswith(".webp")}
    pixel = {name: image.reshape(-1, 4)[i] for name, image in images.items() if name != "shN_centroids"}
    low, high = np.array(meta["means"]["mins"]), np.array(meta["means"]["maxs"])
    extent = np.where(high == low, 1, high - low)
    n = low + extent * (pixel["means_l"][:3] + 256 * pixel["means_u"][:3]) / 65535
    kept = list((pixel["quats"][:3] / 255 * 2 - 1) / 2**0.5)
    tag = pixel["quats"][3] - 252
    kept.insert(tag, max(0, 1 - sum(c * c for c in kept)) ** 0.5)
    out = {"means": np.sign(n) * (np.exp(np.abs(n)) - 1), "quats": np.array(kept if tag >= 0 else [1, 0, 0, 0])}

    def lerp(name: str, codes: np.ndarray) -> np.ndarray:
        low, high = np.array(meta[name]["mins"]), np.array(meta[name]["maxs"])
        return low + (high - low) * codes / 255

    if "version" in meta:
        out["scales"] = np.array(meta["scales"]["codebook"])[pixel["scales"][:3]]
        out["sh0"] = np.array(meta["sh0"]["codebook"])[pixel["sh0"][:3]]
        alpha = np.clip(pixel["sh0"][3] / 255, 1e-6, 1 - 1e-6)
        out["opacities"] = np.log(alpha / (1 - alpha))
    else:
        out["scales"] = lerp("scales", pixel["scales"][:3])
        *colour, out["opacities"] = lerp("sh0", pixel["sh0"])
        out["sh0"] = np.array(colour)
    if "shN" in meta:
        label = pixel["shN_labels"][0] + 256 * pixel["shN_labels"][1]
        per_entry = images["shN_centroids"].shape[1] // 64
        start = label % 64 * per_entry
        codes = images["shN_centroids"][label // 64, start : start + per_entry, :3]
        shN = np.array(meta["shN"]["codebook"])[codes] if "version" in meta else lerp("shN", codes)
        out["shN"] = shN.ravel()
    return out


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bands", range(4))
def test_random_textures(tmp_path, rng, version, bands):
    files = writers.random_sog(rng, 75, bands, version)
    scene = _read(tmp_path, files)
    assert (scene.num_gaussians, scene.sh_degree) == (75, bands)
    assert scene.metadata["sog"]["version"] == version
    for i in range(0, 75, 3):
        for name, expected in _decode(files, i).items():
            np.testing.assert_allclose(getattr(scene, name)[i].ravel(), expected, atol=1e-5, rtol=1e-5, err_msg=name)
    folder = writers.write_folder(tmp_path / "folder", files)
    for path in (folder, folder / "meta.json"):
        np.testing.assert_array_equal(formats.read(path).shN, scene.shN)
    # Any order of entries, deflated or not.
    shuffled = dict(reversed(files.items()))
    np.testing.assert_array_equal(_read(tmp_path, writers.zip_bytes(shuffled, 8)).means, scene.means)


def test_large_palette(tmp_path, rng):
    files = writers.random_sog(rng, 3000, 1, palette=1000)
    scene = _read(tmp_path, files)
    for i in (0, 1234, 2999):
        np.testing.assert_allclose(scene.shN[i].ravel(), _decode(files, i)["shN"], atol=1e-6)


def test_vector_quats():
    """The documented quaternions of the vector: [217,217,217,252] is (.5,.5,.5,.5)."""
    scene = formats.read(DATA / "t5.sog")
    np.testing.assert_allclose(scene.quats[2], 0.5, atol=0.011)
    np.testing.assert_allclose(scene.quats[0], [1, 0, 0, 0], atol=0.003)


def _changed(files: dict[str, bytes], change) -> dict[str, bytes]:
    meta = json.loads(files["meta.json"])
    change(meta)
    return files | {"meta.json": json.dumps(meta).encode()}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"model": "antialiased"}, True),
        ({"model": "2dgs"}, False),
        ({"antialias": True}, True),
        ({"antialias": False}, False),
        ({"antialias": 1}, None),
        ({}, None),
    ],
)
def test_antialiasing(tmp_path, files, members, expected):
    scene = _read(tmp_path, _changed(files, lambda meta: meta.update(members)))
    assert scene.metadata.get("antialiased") is expected


def test_other_members(tmp_path, files):
    changed = _changed(files, lambda meta: meta.update(asset={"generator": "me"}, later=[1, {"x": None}], shN=None))
    scene = _read(tmp_path, changed)
    assert scene.sh_degree == 0
    assert scene.metadata["sog"] == {"version": 2, "generator": "me"}
    with pytest.warns(SplatCodecWarning, match="unknown SOG model 'x'"):
        _read(tmp_path, _changed(files, lambda meta: meta.update(model="x")))


def _set(path: str, value):
    def change(meta):
        *parents, last = path.split(".")
        for key in parents:
            meta = meta[key]
        meta[last] = value

    return change


BAD_META = [
    (_set("version", 3), "version 3"),
    (_set("version", "2"), "version"),
    (_set("version", True), "version"),
    (_set("count", None), "count"),
    (_set("count", -1), "count"),
    (_set("count", 30.0), "count"),
    (_set("count", 31), None),  # the textures have room for it
    (_set("count", 65), "65 are needed"),
    (_set("count", 10**12), "limit"),
    (_set("count", 10**400), "count"),
    (_set("means", []), "means"),
    (_set("means.mins", [0, 1]), "means.mins"),
    (_set("means.mins", [0, 1, "2"]), r"means.mins\[2\]"),
    (_set("means.mins", [0, 1, True]), r"means.mins\[2\]"),
    (_set("means.mins", [0, 1, 10**400]), r"means.mins\[2\]"),
    (_set("means.maxs", [0, 1, 89]), "means.maxs"),
    (_set("means.files", ["means_l.webp"]), "means.files"),
    (_set("means.files", "means_l.webp"), "means.files"),
    (_set("quats.files", [5]), "not a plain file name"),
    (_set("quats.files", ["../quats.webp"]), "not a plain file name"),
    (_set("quats.files", ["/etc/passwd"]), "not a plain file name"),
    (_set("quats.files", ["a\\b"]), "not a plain file name"),
    (_set("quats.files", ["c:b"]), "not a plain file name"),
    (_set("quats.files", [".."]), "not a plain file name"),
    (_set("quats.files", ["a\0"]), "not a plain file name"),
    (_set("quats.files", ["\ud800"]), "not a plain file name"),
    (_set("quats.files", [""]), "not a plain file name"),
    (_set("quats.files", ["q" * 256]), "not a plain file name"),
    (_set("quats.files", ["none.webp"]), "no none.webp"),
    (_set("quats.files", ["meta.json"]), "not a WebP image"),
    (_set("scales.codebook", [0.0] * 255), "scales.codebook"),
    (_set("scales.codebook", [0.0] * 257), "scales.codebook"),
    (_set("scales.codebook", [0.0] * 255 + [None]), r"scales.codebook\[255\]"),
    (_set("scales.codebook", [0.0] * 255 + [1e39]), r"scales.codebook\[255\]"),
    (_set("sh0.codebook", {}), "sh0.codebook"),
    (_set("shN.count", 0), "shN.count"),
    (_set("shN.count", 65537), "shN.count"),
    (_set("shN.count", 129), "are needed"),
    (_set("shN.count", 64), "in a palette of 64"),
    (_set("shN.bands", 2), "needed|wide"),
    (_set("shN.bands", 0), "shN.bands"),
    (_set("shN.files", ["shN_labels.webp", "shN_centroids.webp"]), "needed|wide"),
    (_set("shN", 7), "shN"),
]


@pytest.mark.parametrize("number", range(len(BAD_META)))
@pytest.mark.parametrize("folder", [False, True])
def test_bad_meta(tmp_path, files, number, folder):
    change, message = BAD_META[number]
    files = _changed(files, change)
    path = writers.write_folder(tmp_path / "f", files) if folder else tmp_path / "scene.sog"
    if not folder:
        path.write_bytes(writers.zip_bytes(files))
    if message is None:
        assert formats.read(path).num_gaussians == 31
        return
    with pytest.raises((FormatError, LimitExceededError, UnsupportedError), match=message) as caught:
        formats.read(path)
    assert caught.value.file == str(path)
    assert caught.value.chunk


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"count": NaN}', "NaN is not JSON"),
        (b'{"count": -Infinity}', "-Infinity is not JSON"),
        (b'{"count": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"{}", "means"),
        (b'{"means": {"shape": [1e3, 3]}}', "means.shape"),
        (b'{"means": {"shape": [-4, 3]}}', "means.shape"),
        (b'{"means": {"shape": 4}}', "means.shape"),
    ],
    ids=range(13),
)
def test_bad_json(tmp_path, files, text, message):
    with pytest.raises(FormatError, match=message) as caught:
        _read(tmp_path, files | {"meta.json": text})
    assert caught.value.chunk == "meta.json"


def test_utf8_mark(tmp_path, files):
    assert len(_read(tmp_path, files | {"meta.json": b"\xef\xbb\xbf" + files["meta.json"]})) == 30


def test_description_of_another_name(tmp_path, files):
    folder = writers.write_folder(tmp_path / "f", {"meta.json": b"{}"} | {"b.json": files["meta.json"]})
    writers.write_folder(folder, {name: content for name, content in files.items() if name != "meta.json"})
    assert len(formats.read(folder / "b.json", format="sog")) == 30


def test_zero_gaussians(tmp_path, files):
    assert len(_read(tmp_path, _changed(files, _set("count", 0)))) == 0


def _saved(pixels: np.ndarray, mode: str = "RGBA", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(out, **options)
    return out.getvalue()


def test_bad_textures(tmp_path, files):
    pixels = _pixels(files["scales.webp"]).astype(np.uint8)
    good = files["scales.webp"]
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    moving = io.BytesIO()
    frames[0].save(moving, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    for content, kind, message in [
        (_saved(pixels, format="PNG"), FormatError, "not a WebP image"),
        (_saved(pixels, "RGB", format="WEBP", quality=50), UnsupportedError, "lossy"),
        (_saved(pixels, format="WEBP", quality=50), UnsupportedError, "lossy"),
        (moving.getvalue(), FormatError, "not one lossless"),
        (good[:-2], TruncatedError, "image needs"),
        (good + b"xx", FormatError, "bytes after the image"),
        (good[:12], TruncatedError, "image needs"),
        (b"RIFF\x04\0\0\0WEBP", FormatError, "not one lossless"),
        (b"", FormatError, "not a WebP image"),
        (good[:30] + bytes(len(good) - 30), FormatError, "damaged|lossless"),
        (good[:20] + b"\x30" + good[21:], FormatError, "damaged"),
    ]:
        with pytest.raises(kind, match=message) as caught:
            _read(tmp_path, files | {"scales.webp": content})
        assert caught.value.chunk == "scales.webp"
    # RGB without alpha is as good, where alpha means nothing; so are chunks of metadata.
    _read(tmp_path, files | {"scales.webp": _saved(pixels, "RGB", format="WEBP", lossless=True)})
    _read(tmp_path, files | {"scales.webp": _saved(pixels, format="WEBP", lossless=True, exif=b"Exif\0\0x")})


def test_texture_sizes(tmp_path, rng, files):
    def with_size(width: int, height: int) -> dict[str, bytes]:
        return files | {"sh0.webp": writers.webp(np.zeros((height, width, 4)))}

    assert len(_read(tmp_path, with_size(30, 1))) == 30
    assert len(_read(tmp_path, with_size(512, 512))) == 30
    with pytest.raises(FormatError, match="29 x 1 pixels, 30 are needed"):
        _read(tmp_path, with_size(29, 1))
    with pytest.raises(LimitExceededError, match="2000 x 1000 pixels"):
        _read(tmp_path, with_size(2000, 1000))
    with pytest.raises(LimitExceededError, match="more than the 100 allowed"):
        _read(tmp_path, with_size(11, 10), limits=Limits(max_image_pixels=100))


def test_pillow_global_limit_does_not_bind_and_is_kept(tmp_path, files, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert len(_read(tmp_path, files)) == 30
    assert Image.MAX_IMAGE_PIXELS == 1


def test_bad_zips(tmp_path, files):
    good = writers.zip_bytes(files)
    with pytest.raises(FormatError, match=r"no meta\.json"):
        _read(tmp_path, {k: v for k, v in files.items() if k != "meta.json"})
    with pytest.raises(TruncatedError, match="no directory"):
        _read(tmp_path, good[:-30])
    with pytest.raises(FormatError, match="two entries"):
        _read(tmp_path, good.replace(b"means_l.webp", b"means_u.webp"))
    with pytest.raises(UnsupportedError, match="compression method 12"):
        _read(tmp_path, writers.zip_bytes(files, zipfile.ZIP_BZIP2))
    at = good.index(files["quats.webp"]) + 20
    with pytest.raises(ChecksumError, match="CRC"):
        _read(tmp_path, good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    encrypted = bytearray(good)
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[good.index(magic) + flags] |= 1
    with pytest.raises(UnsupportedError, match="encrypted"):
        _read(tmp_path, bytes(encrypted))


def test_json_limit(tmp_path, files):
    padded = files | {"meta.json": files["meta.json"] + b" " * 20_000}
    assert len(_read(tmp_path, padded)) == 30
    with pytest.raises(LimitExceededError, match=r"meta\.json"):
        _read(tmp_path, padded, limits=Limits(max_json_bytes=20_000))
    folder = writers.write_folder(tmp_path / "f", padded)
    with pytest.raises(LimitExceededError, match=r"meta\.json"):
        formats.read(folder, limits=Limits(max_json_bytes=20_000))
