"""A small HTTP server for scenes: the player's files, and `.splc` files by ranges.

Files are sent as they are on disk, never compressed again, by one range or whole. What is outside of the folder,
hidden, or no `.splc` file is not there. Only this machine can connect unless another host is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import hashlib
import html
import ipaddress
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from ..errors import BackendUnavailableError, ParameterError, SplatCodecError
from ..files import os_error
from .package import AUDIO_TYPES
from .pages import MEDIA_TYPE, check_playable, player_files

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = [
    "ServeOptions",
    "Throttle",
    "create_app",
    "list_scenes",
    "make_server",
    "player_prefix",
    "qr_code",
    "self_signed",
]

_HINT = "pip install 'splatcodec[serve]'"
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "::1")
_BLOCK_BYTES = 1 << 16
#: A client that does not take a block within this time is let go.
_SEND_TIMEOUT_S = 30.0
#: A client has this long to send the head of a request.
_HEAD_TIMEOUT_S = 10.0
_CATCH_UP_S = 0.01
_MAX_CONNECTIONS = 128
_MAX_LISTED = 10_000
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
# Of scenes, and what else a package of a moving scene holds.
_SCENE_TYPES = {".splc": MEDIA_TYPE, ".json": "application/json"} | AUDIO_TYPES
_MANIFEST = "manifest.json"
# What scripts, workers included, may do: the same as the page's own policy.
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src data:; media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_COMMON = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy": _POLICY,
}

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Throttle:
    """A slow link, for tests: everything that is sent shares it.

    Attributes:
        rate_bits: bits a second.
        delay_s: from a request to the first byte of its answer, seconds (a round trip); once more for a new connection.
    """

    rate_bits: float
    delay_s: float


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        host: address to listen on; anything but this machine's own lets others connect.
        port: 0 takes a free one.
        cors: origins whose pages may read scenes, "*" for all; None: only pages from here.
        throttle: a slow link, or None.
        certificate: paths of certificate and key (PEM), or None for plain HTTP.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    cors: str | None = None
    throttle: Throttle | None = None
    certificate: tuple[str, str] | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in _LOCAL_HOSTS


def list_scenes(target: Path) -> list[str]:
    """Paths of scenes that a file or folder offers: `.splc` files and manifests of packages, at most 10,000."""
    if target.is_file():
        return [target.name]
    found = []
    for folder, folders, names in os.walk(target):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(target)
        if _MANIFEST in names:  # what else is there are its segments
            found.append((inside / _MANIFEST).as_posix())
            folders.clear()
            continue
        for name in sorted(names):
            path = _resolve(target, (inside / name).as_posix())
            if path is not None and path.is_file():
                found.append((inside / name).as_posix())
        if len(found) > _MAX_LISTED:
            break
    return found[:_MAX_LISTED]


def _resolve(target: Path, relative: str) -> Path | None:
    """The file that a path in an address means, or None if there is none that may be sent."""
    parts = relative.split("/")
    if any(not part or part.startswith(".") or "\\" in part or "\0" in part or ":" in part for part in parts):
        return None
    suffix = os.path.splitext(relative)[1].lower()
    if suffix not in _SCENE_TYPES or (suffix == ".json" and parts[-1] != _MANIFEST):
        return None
    if target.is_file():
        return target.resolve() if relative == target.name and suffix == ".splc" else None
    root = target.resolve()
    try:
        # Links are followed first: one that leads out of the folder is as if it were not there.
        path = root.joinpath(*parts).resolve()
        if suffix not in (".splc", ".json") and not path.with_name(_MANIFEST).is_file():
            return None
    except (OSError, ValueError, RuntimeError):
        return None
    return path if path.is_relative_to(root) else None


_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """First and last byte (inclusive) of a Range header, None if it cannot be satisfied or is more than one range.

    >>> parse_range("bytes=0-99", 50), parse_range("bytes=-10", 50), parse_range("bytes=50-", 50)
    ((0, 49), (40, 49), None)
    """
    match = _RANGE.fullmatch(text.strip())
    if not match or not size:
        return None
    first, last = match[1], match[2]
    if not first:
        return (max(0, size - int(last)), size - 1) if last and int(last) else None
    start, end = int(first), min(int(last), size - 1) if last else size - 1
    return (start, end) if start <= end and start < size else None


def _etag_matches(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in [part.strip().removeprefix("W/") for part in header.split(",")]


def player_prefix() -> str:
    """Address of the player on a server: with a digest of its files, so that browsers may keep them for ever."""
    content = b"".join(name.encode() + content for name, content in player_files().items())
    return f"/player/{hashlib.sha256(content).hexdigest()[:12]}"


def check_installed() -> None:
    """Before any work that is done in order to serve.

    Raises:
        BackendUnavailableError: the extra `serve` is not installed.
    """
    try:
        import starlette.applications  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise BackendUnavailableError("serving needs starlette and uvicorn", hint=_HINT) from None


def create_app(target: Path, options: ServeOptions) -> Starlette:
    """The application: `/` leads to the player or lists scenes, `/scenes/...` are files, `/player/...` the player.

    Args:
        target: a `.splc` file, or a folder of them.

    Raises:
        BackendUnavailableError: the extra `serve` is not installed.
    """
    check_installed()
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import RedirectResponse, Response
    from starlette.routing import Route

    files = player_files()
    prefix = player_prefix()
    # Text is compressed once, here; an address with the digest never changes its content.
    packed = {name: gzip.compress(content, 9, mtime=0) for name, content in files.items()}

    def player_url(scene: str) -> str:
        return f"{prefix}/index.html?src={quote('/scenes/' + quote(scene))}"

    async def home(request: Request) -> Response:
        if target.is_file():
            return RedirectResponse(player_url(target.name), 307, {**_COMMON, "Cache-Control": "no-cache"})
        if (target / _MANIFEST).is_file():
            return RedirectResponse(player_url(_MANIFEST), 307, {**_COMMON, "Cache-Control": "no-cache"})
        rows = "".join(
            f'<li><a href="{html.escape(player_url(scene))}">{html.escape(scene)}</a></li>'
            for scene in list_scenes(target)
        )
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Scenes</title>'
            f"<h1>Scenes</h1><ul>{rows or '<li>There is no .splc file in this folder.</li>'}</ul></html>"
        )
        return Response(page, 200, {**_COMMON, "Cache-Control": "no-cache"}, "text/html")

    async def player(request: Request) -> Response:
        name = request.path_params["path"]
        if name not in files or f"/player/{request.path_params['digest']}" != prefix:
            return Response("not found", 404, _COMMON, "text/plain")
        headers = {
            **_COMMON,
            "Content-Type": _TYPES[os.path.splitext(name)[1]],
            "Cache-Control": "max-age=31536000, immutable",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Vary": "Accept-Encoding",
        }
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed[name], 200, {**headers, "Content-Encoding": "gzip"})
        return Response(files[name], 200, headers)

    async def scene(request: Request) -> Response:
        return await _send_scene(request, target, options)

    hosts = ["*"] if not options.is_local else list(_LOCAL_HOSTS)
    app = Starlette(
        routes=[
            Route("/", home, methods=["GET"]),
            Route("/player/{digest}/{path:path}", player, methods=["GET"]),
            Route("/scenes/{path:path}", scene, methods=["GET", "OPTIONS"]),
        ],
        # A page of another site may point its own name here; then the Host header is that name.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )
    app.state.player_url = player_url
    return app


async def _send_scene(request: Request, target: Path, options: ServeOptions) -> Response:
    from starlette.responses import Response, StreamingResponse

    headers = {**_COMMON, "Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
    origin = request.headers.get("origin")
    if options.cors and origin and options.cors in ("*", origin):
        headers |= {
            "Access-Control-Allow-Origin": options.cors,
            "Access-Control-Expose-Headers": "Content-Range, Content-Length, ETag, Accept-Ranges",
            "Access-Control-Allow-Headers": "Range, If-None-Match, If-Range",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Vary": "Origin",
        }
    else:
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
    if request.method == "OPTIONS":
        return Response(None, 204, headers)
    path = _resolve(target, request.path_params["path"])
    file: BinaryIO | None = None
    if path is not None:
        with contextlib.suppress(OSError):
            # What was a file a moment ago may be a link or a pipe by now.
            special = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            file = os.fdopen(os.open(path, os.O_RDONLY | special), "rb")
    if file is None:
        return Response("not found", 404, headers, "text/plain")
    facts = os.fstat(file.fileno())
    if not stat.S_ISREG(facts.st_mode):
        file.close()
        return Response("not found", 404, headers, "text/plain")
    size = facts.st_size
    etag = f'"{facts.st_mtime_ns:x}-{size:x}-{facts.st_ino:x}"'
    headers |= {"ETag": etag, "Content-Type": _SCENE_TYPES[os.path.splitext(request.url.path)[1].lower()]}
    asked = request.headers.get("range")
    if asked is not None and request.headers.get("if-range", etag).strip() != etag:
        asked = None
    first, last, status = 0, size - 1, 200
    answer: Response | None = None
    if _etag_matches(request.headers.get("if-none-match", ""), etag):
        answer = Response(None, 304, headers)
    elif asked is not None and len(request.headers.getlist("range")) == 1 and asked.strip().startswith("bytes"):
        span = parse_range(asked, size)
        if span is None:
            answer = Response(
                "one range of bytes of the file, please", 416, headers | {"Content-Range": f"bytes */{size}"}
            )
            answer.headers["Content-Type"] = "text/plain"
        else:
            first, last = span
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    if answer is not None:
        file.close()
        return answer
    headers["Content-Length"] = str(last + 1 - first)
    if request.method == "HEAD":
        file.close()
        return Response(None, status, headers)
    return StreamingResponse(_blocks(file, first, last + 1 - first), status, headers)


async def _blocks(file: BinaryIO, offset: int, count: int) -> AsyncIterator[bytes]:
    with file:
        file.seek(offset)
        while count > 0:
            block = await asyncio.to_thread(file.read, min(_BLOCK_BYTES, count))
            if not block:
                raise SplatCodecError("the file shrank while it was sent")
            count -= len(block)
            yield block


class _Impatient:
    """Lets a client go that does not take what it asked for."""

    def __init__(self, app: App, timeout_s: float = _SEND_TIMEOUT_S) -> None:
        self.app = app
        self.timeout_s = timeout_s

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async def patient(message: Message) -> None:
            await asyncio.wait_for(send(message), self.timeout_s)

        with contextlib.suppress(asyncio.TimeoutError):
            await self.app(scope, receive, patient)


class _Throttled:
    """All answers share one slow link."""

    def __init__(self, app: App, throttle: Throttle) -> None:
        self.app = app
        self.throttle = throttle
        self.free_at = 0.0
        self.known: set[Any] = set()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # A round trip for the answer, and one before it where the connection is new.
        client = tuple(scope.get("client") or ())
        trips = 1 if client in self.known else 2
        self.known.add(client)
        arrived = time.monotonic()

        async def slow(message: Message) -> None:
            if message["type"] == "http.response.start":
                await asyncio.sleep(max(0.0, arrived + trips * self.throttle.delay_s - time.monotonic()))
                await send(message)
                return
            body, more = message.get("body", b""), message.get("more_body", False)
            step = max(1024, int(self.throttle.rate_bits * 0.01 / 8))
            for at in range(0, len(body), step):
                piece = body[at : at + step]
                # Sleeps end late; what that lost is made up for.
                begin = max(time.monotonic() - _CATCH_UP_S, self.free_at)
                self.free_at = begin + 8 * len(piece) / self.throttle.rate_bits
                await asyncio.sleep(max(0.0, self.free_at - time.monotonic()))
                await send({"type": "http.response.body", "body": piece, "more_body": more or at + step < len(body)})
            if not body:
                await send(message)

        await self.app(scope, receive, slow)


def _patient_protocol() -> Any:
    """uvicorn's HTTP/1.1 protocol, with a limit on how long the head of a request may take."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._answering() and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            elif not self._answering() and self._timer is None:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            super().connection_lost(exc)

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self) -> None:
            self._timer = self.loop.call_later(_HEAD_TIMEOUT_S, self._give_up)

        def _give_up(self) -> None:
            self._timer = None
            if not self._answering():
                self.transport.close()

    return Protocol


@contextlib.contextmanager
def make_server(target: Path, options: ServeOptions) -> Iterator[tuple[uvicorn.Server, socket.socket, str]]:
    """A server that listens already; `server.run(sockets=[socket])` serves.

    Yields:
        The server, its socket, and the address to open.

    Raises:
        ParameterError: no such file or folder, or the address cannot be listened on.
        BackendUnavailableError: the extra `serve` is not installed.
    """
    check_installed()
    import uvicorn

    if target.is_file():
        check_playable(target)
    elif not target.is_dir():
        raise ParameterError("no such file or folder", file=os.fspath(target))
    app = create_app(target, options)
    wrapped: App = _Impatient(app)
    if options.throttle:
        wrapped = _Throttled(wrapped, options.throttle)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family, backlog=64)
    except OSError as error:
        place = f"{options.host}:{options.port}"
        if error.errno is not None:
            raise ParameterError(
                f"cannot listen on {place}: {error.strerror or error}", hint="--port 0 takes a free port"
            ) from None
        raise os_error(error, place, "listen on") from None
    with listener:
        certificate, key = options.certificate or (None, None)
        config = uvicorn.Config(
            wrapped,
            http=_patient_protocol(),
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=16384,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        host = options.host if options.host not in ("0.0.0.0", "::") else lan_address()
        scheme = "https" if certificate else "http"
        base = f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        path = app.state.player_url(target.name) if target.is_file() else "/"
        yield uvicorn.Server(config), listener, base + path


def lan_address() -> str:
    """The address under which other machines of the network see this one; nothing is sent to find it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def qr_code(text: str) -> str:
    """A QR code for a terminal.

    Raises:
        BackendUnavailableError: segno is not installed.
    """
    try:
        import segno
    except ImportError:
        raise BackendUnavailableError("a QR code needs segno", hint=_HINT) from None
    import io

    out = io.StringIO()
    segno.make(text, error="m").terminal(out=out, compact=True)
    return out.getvalue()


@contextlib.contextmanager
def self_signed(host: str) -> Iterator[tuple[str, str]]:
    """Paths of a certificate for `host` and localhost that nobody vouches for, and of its key; gone afterwards.

    Raises:
        BackendUnavailableError: cryptography is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise BackendUnavailableError("a self-signed certificate needs cryptography", hint=_HINT) from None
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    for address in {"127.0.0.1", lan_address(), host}:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "splatcodec serve")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    with tempfile.TemporaryDirectory(prefix="splatcodec-tls-") as folder:
        paths = (os.path.join(folder, "certificate.pem"), os.path.join(folder, "key.pem"))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        for path, content in zip(paths, (certificate.public_bytes(serialization.Encoding.PEM), private)):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
        yield paths
