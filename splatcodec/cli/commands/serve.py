"""Show scenes in a browser, on this machine or on a phone.

Serves a .splc file, or a folder of them, together with the player, and opens it. Any other scene that can be read, also
a lossless one or a folder of frames, is compressed first, into a temporary file that is removed at the end. Only this
machine connects, unless --host says otherwise: with --host 0.0.0.0 everybody in the network can, and a QR code for a
phone is printed.
--tls makes a certificate that nobody vouches for: browsers warn, and go on if told so.

examples:
  splatcodec serve scene.splc
  splatcodec serve scene.ply
  splatcodec serve scenes/ --port 9000 --no-open
  splatcodec serve scene.splc --host 0.0.0.0
  splatcodec serve scene.splc --throttle 10M,50
  splatcodec serve scene.ply --crop-sphere 0,0,0,2 --rotate-xyz -90,0,0
"""

from __future__ import annotations

import argparse
import contextlib
import re
from pathlib import Path

from ..arguments import add_json, nonnegative_int, size_bytes
from ..console import Console
from ..edit_options import add_edit_options, has_edits
from ..exit_codes import ExitCode
from ..playable import playable_file

# As little work as there is, at a quality at which one looks at the scene and not at the codec.
_MAKING = {"effort": 1, "quality": 80.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("target", metavar="FILE|DIR", help=".splc file, folder of them, or any other scene")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="listen here (127.0.0.1: only this machine)"
    )
    parser.add_argument("--port", type=nonnegative_int, default=8000, metavar="N", help="port, 0 for a free one (8000)")
    parser.add_argument("--no-open", dest="open", action="store_false", help="do not open a browser")
    parser.add_argument("--no-qr", dest="qr", action="store_false", help="no QR code where other machines can connect")
    parser.add_argument("--tls", action="store_true", help="https with a self-signed certificate")
    parser.add_argument("--cors", metavar="ORIGIN", help="let pages from there read scenes; * for all")
    parser.add_argument(
        "--throttle", type=throttle, metavar="RATE,DELAY", help="a slow link: bits a second, ms a round trip (10M,50)"
    )
    add_edit_options(parser)
    add_json(parser, "the address")


def throttle(text: str) -> tuple[float, float]:
    """Bits a second and milliseconds.

    >>> throttle("10M,50"), throttle("500k,120ms")
    ((10000000.0, 50.0), (500000.0, 120.0))
    """
    match = re.fullmatch(r"([^,]+),([0-9]+(?:\.[0-9]+)?)(?:ms)?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate and a delay such as 10M,50")
    return float(size_bytes(match[1])), float(match[2])


def run(args: argparse.Namespace, console: Console) -> int:
    """Serve `args.target` until interrupted."""
    from ...errors import BackendUnavailableError, ParameterError
    from ...sequence.input import is_moving_source
    from ...streaming.server import (
        ServeOptions,
        Throttle,
        check_installed,
        list_scenes,
        make_server,
        qr_code,
        self_signed,
    )

    if args.port > 65535:
        raise ParameterError(f"port {args.port}", hint="0 to 65535")
    target = Path(args.target)
    if not target.exists():
        raise ParameterError("no such file or folder", file=args.target)
    check_installed()
    slow = Throttle(args.throttle[0], args.throttle[1] / 1000) if args.throttle else None
    with contextlib.ExitStack() as stack:
        # A folder without frames is one of scenes, also an empty one.
        if target.is_dir() and (list_scenes(target) or not is_moving_source(target)):
            if has_edits(args):
                raise ParameterError("edit steps are for one still scene", file=args.target)
        else:
            name = re.sub(r"[^\w.-]+", "-", target.resolve().stem).strip(".-") or "scene"  # part of the address
            target = Path(stack.enter_context(playable_file(args.target, args, console, name=name, **_MAKING)))
        certificate = stack.enter_context(self_signed(args.host)) if args.tls else None
        options = ServeOptions(args.host, args.port, args.cors, slow, certificate)
        server, listener, url = stack.enter_context(make_server(target, options))
        if args.json:
            console.json({"url": url, "tls": args.tls, "local": options.is_local})
        else:
            console.result(url)
        _flush()
        if args.tls:
            console.note(
                "the certificate is self-signed: the browser warns; go on there, or use plain http on this machine"
            )
        if not options.is_local:
            console.note("everybody who can reach this machine can see these scenes")
            if not args.tls:
                console.note("browsers decode moving scenes of --profile video over https only: --tls")
            if args.qr:
                try:
                    console.note(f"for a phone in the same network:\n{qr_code(url)}")
                except BackendUnavailableError as error:
                    console.note(str(error))
        console.note("Ctrl-C ends it")
        if args.open:
            import webbrowser

            webbrowser.open(url)
        # Ctrl-C is how this command ends.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    return ExitCode.OK


def _flush() -> None:
    import sys

    # Whoever started this waits for the address.
    sys.stdout.flush()
