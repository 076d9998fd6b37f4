"""The `splatcodec` command: finds the commands, runs one, turns every outcome into an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from ..errors import SplatCodecError
from ..version import __version__
from . import commands
from .console import Console
from .edit_options import attach_numbers
from .exit_codes import ExitCode, exit_code

__all__ = ["build_parser", "main"]

_EXIT_CODES = (
    "exit codes: 0 ok, 1 internal error or full disk, 2 wrong arguments, 3 bad input file, 4 unsupported, "
    "5 limit, 6 backend missing, 7 verify or compare failed, 130 interrupted"
)


def find_commands() -> dict[str, ModuleType]:
    """Command modules by name, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__) if module.name[0] != "_")
    return {name.replace("_", "-"): importlib.import_module(f"{commands.__name__}.{name}") for name in names}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="splatcodec",
        description="Compress, convert, compare and render 3D Gaussian Splatting scenes.",
        epilog=f"'splatcodec COMMAND --help' explains a command. {_EXIT_CODES}",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"splatcodec {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, module in find_commands().items():
        summary, _, description = (module.__doc__ or "").partition("\n")
        command = subparsers.add_parser(
            name,
            help=summary.rstrip("."),
            description=f"{summary}\n{description.rstrip()}",
            epilog="exit codes: see docs/cli.md, or 'splatcodec --help'",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        loudness = command.add_mutually_exclusive_group()
        loudness.add_argument(
            "--quiet", "-q", action="store_const", dest="verbosity", const=-1, help="say nothing but errors and results"
        )
        loudness.add_argument(
            "--verbose", "-v", action="store_const", dest="verbosity", const=1, help="say more, with tracebacks"
        )
        command.set_defaults(run=module.run, verbosity=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None takes the process's.

    Returns:
        The exit code, see `ExitCode`.
    """
    parser = build_parser()
    try:
        args = _parse(parser, sys.argv[1:] if argv is None else argv)
        if args.command is None:
            parser.print_help()
            return ExitCode.USAGE
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else ExitCode.USAGE
    console = Console(args.verbosity, getattr(args, "json", False))
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _run(args, console)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _silence_stdout()
        return ExitCode.INTERNAL
    except OSError as error:
        console.error(f"error: cannot write the result: {error.strerror or error}")
        _silence_stdout()
        return ExitCode.INTERNAL


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """`parse_args` that takes negative numbers after options, and paths between and after options."""
    args, rest = parser.parse_known_args(attach_numbers(argv))
    if rest and hasattr(args, "paths") and not any(argument.startswith("-") for argument in rest):
        args.paths += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _run(args: argparse.Namespace, console: Console) -> int:
    try:
        with console.catch_warnings():
            return int(args.run(args, console))
    except KeyboardInterrupt:
        # Where it came inside source given to exec() (numba and dataclasses do so), `python -m` would end by the signal
        # though it was handled; other source that ends well clears that.
        exec("")
        console.error("interrupted; nothing half-written is left")
        return ExitCode.INTERRUPTED
    except SplatCodecError as error:
        _tell(error, console)
        return exit_code(error)
    except MemoryError as error:
        console.error("error: out of memory (try fewer --threads, or a machine with more)")
        _trace(error, console)
        return ExitCode.LIMIT
    except BrokenPipeError:
        raise
    except OSError as error:
        console.error(f"error: {error}")
        _trace(error, console)
        return ExitCode.INTERNAL
    except Exception as error:
        console.error(f"internal error: {type(error).__name__}: {error}")
        if not console.verbose:
            console.error("this is a bug; --verbose shows where, please report it with the command and the file")
        _trace(error, console)
        return ExitCode.INTERNAL
    finally:
        console.close()


def _tell(error: SplatCodecError, console: Console) -> None:
    console.error(f"error: {error}")
    _trace(error, console)


def _trace(error: BaseException, console: Console) -> None:
    if console.verbose:
        traceback.print_exception(error, file=sys.stderr)


def _silence_stdout() -> None:
    """Nobody reads on; keep Python from complaining when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(*_: Any) -> NoReturn:
    # An exception, so that half-written files are removed on the way out.
    raise SystemExit(ExitCode.TERMINATED)
