"""`splatcodec serve`: ranges, validators, headers, what must not be served, slow links and slow clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

if not os.environ.get("SPLATCODEC_REQUIRE_JS"):
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from splatcodec import api
from splatcodec.cli.main import main
from splatcodec.errors import BackendUnavailableError, FormatError, ParameterError, UnsupportedError
from splatcodec.sample import sample_scene
from splatcodec.streaming import server as module
from splatcodec.streaming.server import (
    ServeOptions,
    Throttle,
    create_app,
    list_scenes,
    make_server,
    parse_range,
    player_prefix,
    qr_code,
    self_signed,
)


@contextlib.contextmanager
def serving(target: Path, **options: Any) -> Iterator[tuple[str, int]]:
    with make_server(target, ServeOptions(port=0, **options)) as (server, listener, _):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield "127.0.0.1", listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def ask(
    place: tuple[str, int], path: str, method: str = "GET", tls: bool = False, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body; the path goes out as it is."""
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(*place, timeout=20, context=context)
    else:
        connection = http.client.HTTPConnection(*place, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_files) -> Path:
    """Scenes to serve, and beside them what must not be."""
    base = tmp_path_factory.mktemp("served")
    root = base / "root"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    content = small_files["lossy"].read_bytes()
    for path in ("a.splc", "sub/b & c.splc", ".hidden/d.splc", ".e.splc"):
        (root / path).write_bytes(content)
    (root / "notes.txt").write_text("secret")
    (base / "outside.splc").write_bytes(content)
    (root / "link.splc").symlink_to(base / "outside.splc")
    (root / "inside.splc").symlink_to(root / "a.splc")
    (root / "up").symlink_to(base)
    (root / "folder.splc").mkdir()
    os.mkfifo(root / "pipe.splc")
    return root


@pytest.fixture(scope="module")
def place(folder) -> Iterator[tuple[str, int]]:
    with serving(folder) as place:
        yield place


@pytest.fixture(scope="module")
def content(folder) -> bytes:
    return (folder / "a.splc").read_bytes()


# --- ranges -----------------------------------------------------------------------------------------------------------


def test_whole_files(place, content):
    status, headers, body = ask(place, "/scenes/a.splc", Accept_Encoding="gzip, br")
    assert (status, body) == (200, content)
    assert headers["content-type"] == "application/vnd.splatcodec"
    assert headers["accept-ranges"] == "bytes"
    assert headers["content-length"] == str(len(content))
    assert "content-encoding" not in headers
    status, headers, body = ask(place, "/scenes/a.splc", "HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", str(len(content)))
    assert ask(place, "/scenes/sub/b%20%26%20c.splc")[2] == content
    assert ask(place, "/scenes/inside.splc")[2] == content


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("0-0", 0, 0), ("10-99", 10, 99), ("100-", 100, -1), ("-7", -7, -1), ("5-99999999", 5, -1)],
)
def test_ranges(place, content, asked, first, last):
    status, headers, body = ask(place, "/scenes/a.splc", Range=f"bytes={asked}")
    assert status == 206
    assert body == content[first:][: last + 1 - first if last >= 0 else None]
    start = first % len(content)
    assert headers["content-range"] == f"bytes {start}-{start + len(body) - 1}/{len(content)}"


@pytest.mark.parametrize(
    "asked",
    [
        *("bytes=0-1,5-9", "bytes=", "bytes=-", "bytes=-0", "bytes=9-3", "bytes=99999999-", "bytes=a-b", "bytes=0x1-2"),
        *("bytes=1-2-3", f"bytes=0-{10**30}", "bytes= 1-2", "bytes=--5", "bytes=" + ",".join(["0-"] * 500)),
    ],
)
def test_absurd_ranges_are_refused(place, content, asked):
    status, headers, body = ask(place, "/scenes/a.splc", Range=asked)
    assert status == 416
    assert headers["content-range"] == f"bytes */{len(content)}"
    assert len(body) < 100


def test_other_units_are_not_ours(place, content):
    assert ask(place, "/scenes/a.splc", Range="lines=1-2")[::2] == (200, content)


@settings(max_examples=200, deadline=None)
@given(st.text("bytes=0123456789-, ", max_size=20), st.integers(0, 1000))
def test_a_range_is_inside_or_none(text, size):
    span = parse_range(text, size)
    assert span is None or 0 <= span[0] <= span[1] < size


def test_validators(place, folder, content):
    _, headers, _ = ask(place, "/scenes/a.splc")
    etag = headers["etag"]
    for header in (etag, f'"x", {etag}', "*", f"W/{etag}"):
        status, headers, body = ask(place, "/scenes/a.splc", If_None_Match=header)
        assert (status, body, headers["etag"]) == (304, b"", etag)
    assert ask(place, "/scenes/a.splc", If_None_Match='"other"')[0] == 200
    assert ask(place, "/scenes/a.splc", Range="bytes=0-3", If_Range=etag)[0] == 206
    # The file is another one by now: all of it, not a part that does not fit.
    assert ask(place, "/scenes/a.splc", Range="bytes=0-3", If_Range='"other"')[::2] == (200, content)
    path = folder / "changing.splc"
    path.write_bytes(content)
    before = ask(place, "/scenes/changing.splc")[1]["etag"]
    path.write_bytes(content + b"x")
    assert ask(place, "/scenes/changing.splc")[1]["etag"] != before
    path.unlink()


# --- what is not served -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/scenes/../outside.splc",
            "/scenes/%2e%2e/outside.splc",
            "/scenes/..%2foutside.splc",
            "/scenes/sub/../../outside.splc",
        ),
        *(
            "/scenes/link.splc",
            "/scenes/up/outside.splc",
            "/scenes/.e.splc",
            "/scenes/.hidden/d.splc",
            "/scenes/notes.txt",
        ),
        *(
            "/scenes//etc/passwd",
            "/scenes/%2fetc%2fpasswd",
            "/scenes/a.splc%00.txt",
            "/scenes/a.splc%00",
            "/scenes/folder.splc",
        ),
        *(
            "/scenes/",
            "/scenes/sub",
            "/scenes/..%5coutside.splc",
            "/scenes/pipe.splc",
            "/scenes/" + "x" * 5000 + ".splc",
        ),
        *(
            "/scenes/%252e%252e/outside.splc",
            "/player/x/page.js",
            "/player/../server.py",
            "/nothing",
            "/scenes/C:a.splc",
        ),
        *("/scenes/%ff.splc", "/scenes/./a.splc"),
    ],
)
def test_nothing_else_is_served(place, path):
    status, _, body = ask(place, path)
    assert status == 404
    assert len(body) < 100


def test_the_player_itself_cannot_be_left(place):
    for path in ("../../__init__.py", "%2e%2e/api.py", "decoder/../../api.py", "package.json"):
        assert ask(place, f"{player_prefix()}/{path}")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(place, method):
    assert ask(place, "/scenes/a.splc", method)[0] == 405


def test_names_of_other_sites_are_refused(place):
    # Such a name may lead here by a trick with DNS; then its pages could read what is served.
    assert ask(place, "/scenes/a.splc", Host="evil.example")[0] == 400
    assert ask(place, "/scenes/a.splc", Host=f"localhost:{place[1]}")[0] == 200


def test_one_file_only(folder):
    with serving(folder / "a.splc") as place:
        status, headers, _ = ask(place, "/")
        assert status == 307
        assert headers["location"] == f"{player_prefix()}/index.html?src=/scenes/a.splc"
        assert ask(place, "/scenes/a.splc")[0] == 200
        assert ask(place, "/scenes/inside.splc")[0] == 404
        assert ask(place, "/scenes/sub/b%20%26%20c.splc")[0] == 404


# --- pages and headers ------------------------------------------------------------------------------------------------


def test_the_list(place, folder):
    assert list_scenes(folder) == ["a.splc", "inside.splc", "sub/b & c.splc"]
    status, headers, body = ask(place, "/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    links = re.findall(r'href="([^"]+)"', body.decode())
    assert len(links) == 3
    assert "b &amp; c.splc" in body.decode()
    page, _, scene = links[-1].partition("?src=")
    assert ask(place, page)[0] == 200
    # Twice quoted: as a part of a query, and as a path in it.
    assert scene == "/scenes/sub/b%2520%2526%2520c.splc"


def test_headers_of_the_player(place):
    prefix = player_prefix()
    for name, kind in (("index.html", "text/html"), ("page.js", "text/javascript"), ("player.css", "text/css")):
        status, headers, body = ask(place, f"{prefix}/{name}")
        assert status == 200
        assert headers["content-type"].startswith(kind)
        assert "immutable" in headers["cache-control"]
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert headers["x-content-type-options"] == "nosniff"
        assert "'unsafe-inline'" not in headers["content-security-policy"]
        _, headers, packed = ask(place, f"{prefix}/{name}", Accept_Encoding="gzip")
        assert headers["content-encoding"] == "gzip"
        assert len(packed) < len(body)


def test_other_origins(folder):
    with serving(folder, cors="https://a.example") as place:
        _, headers, _ = ask(place, "/scenes/a.splc", Origin="https://a.example")
        assert headers["access-control-allow-origin"] == "https://a.example"
        assert "Content-Range" in headers["access-control-expose-headers"]
        status, headers, _ = ask(place, "/scenes/a.splc", "OPTIONS", Origin="https://a.example")
        assert (status, "Range" in headers["access-control-allow-headers"]) == (204, True)
        _, headers, _ = ask(place, "/scenes/a.splc", Origin="https://b.example")
        assert "access-control-allow-origin" not in headers
    with serving(folder) as place:
        assert "access-control-allow-origin" not in ask(place, "/scenes/a.splc", Origin="https://a.example")[1]


# --- slow links, slow clients -----------------------------------------------------------------------------------------


def test_a_slow_link_is_slow(tmp_path, content):
    path = tmp_path / "a.splc"
    path.write_bytes(content)
    rate = 8 * len(content) / 0.3
    with serving(tmp_path, throttle=Throttle(rate, 0.1)) as place:
        began = time.monotonic()
        assert ask(place, "/scenes/a.splc")[2] == content
        alone = time.monotonic() - began
        # A round trip for the connection, one for the answer, then the bytes.
        assert 0.45 < alone < 5
        began = time.monotonic()
        threads = [threading.Thread(target=ask, args=(place, "/scenes/a.splc")) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began > 1.0


def test_clients_that_do_not_go_on_are_let_go(folder, monkeypatch):
    monkeypatch.setattr(module, "_HEAD_TIMEOUT_S", 0.3)
    with serving(folder) as place:
        with socket.create_connection(place, timeout=10) as silent, socket.create_connection(place, timeout=10) as slow:
            slow.sendall(b"GET /scenes/a.splc HTTP/1.1\r\nHost: localhost\r\n")
            began = time.monotonic()
            assert silent.recv(100) == b""
            assert slow.recv(100) == b""
            assert time.monotonic() - began < 5
        assert ask(place, "/scenes/a.splc")[0] == 200


def test_clients_that_take_nothing_are_let_go(tmp_path, content, monkeypatch):
    big = tmp_path / "big.splc"
    big.write_bytes(content)
    with open(big, "r+b") as file:
        file.truncate(1 << 26)
    monkeypatch.setattr(module._Impatient.__init__, "__defaults__", (0.3,))
    with serving(tmp_path) as place, socket.create_connection(place, timeout=10) as client:
        client.sendall(b"GET /scenes/big.splc HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1.0)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while block := client.recv(1 << 20):
                received += len(block)
        assert received < 1 << 26
        assert ask(place, "/scenes/big.splc", Range="bytes=0-3")[2] == b"SPLC"


def test_heads_without_an_end_are_refused(place):
    with socket.create_connection(place, timeout=10) as client:
        client.sendall(b"GET /scenes/a.splc HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 40_000)
        assert client.recv(100).startswith(b"HTTP/1.1 400")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_interrupted(folder):
    arguments = [
        sys.executable,
        "-m",
        "splatcodec",
        "serve",
        str(folder / "a.splc"),
        "--port",
        "0",
        "--no-open",
        "--json",
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
        facts = json.loads(text)
        assert facts["local"] is True
        match = re.fullmatch(r"http://(127\.0\.0\.1):(\d+)(/player/.*)", facts["url"])
        assert match
        assert ask((match[1], int(match[2])), match[3])[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def _made(process: subprocess.Popen[str]) -> tuple[tuple[str, int], str]:
    """Where a server is, and the path of the scene there."""
    assert process.stdout
    text = ""
    while not text.endswith("}\n"):
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        text += line
    match = re.fullmatch(r"http://(127\.0\.0\.1):(\d+)(/player/.*)\?src=(.*)", json.loads(text)["url"])
    assert match
    return (match[1], int(match[2])), match[4]


@pytest.mark.filterwarnings("ignore::splatcodec.errors.SplatCodecWarning")  # what SPZ rounds
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["scene.ply", "my scene.spz", "lossless.splc", "frames"])
def test_other_formats_are_compressed_into_a_file_that_goes(kind, ending, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    source = tmp_path / kind
    scene = sample_scene(60).with_sh_degree(0).replaced(metadata={})
    if kind == "frames":
        source.mkdir()
        for k in range(3):
            moved = scene.replaced(means=scene.means + np.float32(0.1 * k))
            api.write(moved, source / f"frame_{k:04}.ply")
    else:
        api.write(scene, source, **({"lossless": True} if kind == "lossless.splc" else {}))
    arguments = [sys.executable, "-m", "splatcodec", "serve", str(source), "--port", "0", "--no-open", "--json"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        place, path = _made(process)
        assert len(list(temporary.glob("splatcodec-*/*.splc"))) == 1
        status, headers, content = ask(place, unquote(path))
        assert (status, headers["content-type"]) == (200, "application/vnd.splatcodec")
        if kind == "frames":
            with api.open_moving(content) as moving:
                assert moving.num_frames == 3
        else:
            assert 30 < api.decompress(content).num_gaussians <= 60
        process.send_signal(ending)
        _, said = process.communicate(timeout=20)
        assert process.returncode == (0 if ending == signal.SIGINT else 143)
    finally:
        process.kill()
        process.wait()
    assert "temporary" in said
    assert "Traceback" not in said
    assert list(temporary.iterdir()) == []


def test_edited_scenes_are_served_from_a_file_that_goes(tmp_path, capsys):
    temporary, source = tmp_path / "temporary", tmp_path / "scene.splc"
    temporary.mkdir()
    api.write(sample_scene(200).with_sh_degree(0), source, quality=70, effort=1)
    before, radius = source.read_bytes(), 2.0
    arguments = [sys.executable, "-m", "splatcodec", "serve", str(source), "--port", "0", "--no-open", "--json"]
    arguments += ["--crop-sphere", f"0,0,0,{radius}", "--translate", "10,0,0"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        place, path = _made(process)
        shown = api.decompress(ask(place, unquote(path))[2])
        assert 0 < shown.num_gaussians < 200
        assert np.linalg.norm(shown.means - np.float32([10, 0, 0]), axis=1).max() < radius + 0.1
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
    assert "crop-sphere" in said
    assert list(temporary.iterdir()) == []
    assert source.read_bytes() == before
    assert main(["serve", str(tmp_path), "--no-open", "--port", "0", "--scale", "2"]) == 2
    assert "one still scene" in capsys.readouterr().err


def test_what_cannot_be_read_leaves_no_temporary_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "broken.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 5\nend_header\n")
    assert main(["serve", str(tmp_path / "broken.ply"), "--no-open", "--port", "0"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["broken.ply"]
    assert "broken.ply" in capsys.readouterr().err


def test_a_folder_without_frames_is_one_of_scenes(folder, tmp_path, capsys):
    for path in (folder, tmp_path):  # also one with nothing in it: a list without scenes
        assert main(["serve", str(path), "--no-open", "--port", "0", "--scale", "2"]) == 2
        assert "one still scene" in capsys.readouterr().err


def test_tls(folder):
    with self_signed("127.0.0.1") as certificate:
        assert oct(os.stat(certificate[1]).st_mode & 0o777) == "0o600"
        with serving(folder, certificate=certificate) as place:
            assert ask(place, "/scenes/a.splc", tls=True)[0] == 200
    assert not os.path.exists(certificate[0])


def test_wrong_arguments(folder, small_files, tmp_path, capsys):
    assert main(["serve", str(tmp_path / "nothing"), "--no-open"]) == 2
    assert main(["serve", str(folder), "--port", "70000", "--no-open"]) == 2
    assert main(["serve", str(folder), "--throttle", "fast", "--no-open"]) == 2
    assert main(["serve", str(folder / "notes.txt"), "--no-open", "--port", "0"]) == 3
    assert "notes.txt" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ParameterError, match="cannot listen"):
        make_server(folder, ServeOptions(port=taken.getsockname()[1])).__enter__()
    for path, error in (("lossless", UnsupportedError), ("ply", FormatError)):
        with pytest.raises(error):
            make_server(small_files[path], ServeOptions(port=0)).__enter__()


def test_missing_packages_are_named(folder, monkeypatch):
    for name in ("starlette.applications", "segno", "cryptography"):
        monkeypatch.setitem(sys.modules, name, None)
    for work in (
        lambda: create_app(folder, ServeOptions()),
        lambda: qr_code("x"),
        lambda: self_signed("x").__enter__(),
    ):
        with pytest.raises(BackendUnavailableError, match=r"splatcodec\[serve\]"):
            work()


def test_qr_codes_are_drawn():
    text = qr_code("http://192.168.1.20:8000/player/0123456789ab/index.html?src=/scenes/a.splc")
    assert len(text.splitlines()) > 15
    assert qr_code("a") != qr_code("b")
