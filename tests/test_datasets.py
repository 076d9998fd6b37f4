"""Data sets of every kind: poses, lenses, splits, pictures; and what is said when something is wrong with them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from dataset_writers import blob_scene, rgb, rgba, ring, save, write_blender, write_colmap, write_transforms
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splatcodec.errors import (
    FormatError,
    LimitExceededError,
    ParameterError,
    SplatCodecError,
    TruncatedError,
    UnsupportedError,
)
from splatcodec.limits import Limits
from splatcodec.training.datasets import ReadOptions, detect, kinds, read_dataset
from splatcodec.training.datasets._lens import Lens
from splatcodec.training.datasets._pictures import shrink
from splatcodec.training.datasets.colmap import read_model, reprojection_errors_px

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "multiview"


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"the data set {name} is not here")
    return REAL / name


@pytest.fixture(scope="module")
def scene():
    return blob_scene()


@pytest.fixture(scope="module")
def sets(scene, tmp_path_factory):
    """One small data set of each kind, by name."""
    where = tmp_path_factory.mktemp("sets")
    cameras = ring(9)
    return {
        "blender": write_blender(where / "blender", scene, cameras[:6], cameras[6:]),
        "transforms": write_transforms(where / "transforms", scene, cameras),
        "colmap": write_colmap(where / "colmap", scene, cameras),
        "text": write_colmap(where / "text", scene, cameras, binary=False, where="sparse"),
    }


def views(dataset):
    return sorted((*dataset.train, *dataset.test), key=lambda view: view.name)


# --- cameras and pictures ---


@pytest.mark.parametrize("name", ["blender", "transforms", "colmap", "text"])
def test_cameras_and_pictures_come_back(sets, scene, name):
    dataset = read_dataset(sets[name])
    assert dataset.kind == {"text": "colmap"}.get(name, name)
    assert detect(sets[name]).name == dataset.kind
    train, test = (6, 3) if name == "blender" else (7, 2)
    assert (len(dataset.train), len(dataset.test)) == (train, test)
    cameras = ring(9)
    found = [*dataset.train, *dataset.test] if name == "blender" else views(dataset)
    for view, camera in zip(found, cameras, strict=True):
        np.testing.assert_allclose(view.camera.viewmat, camera.viewmat, atol=1e-9)
        np.testing.assert_allclose(view.camera.K, camera.K, atol=1e-6)
        picture = dataset.picture(view)
        if name == "blender":  # straight alpha over white; rounding of two 8-bit numbers
            pixels = rgba(scene, camera).astype(float)
            expected = pixels[..., :3] * pixels[..., 3:] / 255 + 255 - pixels[..., 3:]
            assert np.abs(picture - expected).max() <= 0.51
        else:
            np.testing.assert_array_equal(picture, rgb(scene, camera))
        assert not picture.flags.writeable
    assert dataset.background == ((1, 1, 1) if name == "blender" else (0, 0, 0))
    assert dataset.up[2] > 0.8
    assert dataset.extent == pytest.approx(1.1 * 4.0, rel=0.2)
    assert not dataset.moves


def test_test_views_are_every_eighth_of_the_sorted_names(sets):
    for name in ("transforms", "colmap"):
        names = [view.name for view in views(read_dataset(sets[name]))]
        assert [view.name for view in read_dataset(sets[name]).test] == names[::8]
        assert [v.name for v in read_dataset(sets[name], ReadOptions(test_every=3)).test] == names[::3]
        assert read_dataset(sets[name], ReadOptions(test_every=0)).test == ()


def test_the_files_own_split_wins(scene, tmp_path):
    names = [f"images/{k:04}.png" for k in range(6)]
    folder = write_transforms(tmp_path, scene, ring(6), train_filenames=names[:3], test_filenames=names[4:])
    dataset = read_dataset(folder)
    assert [view.name for view in dataset.train] == names[:3]
    assert [view.name for view in dataset.test] == names[4:]
    write_transforms(tmp_path, scene, ring(6), val_filenames=names[:1])
    assert [view.name for view in read_dataset(folder).test] == names[:1]
    write_transforms(tmp_path, scene, ring(6), train_filenames=names[:3], test_filenames=names[2:])
    with pytest.raises(FormatError, match=r"0002.png is a train and a test view"):
        read_dataset(folder)


def test_points_of_colmap_and_random_ones(sets, scene):
    for name in ("colmap", "text"):
        points = read_dataset(sets[name]).points
        np.testing.assert_allclose(points.means, scene.means, atol=1e-6)
        assert np.abs(points.colours - np.clip(0.5 + 0.28209479 * scene.sh0[:, 0], 0, 1)).max() <= 1 / 255 + 1e-6
    blender = read_dataset(sets["blender"])
    assert blender.points.means.shape == (5000, 3)
    assert np.abs(blender.points.means).max() == pytest.approx(1.3, abs=0.01)
    assert any("5,000 random points in the box (-1.3, -1.3, -1.3)" in note for note in blender.notes)
    around = read_dataset(sets["transforms"]).points.means
    assert np.abs(around.mean(axis=0)).max() < 0.2  # around what the cameras look at
    np.testing.assert_array_equal(around, read_dataset(sets["transforms"]).points.means)
    other = read_dataset(sets["transforms"], ReadOptions(seed=1)).points.means
    assert not np.array_equal(around, other)


def test_nerfstudio_points(scene, tmp_path):
    header = "ply\nformat ascii 1.0\nelement vertex 2\n" + "".join(f"property float {a}\n" for a in "xyz")
    header += "".join(f"property uchar {c}\n" for c in ("red", "green", "blue")) + "end_header\n"
    (tmp_path / "points.ply").write_text(header + "0 1 2 255 0 51\n3 4 5 0 0 0\n")
    folder = write_transforms(tmp_path, scene, ring(3), ply_file_path="points.ply")
    points = read_dataset(folder).points
    np.testing.assert_array_equal(points.means, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_allclose(points.colours[0], [1, 0, 0.2])
    (tmp_path / "points.ply").write_text(header + "0 1 2 255 0 51\n")
    with pytest.raises(FormatError, match=r"points.ply: not a PLY of points"):
        read_dataset(folder)
    (tmp_path / "points.ply").unlink()
    with pytest.raises(ParameterError, match=r"points.ply: no such file"):
        read_dataset(folder)


def test_time_of_dnerf_sets(scene, tmp_path):
    folder = write_blender(tmp_path, scene, ring(3), ring(2), times=lambda k: k / 4)
    dataset = read_dataset(folder)
    assert [view.time for view in dataset.train] == [0.0, 0.25, 0.5]
    assert dataset.moves


# --- size ---


@pytest.mark.parametrize(("options", "size"), [(ReadOptions(downscale=2), 16), (ReadOptions(size_px=10), 10)])
def test_shrinking_scales_the_camera_and_averages_areas(sets, options, size):
    full = read_dataset(sets["transforms"])
    small = read_dataset(sets["transforms"], options)
    for a, b in zip(full.train, small.train, strict=True):
        assert (b.camera.width, b.camera.height) == (size, size)
        np.testing.assert_allclose(b.camera.K[:2] * 32 / size, a.camera.K[:2])
        picture = full.picture(a).astype(float)
        assert np.abs(small.picture(b) - shrink(picture, size, size)).max() <= 0.51
        if size == 16:
            blocks = picture.reshape(16, 2, 16, 2, 3).mean((1, 3))
            assert np.abs(small.picture(b) - blocks).max() <= 0.51


def test_shrunk_pictures_match_what_their_cameras_see(scene, tmp_path):
    """A scene drawn at full size and shrunk is nearly the one drawn with the shrunk camera: no half-pixel shifts."""
    smooth = scene.replaced(scales=scene.scales + 0.7)
    dataset = read_dataset(write_transforms(tmp_path, smooth, ring(8, size_px=96)), ReadOptions(downscale=3))
    view = dataset.train[0]
    drawn = rgb(smooth, view.camera).astype(float)
    error = np.abs(dataset.picture(view) - drawn).mean()
    shifted = np.abs(dataset.picture(view) - np.roll(drawn, 1, axis=1)).mean()
    assert error < 0.25 * shifted


def test_pictures_of_another_size_than_the_camera(scene, tmp_path):
    folder = write_colmap(tmp_path, scene, ring(8), images="images_4", shrink=4)
    dataset = read_dataset(folder)
    assert dataset.train[0].camera.width == 8
    np.testing.assert_allclose(dataset.train[0].camera.K[:2] * 4, ring(8)[0].K[:2])
    assert dataset.notes == ("pictures from images_4",)
    write_colmap(tmp_path, scene, ring(8))
    assert read_dataset(folder).train[0].camera.width == 32
    assert read_dataset(folder, ReadOptions(images="images_4")).train[0].camera.width == 8
    with pytest.raises(ParameterError, match="no such folder"):
        read_dataset(folder, ReadOptions(images="images_2"))


@given(height=st.integers(1, 12), width=st.integers(1, 12), data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_shrinking_keeps_the_mean(height, width, data, seed):
    new_height, new_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    picture = np.random.default_rng(seed).uniform(0, 255, (height, width, 3))
    small = shrink(picture, new_width, new_height)
    assert small.shape == (new_height, new_width, 3)
    np.testing.assert_allclose(small.mean((0, 1)), picture.mean((0, 1)), rtol=1e-5)
    assert small.min() >= picture.min() - 1e-3
    assert small.max() <= picture.max() + 1e-3


def test_the_cache_is_bounded_and_gives_the_same(sets):
    tiny = read_dataset(sets["transforms"], ReadOptions(cache_bytes=2 * 32 * 32 * 3))
    roomy = read_dataset(sets["transforms"])
    for _ in range(2):
        for a, b in zip(tiny.train, roomy.train, strict=True):
            np.testing.assert_array_equal(tiny.picture(a), roomy.picture(b))
            assert tiny._cache.size_bytes <= tiny._cache.limit_bytes
    assert roomy.picture(roomy.train[0]) is roomy.picture(roomy.train[0])
    assert tiny.picture(tiny.train[0]) is not None


# --- lenses ---


def texture(x, y):
    """A smooth picture as a function of direction."""
    return np.stack([np.sin(9 * x + y), np.cos(7 * y), np.sin(5 * x * y + x)], axis=-1) * 100 + 127


LENSES = {
    "opencv": Lens(120, 90, 110.0, 108.0, 61.0, 44.0, k1=0.08, k2=-0.1, p1=-0.002, p2=0.003),
    "barrel": Lens(120, 90, 110.0, 110.0, 60.0, 45.0, k1=-0.15),
    "pincushion": Lens(120, 90, 110.0, 110.0, 60.0, 45.0, k1=0.2),
}


@pytest.mark.parametrize("name", LENSES)
def test_distortion_is_taken_out(name, tmp_path):
    lens = LENSES[name]
    px, py = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    bent = (px - lens.cx) / lens.fx, (py - lens.cy) / lens.fy
    save((texture(*lens.undistort(*bent)) + 0.5).astype(np.uint8), tmp_path / "images" / "a.png")
    save((texture(*lens.undistort(*bent)) + 0.5).astype(np.uint8), tmp_path / "images" / "b.png")
    frames = [{"file_path": f"images/{file}.png", "transform_matrix": pose(k)} for k, file in enumerate("ab")]
    header = {"w": 120, "h": 90, "fl_x": lens.fx, "fl_y": lens.fy, "cx": lens.cx, "cy": lens.cy}
    header |= {key: getattr(lens, key) for key in ("k1", "k2", "p1", "p2")}
    (tmp_path / "transforms.json").write_text(json.dumps(header | {"frames": frames}))
    dataset = read_dataset(tmp_path)
    camera = dataset.train[0].camera
    assert camera.focal_px == pytest.approx((lens.fx, lens.fy))
    x = (np.arange(camera.width) + 0.5 - camera.K[0, 2]) / camera.K[0, 0]
    y = (np.arange(camera.height) + 0.5 - camera.K[1, 2]) / camera.K[1, 1]
    error = np.abs(dataset.picture(dataset.train[0]) - texture(*np.meshgrid(x, y)))
    assert error.max() < 2.5  # 8-bit and bilinear interpolation of curved lines
    left_in = np.abs(
        np.asarray(Image.open(tmp_path / "images" / "a.png"), float)[: camera.height, : camera.width]
        - texture(*np.meshgrid(x, y))[:90, :120]
    )
    assert left_in.max() > 10  # the test would see it if nothing were done


def pose(k: float) -> list[list[float]]:
    matrix = np.eye(4)
    matrix[0, 3] = k
    return matrix.tolist()


def test_lenses_that_cannot_be_undistorted():
    for lens in (Lens(100, 100, 40.0, 40.0, 50.0, 50.0, k1=-0.9), Lens(100, 100, 50.0, 50.0, 50.0, 50.0, k1=30.0)):
        with pytest.raises(FormatError, match="distortion"):
            lens.undistorted()


@given(k1=st.floats(-0.1, 0.2), k2=st.floats(-0.05, 0.1), p1=st.floats(-0.01, 0.01), p2=st.floats(-0.01, 0.01))
@settings(max_examples=40, deadline=None)
def test_undistorted_pictures_lie_within_the_original(k1, k2, p1, p2):
    lens = Lens(200, 150, 180.0, 175.0, 97.0, 80.0, k1, k2, p1, p2)
    straight = lens.undistorted()
    x = (np.linspace(0, straight.width, 30) - straight.cx) / straight.fx
    y = (np.linspace(0, straight.height, 30) - straight.cy) / straight.fy
    u, v = lens.distort(*np.meshgrid(x, y))
    assert (u * lens.fx + lens.cx).min() >= -0.2
    assert (u * lens.fx + lens.cx).max() <= lens.width + 0.2
    assert (v * lens.fy + lens.cy).min() >= -0.2
    assert (v * lens.fy + lens.cy).max() <= lens.height + 0.2
    back = lens.undistort(u, v)
    np.testing.assert_allclose(back[0], np.meshgrid(x, y)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("number", "name", "values", "expected"),
    [
        (0, "SIMPLE_PINHOLE", (40, 16, 15), (40, 40, 16, 15)),
        (1, "PINHOLE", (40, 41, 16, 15), (40, 41, 16, 15)),
        (2, "SIMPLE_RADIAL", (40, 16, 16, 0.0), (40, 40, 16, 16)),
        (4, "OPENCV", (40, 41, 16, 15, 0, 0, 0, 0), (40, 41, 16, 15)),
    ],
)
@pytest.mark.parametrize("binary", [True, False])
def test_camera_models(scene, tmp_path, number, name, values, expected, binary):
    # Without the points' observations: they were made with another camera.
    empty = scene.selected(slice(0, 0))
    folder = write_colmap(tmp_path, empty, ring(8), binary=binary, model=(number, name, values))
    camera = read_dataset(folder).train[0].camera
    assert (*camera.focal_px, *camera.principal_point_px) == pytest.approx(expected)


@pytest.mark.parametrize("binary", [True, False])
def test_distorted_colmap_cameras_are_cropped_and_others_refused(scene, tmp_path, binary):
    empty = scene.selected(slice(0, 0))
    radial = (2, "SIMPLE_RADIAL", (40, 16, 16, 0.3))
    camera = read_dataset(write_colmap(tmp_path / "a", empty, ring(8), binary=binary, model=radial)).train[0].camera
    assert camera.width < 32
    fisheye = (5, "OPENCV_FISHEYE", (40, 40, 16, 16, 0, 0, 0, 0))
    with pytest.raises(UnsupportedError, match="OPENCV_FISHEYE"):
        read_dataset(write_colmap(tmp_path / "b", empty, ring(8), binary=binary, model=fisheye))


# --- what is wrong ---


def edited(folder: Path, change) -> Path:
    path = folder / "transforms.json"
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))
    return folder


BAD_JSON = {
    "no frames": (lambda h: h.pop("frames"), "frames"),
    "empty": (lambda h: h.update(frames=[]), "no views to train on"),
    "one view": (lambda h: h.update(frames=h["frames"][:1]), "no views to train on"),
    "no focal length": (lambda h: h.pop("fl_x") and h.pop("fl_y"), "no focal length"),
    "negative focal length": (lambda h: h.update(fl_x=-1.0), "focal lengths"),
    "fisheye": (lambda h: h.update(camera_model="OPENCV_FISHEYE"), "OPENCV_FISHEYE"),
    "k4": (lambda h: h.update(k4=0.1), "k4"),
    "folds over": (lambda h: h.update(k1=-5.0), "distortion"),
    "other sides": (lambda h: h.update(w=64), "do not belong together"),
    "absurd size": (lambda h: h.update(w=10**12, h=10**12), "more than 65536 a side"),
    "fractional size": (lambda h: h.update(w=32.5), "32.5"),
    "no matrix": (lambda h: h["frames"][2].pop("transform_matrix"), r"frames\[2\].transform_matrix"),
    "text in matrix": (lambda h: h["frames"][2]["transform_matrix"][0].__setitem__(1, "x"), r"transform_matrix\[0\]"),
    "huge in matrix": (lambda h: h["frames"][0]["transform_matrix"][0].__setitem__(3, 1e300), "a pose may have"),
    "mirrored": (
        lambda h: h["frames"][3]["transform_matrix"].__setitem__(
            0, [-v for v in h["frames"][3]["transform_matrix"][0]]
        ),
        "not a rigid motion",
    ),
    "scaled": (
        lambda h: h["frames"][0].update(
            transform_matrix=(2 * np.array(h["frames"][0]["transform_matrix"])[:3]).tolist()
        ),
        "not a rigid motion",
    ),
    "a picture twice": (lambda h: h["frames"].append(h["frames"][1]), "two poses"),
    "a picture missing": (lambda h: h["frames"][1].update(file_path="images/nowhere.png"), "1 of 9 pictures are miss"),
    "no name": (lambda h: h["frames"][1].update(file_path=""), "file_path"),
    "unknown test view": (lambda h: h.update(test_filenames=["images/x.png"]), "no frame is of"),
    "no test view": (lambda h: h.update(test_filenames=["images/0000.png"], train_filenames=[]), None),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_transforms(scene, tmp_path, name):
    change, message = BAD_JSON[name]
    folder = edited(write_transforms(tmp_path, scene, ring(9, size_px=16)), change)
    if message is None:
        assert len(read_dataset(folder).test) == 1
        return
    with pytest.raises(SplatCodecError, match=message) as caught:
        read_dataset(folder)
    assert str(tmp_path) in str(caught.value)


def test_bad_json_text(scene, tmp_path):
    path = write_transforms(tmp_path, scene, ring(3)) / "transforms.json"
    text = path.read_bytes()
    for content in (b"", text[: len(text) // 2], b"[1]", b'{"frames": ' + b"[" * 100_000, b"\xff\xfe", b"NaN"):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"transforms\.json"):
            read_dataset(tmp_path)
    with pytest.raises(LimitExceededError):
        read_dataset(tmp_path, ReadOptions(limits=Limits(max_json_bytes=1)))


def test_zero_test_views_are_refused_unless_asked_for(scene, tmp_path):
    folder = write_blender(tmp_path, scene, ring(3), ring(2))
    (folder / "transforms_test.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": []}))
    with pytest.raises(FormatError, match="no test views"):
        read_dataset(folder)
    assert len(read_dataset(folder, ReadOptions(test_every=0)).train) == 3
    (folder / "transforms_test.json").unlink()
    dataset = read_dataset(folder)
    assert (len(dataset.train), len(dataset.test)) == (2, 1)
    assert "every 8th" in dataset.notes[0]


def test_folders_without_a_data_set(tmp_path, sets):
    with pytest.raises(ParameterError, match="no such folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(ParameterError, match=r"looked for .*transforms_train\.json.*sparse/0"):
        read_dataset(tmp_path)
    with pytest.raises(ParameterError, match="is a file"):
        read_dataset(sets["transforms"] / "transforms.json")
    with pytest.raises(SplatCodecError, match="unknown kind"):
        read_dataset(tmp_path, kind="zip")
    assert set(kinds()) == {"blender", "colmap", "transforms"}


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_every_cut_colmap_file_is_refused(scene, tmp_path, name):
    folder = write_colmap(tmp_path, scene.selected(slice(0, 3)), ring(3))
    path = folder / "sparse" / "0" / f"{name}.bin"
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(TruncatedError, match=name):
            read_dataset(folder)
    path.write_bytes(content + b"\0")
    with pytest.raises(FormatError, match="after the end"):
        read_dataset(folder)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_damaged_colmap_files_never_raise_anything_else(sets, seed):
    random = np.random.default_rng(seed)
    folder = sets["colmap"] / "sparse" / "0"
    name = ["cameras.bin", "images.bin", "points3D.bin"][seed % 3]
    content = (folder / name).read_bytes()
    damaged = bytearray(content)
    for at in random.integers(0, len(damaged), 3):
        damaged[at] = random.integers(256)
    try:
        (folder / name).write_bytes(damaged)
        read_dataset(sets["colmap"])
    except SplatCodecError:
        pass
    finally:
        (folder / name).write_bytes(content)


def test_lying_counts_do_not_allocate(scene, tmp_path):
    folder = write_colmap(tmp_path, scene, ring(3))
    for name in ("cameras", "images", "points3D"):
        path = folder / "sparse" / "0" / f"{name}.bin"
        content = path.read_bytes()
        path.write_bytes(struct.pack("<Q", 2**60) + content[8:])
        with pytest.raises(TruncatedError, match="do not fit"):
            read_dataset(folder)
        path.write_bytes(content)
    with pytest.raises(LimitExceededError, match="60 Gaussians"):
        read_dataset(folder, ReadOptions(limits=Limits(max_gaussians=59)))


@pytest.mark.parametrize(
    ("file", "find", "replace", "message"),
    [
        ("cameras.txt", "PINHOLE", "BOX", "line 2: the camera model 'BOX'"),
        ("cameras.txt", "PINHOLE 32", "PINHOLE x", "line 2: not numbers"),
        ("cameras.txt", " 16.0\n", "\n", "line 2: 3 parameters"),
        ("images.txt", " photo 000.png", "", "line 2: not an image"),
        ("images.txt", "1 photo 000.png", "7 photo 000.png", "of camera 7, which is not there"),
        ("images.txt", "photo 000.png", "../photo 000.png", "not the name of a picture"),
        ("points3D.txt", "0.5 1 0\n", "0.5 1 0\n1 2 3\n", "not a point"),
    ],
)
def test_bad_text_models(scene, tmp_path, file, find, replace, message):
    folder = write_colmap(tmp_path, scene, ring(3), binary=False)
    path = folder / "sparse" / "0" / file
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, replace, 1))
    with pytest.raises(SplatCodecError, match=message) as caught:
        read_dataset(folder)
    assert str(tmp_path) in str(caught.value)


def test_poses_that_do_not_match_the_points(scene, tmp_path):
    folder = write_colmap(tmp_path, scene, ring(9), binary=False)
    path = folder / "sparse" / "0" / "images.txt"
    lines = path.read_text().splitlines()
    words = [line.split() for line in lines]
    words[1][1:8], words[5][1:8] = words[5][1:8], words[1][1:8]  # two images change places
    path.write_text("\n".join(" ".join(line) for line in words) + "\n")
    with pytest.raises(FormatError, match="does not match the points"):
        read_dataset(folder)


def test_points_that_are_no_use(scene, tmp_path):
    one_place = scene.replaced(means=np.zeros_like(scene.means) + np.float32(0.1))
    with pytest.raises(FormatError, match="all 60 points lie in one place"):
        read_dataset(write_colmap(tmp_path / "a", one_place, ring(3)))
    folder = write_colmap(tmp_path / "b", scene, ring(3), binary=False)
    path = folder / "sparse" / "0" / "points3D.txt"
    text = path.read_text()
    path.write_text(text + "900 nan 0 0 1 2 3 0.5\n901 1e300 0 0 1 2 3 0.5\n")
    dataset = read_dataset(folder)
    assert len(dataset.points.means) == 60
    assert any("2 points that are not finite" in note for note in dataset.notes)
    path.write_text("900 nan 0 0 1 2 3 0.5\n")
    with pytest.raises(FormatError, match="none of the points is finite"):
        read_dataset(folder)
    path.write_text("")
    assert any("random points" in note for note in read_dataset(folder).notes)


def test_bad_pictures(scene, tmp_path):
    folder = write_transforms(tmp_path, scene, ring(9))
    path = folder / "images" / "0001.png"
    content = path.read_bytes()
    path.write_bytes(b"not a picture")
    with pytest.raises(FormatError, match=r"0001\.png"):
        read_dataset(folder)
    path.write_bytes(content[: len(content) // 2])  # the header is fine: found when it is decoded
    dataset = read_dataset(folder)
    with pytest.raises(FormatError, match=r"0001\.png: damaged"):
        dataset.picture(dataset.train[0])
    Image.new("RGB", (48, 32)).save(path)
    with pytest.raises(FormatError, match=r"0001\.png: .*48 x 32 pixels, its camera 32 x 32"):
        read_dataset(folder)
    with pytest.raises(FormatError, match="is now 48 x 32"):
        dataset.picture(dataset.train[0])
    Image.new("I;16", (32, 32)).save(path)
    with pytest.raises(UnsupportedError, match=r"0001\.png"):
        read_dataset(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(FormatError, match="1 of 9 pictures are missing"):
        read_dataset(folder)


def test_pictures_that_unpack_to_gigabytes(scene, tmp_path):
    folder = write_transforms(tmp_path, scene, ring(9))
    path = folder / "images" / "0001.png"
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)  # IHDR's sides; its sum is not looked at before they are
    path.write_bytes(content)
    with pytest.raises(SplatCodecError, match=r"0001\.png") as caught:
        read_dataset(folder)
    assert isinstance(caught.value, LimitExceededError | FormatError)
    with pytest.raises(LimitExceededError, match="more than the limit of 1000"):
        read_dataset(
            write_transforms(tmp_path / "b", scene, ring(9)), ReadOptions(limits=Limits(max_image_pixels=1000))
        )


@pytest.mark.parametrize(
    "options",
    [
        {"downscale": 0.5}, {"downscale": float("nan")}, {"size_px": 2}, {"downscale": 2, "size_px": 8},
        {"test_every": 1}, {"test_every": -1}, {"background": (0, 0, 2)}, {"cache_bytes": -1},
    ],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises(ParameterError):
        ReadOptions(**options)


def test_shrinking_to_nothing(sets):
    with pytest.raises(ParameterError, match="would become 2 x 2"):
        read_dataset(sets["transforms"], ReadOptions(downscale=20))


# --- real data ---


def test_desk_points_project_where_they_were_seen():
    model = read_model(real("desk") / "sparse" / "0", ReadOptions())
    errors = np.concatenate([reprojection_errors_px(model, image) for image in model.images])
    assert len(errors) > 20_000
    assert np.median(errors) < 1.0  # pixels of 1906 x 1070
    assert (errors < 4.0).mean() > 0.99
    dataset = read_dataset(real("desk"))
    assert (len(dataset.train), len(dataset.test), len(dataset.points.means)) == (25, 4, 7562)
    assert dataset.picture(dataset.test[0]).shape == (268, 476, 3)
    assert dataset.up[1] < -0.9


def test_lego_silhouettes_agree_between_views():
    """Points inside all train silhouettes fill the silhouettes of the test views: the poses are right."""
    dataset = read_dataset(real("lego"), ReadOptions(downscale=8))
    assert (len(dataset.train), len(dataset.test)) == (50, 10)
    points = np.random.default_rng(0).uniform(-1.3, 1.3, (60_000, 3))

    def hits(view):
        local = points @ view.camera.viewmat[:3, :3].T + view.camera.viewmat[:3, 3]
        pixels = np.floor((local @ view.camera.K.T)[:, :2] / local[:, 2:]).astype(int)
        return pixels.clip(0, 49), (pixels >= 0).all(1) & (pixels < 50).all(1)

    def silhouette(view):
        return (dataset.picture(view) < 250).any(axis=2)

    for view in dataset.train:
        pixels, within = hits(view)
        points = points[within & silhouette(view)[pixels[:, 1], pixels[:, 0]]]
    assert len(points) > 500
    for view in dataset.test:
        pixels, _ = hits(view)
        drawn = np.zeros((50, 50), bool)
        drawn[pixels[:, 1], pixels[:, 0]] = True
        truth = silhouette(view)
        assert (drawn & truth).sum() > 0.8 * (drawn | truth).sum(), view.name


def test_fox_is_read_and_straightened():
    dataset = read_dataset(real("fox"), ReadOptions(downscale=4))
    assert (len(dataset.train), len(dataset.test)) == (43, 7)
    camera = dataset.test[0].camera
    assert (camera.width, camera.height) == (133, 238)
    assert dataset.picture(dataset.test[0]).shape == (238, 133, 3)
    assert dataset.test[0].name == "images/0001.jpg"


def test_jumpingjacks_moves():
    dataset = read_dataset(real("jumpingjacks"), ReadOptions(downscale=4))
    times = [view.time for view in dataset.train]
    assert dataset.moves
    assert min(times) == 0.0
    assert 0.9 < max(times) <= 1.0
    assert (len(dataset.train), len(dataset.test)) == (100, 20)
