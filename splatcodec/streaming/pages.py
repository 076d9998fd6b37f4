"""Pages that show a scene without this package behind them: one self-contained file, or a folder for any static host.

The player is plain modules that import nothing but each other. `bundle` joins them into one classic script: each module
becomes a function that returns its exports, called once, where it is first imported. Its Workers run the same script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import posixpath
import re
from pathlib import Path

from ..errors import FormatError, UnsupportedError
from ..files import PathLike, atomic_folder, atomic_write, open_for_reading, read_bytes
from ..limits import DEFAULT_LIMITS, Limits

__all__ = ["MEDIA_TYPE", "bundle", "check_playable", "export_html", "package_scene", "player_files", "write_page"]

#: Media type of `.splc` files.
MEDIA_TYPE = "application/vnd.splatcodec"
#: Base64 and a page of it are held in memory, by the browser too.
MAX_EXPORT_BYTES = 1 << 28

_PLAYER = Path(__file__).resolve().parent.parent / "player"
_WORKERS = ("loader.js", "sorter.js")
# What other engines and programs use, no page.
_FOR_PROGRAMS = ("ply.js", "spark.js", "playcanvas.js", "decoder/worker.js")
_IMPORT = re.compile(r'^import\s+(?:(?P<what>\{[^}]*\}|\*\s+as\s+\w+)\s+from\s+)?"(?P<path>\./[^"]+)";$', re.MULTILINE)
_LATER = re.compile(r'\bimport\("(?P<path>\./[^"]+)"\)')
_PLAYABLE = {"lossy-1", "extras-1", "sequence-1"}
_EXPORT = re.compile(
    r"^export (?P<kind>async function\*?|function\*?|class|const) (?P<name>[A-Za-z_$][\w$]*)", re.MULTILINE
)
_EXPORT_LIST = re.compile(r"^export \{(?P<names>[^}]*)\};$", re.MULTILINE)


def player_files() -> dict[str, bytes]:
    """Every file of the player that a page needs, by path, such as `decoder/tile.js`."""
    paths = {path for pattern in ("*.html", "*.css", "**/*.js") for path in _PLAYER.glob(pattern)}
    paths -= {_PLAYER / name for name in _FOR_PROGRAMS}
    return {path.relative_to(_PLAYER).as_posix(): path.read_bytes() for path in sorted(paths)}


def check_playable(path: PathLike) -> dict[str, object]:
    """What the header and the table of contents say of a file that the player can show.

    Raises:
        FormatError: not a .splc file, or damaged.
        UnsupportedError: a file of the archive profile (lossless, with context mixing, or with learned parts).
    """
    from ..bitstream.container import Container

    with Container.open(path) as container:
        archive = sorted({feature.name for feature in container.features if feature.required} - _PLAYABLE)
        if archive:
            raise UnsupportedError(
                f"the player cannot show files that need {', '.join(archive)}",
                file=os.fspath(path),
                hint="compress the scene again, lossy and below effort 9 (`splatcodec compress` reads the file, too)",
            )
        return {"num_gaussians": container.num_gaussians, "version": ".".join(map(str, container.version))}


def bundle(entry: str = "page.js") -> str:
    """The player as one classic script, to be put in a page in a `<script id="code">`.

    Raises:
        FormatError: a module uses a form of import or export that is not expected.
    """
    modules: dict[str, str] = {}

    def visit(name: str) -> None:
        if name in modules:
            return
        modules[name] = ""  # a cycle would meet this
        source = _IN_BUNDLE if name == "workers.js" else (_PLAYER / name).read_text(encoding="utf-8")
        for match in (*_IMPORT.finditer(source), *_LATER.finditer(source)):
            visit(posixpath.normpath(posixpath.join(posixpath.dirname(name), match["path"])))
        modules[name] = _as_function(name, source)

    for name in (entry, *_WORKERS):
        visit(name)
    lines = ["(() => {", '"use strict";', "const modules = {}, made = {};"]
    lines.append("const use = (name) => (made[name] ??= modules[name]());")
    lines += modules.values()
    # A worker has no document; its first message says which of the two it is.
    starts = f"""if (typeof document !== "undefined") use({json.dumps(entry)});
else {{
  globalThis.onmessage = ({{ data }}) => {{ globalThis.onmessage = null; use(data.start); }};
}}"""
    return "\n".join([*lines, starts, "})();\n"])


# In a bundle both workers are the page's own script, from a blob.
_IN_BUNDLE = """
let address = "";
const start = (name) => {
  address ||= URL.createObjectURL(new Blob([document.getElementById("code").textContent], { type: "text/javascript" }));
  const worker = new Worker(address);
  worker.postMessage({ start: name });
  return worker;
};
export const startLoader = () => start("loader.js");
export const startSorter = () => start("sorter.js");
"""


def _as_function(name: str, source: str) -> str:
    def imported(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), match["path"]))
        call = f"use({json.dumps(path)})"
        if match["what"] is None:
            return f"{call};"
        if match["what"].startswith("*"):
            return f"const {match['what'].split()[-1]} = {call};"
        names = re.sub(r"(\w+)\s+as\s+(\w+)", r"\1: \2", match["what"])
        return f"const {names} = {call};"

    def later(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), match["path"]))
        return f"Promise.resolve().then(() => use({json.dumps(path)}))"

    exports = [match["name"] for match in _EXPORT.finditer(source)]
    for match in _EXPORT_LIST.finditer(source):
        exports += [part.strip() for part in match["names"].split(",") if part.strip()]
    source = _LATER.sub(later, source)
    body = _EXPORT_LIST.sub("", _EXPORT.sub(r"\g<kind> \g<name>", _IMPORT.sub(imported, source)))
    left = re.search(r"^(?:import|export)\b.*|\bimport\.meta\b.*", body, re.MULTILINE)
    if left or " as " in "".join(exports):
        raise FormatError(f"cannot bundle {left[0] if left else exports}", file=name)
    return f"modules[{json.dumps(name)}] = () => {{\n{body}\nreturn {{ {', '.join(exports)} }};\n}};"


def _hash_of(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def export_html(
    source: PathLike,
    output: PathLike,
    *,
    title: str | None = None,
    overwrite: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> int:
    """Write one page that shows a scene, from disk too: player and file are in it, nothing is fetched.

    Args:
        source: a `.splc` file that the player can show.
        output: the page.
        title: of the page; the file's name if None.

    Returns:
        Bytes of the page.

    Raises:
        LimitExceededError: the file has more than 256 MiB; put it beside a page instead (`package_scene`).
        FormatError, UnsupportedError: as `check_playable`.
    """
    check_playable(source)
    content = read_bytes(source, min(MAX_EXPORT_BYTES, limits.max_array_bytes))
    # A page's text ends at the first closing tag, wherever it stands.
    code = re.sub("</(?=script)", r"<\\/", bundle(), flags=re.IGNORECASE)
    style = (_PLAYER / "player.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash_of(code)} 'wasm-unsafe-eval' blob:; worker-src blob:; "
        f"style-src {_hash_of(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = (_PLAYER / "index.html").read_text(encoding="utf-8")
    page = re.sub(r'\s*<link rel="(?:modulepreload|stylesheet)"[^>]*>', "", page)
    page = re.sub(r'content="default-src[^"]*"', lambda _: f'content="{policy}"', page)
    name = os.path.basename(os.fspath(source)) if title is None else title
    page = re.sub(r"<title>[^<]*</title>", lambda _: f"<title>{html.escape(name)}</title>", page)
    page = re.sub(r'\s*<script type="module"[^>]*></script>', "", page)
    page = page.replace("</head>", f"  <style>{style}</style>\n  </head>")
    scene = base64.b64encode(content).decode("ascii")
    scripts = f'<script type="text/plain" id="content">{scene}</script>\n    <script id="code">{code}</script>'
    page = page.replace("</body>", f"  {scripts}\n  </body>")
    written = page.encode("utf-8")
    with atomic_write(output, overwrite) as file:
        file.write(written)
    return len(written)


_NOTE = "# For hosts that read this file (Cloudflare Pages, Netlify); docs/player.md has the same for others.\n"
_SCENE_HEADERS = f"""/*.splc
  Content-Type: {MEDIA_TYPE}
  Cache-Control: no-cache
"""
_PLAYER_HEADERS = """/player/*
  Cache-Control: max-age=3600
"""


def write_page(base: Path, scene: str, headers: str) -> dict[str, int]:
    """Write the page, the player and `_headers` into a folder.

    Args:
        base: the folder. scene: address of what the page shows, relative to it. headers: of the scene, for `_headers`.

    Returns:
        Bytes of each file, by its path in the folder.
    """
    files: dict[str, int] = {}
    for name, content in player_files().items():
        if name == "index.html":
            # One level up, where a link to the folder finds it.
            text = content.decode().replace('"./', '"./player/')
            first = '<meta name="referrer"'
            text = text.replace(first, f'<meta name="splatcodec-src" content="{scene}" />\n    ' + first)
            name, content = "index.html", text.encode()
        else:
            name = f"player/{name}"
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(content)
        files[name] = len(content)
    text = _NOTE + headers + _PLAYER_HEADERS
    (base / "_headers").write_text(text)
    files["_headers"] = len(text)
    return files


def package_scene(source: PathLike, folder: PathLike, *, overwrite: bool = False) -> dict[str, int]:
    """Write a folder that any static host can serve: the page, the player, the scene.

    Returns:
        Bytes of each file, by its path in the folder.

    Raises:
        FormatError, UnsupportedError: as `check_playable`.
        ParameterError: the folder holds a page already and `overwrite` is false.
    """
    check_playable(source)
    with atomic_folder(folder, overwrite, last="index.html") as place:
        base = Path(place)
        files = write_page(base, "scene.splc", _SCENE_HEADERS)
        with open_for_reading(source) as file, open(base / "scene.splc", "wb") as copy:
            while block := file.read(1 << 20):
                copy.write(block)
        files["scene.splc"] = (base / "scene.splc").stat().st_size
    return files
