"""The JavaScript decoder (splatcodec/player/decoder): what Node and Chromium make of it. The checks are in tests/js."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import make_golden
import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT

from splatcodec import api
from splatcodec.bitstream.container import Container
from splatcodec.errors import ParameterError
from splatcodec.limits import DEFAULT_LIMITS
from splatcodec.stages.tile import DecodedTile, decode_layer, decode_sh, decode_tile
from splatcodec.static.decoder import Selection, choose_units, read_parameters, read_units

PLAYER = ROOT / "splatcodec" / "player"
JS = ROOT / "tests" / "js"
MAX_GZIPPED = 25 * 1024
NUM_MUTATIONS = 20_000
# CI installs Node, Chromium and the packages of tests/js/package.json, and does not let their absence pass.
REQUIRED = bool(os.environ.get("SPLATCODEC_REQUIRE_JS"))
NODE = shutil.which("node")
LOSSY = [
    name
    for name, case in make_golden.CASES.items()
    if name.startswith("lossy") and case.options.get("effort") != 9 and "mixing" not in name
]


def _absent(what: str) -> NoReturn:
    if REQUIRED:
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


def node(script: str, *arguments: object, package: str | None = None, timeout: float = 240) -> list[dict[str, Any]]:
    """Run a script of tests/js; returns the JSON objects it printed, one a line."""
    if NODE is None:
        _absent("Node")
    if package and not (JS / "node_modules" / package).is_dir():
        _absent(f"the npm package {package} (npm install in tests/js)")
    done = subprocess.run(
        [NODE, str(JS / script), *map(str, arguments)], capture_output=True, text=True, timeout=timeout, cwd=JS
    )
    assert done.returncode == 0, f"{script}: {done.stderr[-4000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def _golden(name: str) -> Path:
    return make_golden.GOLDEN / name / "stream.splc"


# --- the same as Python's, to the bit ---------------------------------------------------------------------------------


def _decoded(container: Container) -> dict[tuple[int, int], tuple[DecodedTile, npt.NDArray[np.float32]]]:
    """Every level of every tile, before it becomes Gaussians, with its SH coefficients."""
    parameters = read_parameters(container)
    decoded = {}
    for unit in read_units(container, DEFAULT_LIMITS):
        tile = decode_tile(parameters, container.read(unit.tile), unit.tile.count)
        layers = [
            None if entry is None else decode_layer(parameters, bounds, container.read(entry), tile)
            for bounds, entry in zip(parameters.layers(), unit.layers)
        ]
        shN = np.empty((unit.tile.count, (parameters.sh_degree + 1) ** 2 - 1, 3), np.float32)
        decode_sh(parameters, layers, unit.tile.count, shN)
        decoded[unit.tile.level, unit.tile.tile] = tile, shN
    return decoded


def _selections(container: Container) -> Iterator[tuple[dict[str, Any], Selection]]:
    """What parity.mjs asks for, and the same for Python."""
    units = read_units(container, DEFAULT_LIMITS)
    yield {}, Selection()
    for level in sorted({unit.tile.level for unit in units}):
        yield {"level": level}, Selection(level=level)
    for tile in sorted({unit.tile.tile for unit in units}):
        yield {"tiles": [tile]}, Selection(tiles=[tile])
    most = 0
    for unit in units:
        most += unit.tile.count
        for limit in (most, most + 1):
            with contextlib.suppress(ParameterError):
                choose_units(container, units, Selection(max_gaussians=limit))
                yield {"maxGaussians": limit}, Selection(max_gaussians=limit)


def _expected(name: str, folder: Path) -> dict[str, Any]:
    """What parity.mjs compares with: the arrays of the whole scene and of parts of it."""
    wanted = []
    with Container.open(_golden(name)) as container:
        decoded = _decoded(container)
        units = read_units(container, DEFAULT_LIMITS)
        for k, (asked, selection) in enumerate(_selections(container)):
            shown = [unit.tile for unit in choose_units(container, units, selection)]
            if selection.everything:
                shown = [unit.tile for unit in units if unit.tile.level]
            arrays: dict[str, list[npt.NDArray[Any]]] = {}
            changed = False
            for entry in shown:
                tile, shN = decoded[entry.level, entry.tile]
                top = max(other.level for other in shown if other.tile == entry.tile)
                if 0 < top < max(level for level, number in decoded if number == entry.tile):
                    last = decoded[top, entry.tile][0]
                    look = last.own if entry.level else last.under
                    changed |= look != (0, 1024)
                    tile = tile.as_prefix(*look)
                for key in ("means", "covariances", "alphas", "sh0"):
                    arrays.setdefault(key, []).append(getattr(tile, key))
                arrays.setdefault("shN", []).append(shN)
            files = {}
            for key, blocks in arrays.items():
                dtype = np.dtype("<f8" if key in ("covariances", "alphas") else "<f4")
                assert all(block.dtype == dtype for block in blocks)
                files[key] = [f"{name}-{k}-{key}.bin", dtype.str[1:]]
                (folder / files[key][0]).write_bytes(b"".join(block.tobytes() for block in blocks))
            count = sum(entry.count for entry in shown)
            wanted.append({"selection": asked, "count": count, "arrays": files, "look": changed})
    return {"name": name, "stream": str(_golden(name)), "wanted": wanted}


def test_the_same_bits_as_python(tmp_path):
    cases = [_expected(name, tmp_path) for name in LOSSY]
    (tmp_path / "cases.json").write_text(json.dumps({"cases": cases}))
    (facts,) = node("parity.mjs", tmp_path)
    assert facts["cases"] == len(LOSSY) > 10
    assert facts["gaussians"] > 1000
    assert any(wanted["look"] for case in cases for wanted in case["wanted"]), "no golden file has a level that grows"


def test_the_same_as_the_slow_reader():
    (facts,) = node("agree.mjs", 25, *map(_golden, LOSSY))
    assert facts["files"] == 25 + len(LOSSY)
    assert min(facts["layers"], facts["looks"]) > 20
    assert facts["largest"] > 1000


@pytest.mark.parametrize("name", [name for name in make_golden.CASES if name not in LOSSY])
def test_archive_files_are_refused_by_name(name):
    (facts,) = node("refuse.mjs", _golden(name))
    assert facts["error"] == "unsupported"
    with Container.open(_golden(name)) as container:
        needed = [feature.name for feature in container.features if feature.name != "lossy-1"]
    assert any(feature in facts["message"] for feature in needed)


# --- pieces, damage ---------------------------------------------------------------------------------------------------


def test_decodes_as_bytes_arrive():
    (facts,) = node("stream.mjs", *map(_golden, LOSSY))
    assert facts["files"] == len(LOSSY)


def test_records_are_as_near_as_promised():
    (facts,) = node("records.mjs", *map(_golden, LOSSY))
    assert (facts["record_bytes"], facts["sh_bytes"], facts["box_bytes"]) == (16, 44, 64)
    assert 0 < facts["shape_error"] < 0.1


def test_damaged_files_give_a_scene_or_one_error():
    arguments = ("mutate.mjs", NUM_MUTATIONS, 1, *(_golden(name) for name in make_golden.CASES))
    try:
        (facts,) = node(*arguments, timeout=120)
    except subprocess.TimeoutExpired:
        # Seconds as a rule; Node once stood still here. The damage is the same every time: a decoder that hangs on it
        # hangs again.
        (facts,) = node(*arguments)
    assert sum(facts["outcomes"].values()) == NUM_MUTATIONS
    assert min(facts["outcomes"][code] for code in ("scene", "format", "truncated", "checksum")) > 100
    assert facts["slowest_ms"] < 5000
    assert facts["growth_bytes"] < 400e6


def test_counts_are_checked_before_memory_is_taken():
    (facts,) = node("bounds.mjs")
    assert facts["checked"] >= 10


# --- over the network -------------------------------------------------------------------------------------------------


class Handler(SimpleHTTPRequestHandler):
    """Files of the checkout and of a folder, the latter under a path that names how the server behaves."""

    MANNERS = ("range", "hidden", "ignore", "later", "cut", "short", "long", "wrong", "empty")
    strict = False
    folder: Path
    asked: list[tuple[str, str | None]]

    def log_message(self, *_: object) -> None: ...

    def end_headers(self) -> None:
        if self.strict:
            self.send_header("Content-Security-Policy", "script-src 'self' 'unsafe-inline'")
        super().end_headers()

    def do_GET(self) -> None:
        # Under /strict/ lies the same, with a policy that forbids to compile WebAssembly.
        self.strict = self.path.startswith("/strict/")
        self.path = self.path.removeprefix("/strict")
        how, _, name = self.path[1:].partition("/")
        path = self.folder / name
        if (
            how not in ("range", "hidden", "ignore", "cut", "short", "long", "wrong", "later", "empty")
            or not path.is_file()
        ):
            super().do_GET()
            return
        data = path.read_bytes()
        asked = self.headers.get("Range")
        self.asked.append((how, asked))
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
        first = match is not None and match[1] == "0"
        data = {"short": data[:-5], "long": data + b"x", "empty": b""}.get(how, data)
        if (
            match is None
            or how == "ignore"
            or (how == "later" and not first)
            or (how in ("short", "long") and "all" in name)
        ):
            self._answer(200, data, {})
            return
        start, end = int(match[1]), min(int(match[2]) + 1, len(data))
        if start >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        body = data[start:end]
        told = start + 1 if how == "wrong" else start
        headers = {} if how == "hidden" else {"Content-Range": f"bytes {told}-{end - 1}/{len(data)}"}
        if how == "cut" and not first:
            headers["Content-Length"] = str(len(body))
            body = body[:-1]
        self._answer(206, body, headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[str, type[Handler]]]:
    handler = type("ThisHandler", (Handler,), {"folder": tmp_path, "asked": [], "directory": str(ROOT)})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(ROOT))) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", handler
        http.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def made_up_file(tmp_path_factory) -> Path:
    """Some 1.5 MB with several levels, far more than one request brings."""
    path = tmp_path_factory.mktemp("made-up") / "large.splc"
    node("write.mjs", 5, 100_000, path)
    return path


@pytest.fixture
def large_file(made_up_file, tmp_path) -> Path:
    return Path(shutil.copy(made_up_file, tmp_path))


@pytest.mark.parametrize("how", ["range", "hidden"])
def test_ranges_are_asked_for(server, large_file, how):
    url, handler = server
    (expected,) = node("local.mjs", large_file)
    (facts,) = node("network.mjs", f"{url}/{how}/large.splc")
    assert facts["digest"] == expected["digest"]
    assert facts["notices"] == []
    assert facts["size"] == expected["size"]
    spans = [tuple(map(int, re.findall(r"\d+", asked or ""))) for _, asked in handler.asked]
    assert len(spans) > 2
    # What is skipped between the chunks is not downloaded.
    assert sum(end + 1 - start for start, end in spans) < expected["size"] / 2


def test_one_level_takes_few_bytes(server, large_file):
    url, handler = server
    selection = '{"level": 1, "shLayers": 0}'
    (expected,) = node("local.mjs", large_file, selection)
    (facts,) = node("network.mjs", f"{url}/range/large.splc", selection)
    assert facts["digest"] == expected["digest"]
    few = len(handler.asked)
    node("network.mjs", f"{url}/range/large.splc")
    assert few < len(handler.asked) - few


@pytest.mark.parametrize("how", ["ignore", "later"])
def test_a_server_without_ranges_sends_the_whole_file_and_it_is_said(server, large_file, how):
    url, handler = server
    (expected,) = node("local.mjs", large_file)
    (facts,) = node("network.mjs", f"{url}/{how}/large.splc")
    assert facts["digest"] == expected["digest"]
    assert len(facts["notices"]) == 1
    assert "ranges" in facts["notices"][0]
    assert len(handler.asked) == (1 if how == "ignore" else 2)


@pytest.mark.parametrize(
    ("how", "code"),
    [("cut", "network"), ("short", "truncated"), ("long", "format"), ("wrong", "network"), ("empty", "truncated")],
)
def test_servers_that_send_something_else(server, large_file, how, code):
    url, _ = server
    (facts,) = node("network.mjs", f"{url}/{how}/large.splc")
    assert facts["error"] == code, facts


@pytest.mark.parametrize(("how", "code"), [("short", "truncated"), ("long", "format")])
def test_whole_downloads_of_another_length(server, large_file, how, code):
    url, _ = server
    large_file.rename(large_file.with_name("all.splc"))
    (facts,) = node("network.mjs", f"{url}/{how}/all.splc")
    assert facts["error"] == code, facts


def test_what_is_not_there(server):
    url, _ = server
    (facts,) = node("network.mjs", f"{url}/nothing.splc")
    assert facts["error"] == "network"
    assert "404" in facts["message"]
    (facts,) = node("network.mjs", "http://127.0.0.1:9/nothing.splc")
    assert facts["error"] == "network"


# --- in a browser -----------------------------------------------------------------------------------------------------


def _need_chromium() -> None:
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", os.environ.get("CHROMIUM", "-")))):
        _absent("Chromium")


def test_in_a_page_and_in_a_worker(server, large_file):
    _need_chromium()
    url, _ = server
    shutil.copy(_golden("lossy-sh3"), large_file.with_name("golden.splc"))
    shutil.copy(_golden("lossless-sh0"), large_file.with_name("lossless.splc"))
    urls = [f"{url}/range/golden.splc", f"{url}/range/large.splc", f"{url}/ignore/large.splc"]
    *facts, refused, refused_in_worker, _ = node(
        "page.mjs", f"{url}/tests/js/page.html", *urls, f"{url}/range/lossless.splc", package="playwright-core"
    )
    for k, path in enumerate([_golden("lossy-sh3"), large_file, large_file]):
        (expected,) = node("local.mjs", path)
        for where, got in zip(("page", "worker"), facts[2 * k : 2 * k + 2], strict=True):
            assert got.get("digest") == expected["digest"], got
            assert (got["where"], got["count"], got["meta"]) == (where, expected["count"], expected["meta"])
            assert got["streamed"] >= got["count"]
            assert got.get("engine") == ("FastEngine" if where == "page" else None)
            assert len(got["notices"]) == (1 if k == 2 else 0)
    for got in (refused, refused_in_worker):
        assert got["error"] == "unsupported"
        assert "lossless-1" in got["message"]


def test_in_a_page_that_forbids_webassembly(server, large_file):
    _need_chromium()
    url, _ = server
    (expected,) = node("local.mjs", large_file)
    page, worker, _ = node(
        "page.mjs", f"{url}/strict/tests/js/page.html", f"{url}/strict/range/large.splc", package="playwright-core"
    )
    assert page["digest"] == worker["digest"] == expected["digest"]
    assert page["engine"] == "PlainEngine"


# --- the modules themselves -------------------------------------------------------------------------------------------


def test_types_are_right():
    if NODE is None:
        _absent("Node")
    compiler = JS / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.is_file():
        _absent("the npm package typescript (npm install in tests/js)")
    done = subprocess.run([NODE, str(compiler), "-p", str(JS)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout


def test_small_enough_for_a_page():
    for facts in node(
        "size.mjs", *(PLAYER / "decoder" / f"{name}.js" for name in ("index", "worker")), package="esbuild"
    ):
        assert 5_000 < facts["gzipped"] <= MAX_GZIPPED, facts


def test_the_kernel_is_what_its_source_makes():
    node("../../tools/player_kernel/build.mjs", "--check")


def _imports(path: Path) -> set[str]:
    return set(re.findall(r'(?:^import|\bfrom)\s+"([^"]+)"', path.read_text(), re.MULTILINE))


def test_plain_modules_that_depend_on_nothing():
    for path in PLAYER.rglob("*.js"):
        for name in _imports(path):
            assert name.startswith("./"), f"{path.name} imports {name}"
            assert (path.parent / name).is_file()
        assert "eval(" not in path.read_text(), path.name
        assert "new Function" not in path.read_text(), path.name


def test_one_round_trip_brings_all_modules():
    # Whatever a module of the decoder imports, index.js names too, and file.js, with which the player does: a browser
    # asks for all at once. What only moving scenes need is named by moving.js, and by nothing that still scenes load.
    decoder = PLAYER / "decoder"
    named = _imports(decoder / "index.js")
    assert _imports(decoder / "file.js") == named - {"./file.js"}
    moving = _imports(decoder / "moving.js") - named
    assert moving >= {"./motion.js", "./planes.js", "./sequence.js"}
    for path in decoder.glob("*.js"):
        name = f"./{path.name}"
        if name in moving or path.name == "moving.js":
            assert _imports(path) <= named | moving
        elif path.name not in ("index.js", "worker.js", "pictures.js"):
            assert name in named
            assert _imports(path) <= named


def test_every_module_is_in_the_wheel():
    with open(ROOT / "pyproject.toml", "rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["splatcodec"]
    shipped = {path for pattern in patterns for path in (ROOT / "splatcodec").glob(pattern)}
    assert {*PLAYER.rglob("*.js"), PLAYER / "package.json"} <= shipped


def test_what_the_encoder_writes_today_decodes(small_files):
    (facts,) = node("local.mjs", small_files["lossy"])
    assert facts["count"] == api.decompress(small_files["lossy"].read_bytes()).num_gaussians
