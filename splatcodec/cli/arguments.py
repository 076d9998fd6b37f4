"""Argument types and options that several commands share."""

from __future__ import annotations

import argparse
import re

__all__ = [
    "add_json",
    "add_overwrite",
    "add_threads",
    "box",
    "colour",
    "fraction_of",
    "human_bytes",
    "nonnegative_int",
    "positive_int",
    "size_bytes",
]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]?)(i?)b?", re.IGNORECASE)


def size_bytes(text: str) -> int:
    """Bytes from a number with an optional suffix: k, M, G (powers of 1000) or Ki, Mi, Gi (of 1024).

    >>> size_bytes("1.5M"), size_bytes("64Ki"), size_bytes("700")
    (1500000, 65536, 700)
    """
    match = _SIZE.fullmatch(text.strip())
    if not match or (match[3] and not match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 800000, 800k or 1.5M")
    power = " kmg".index(match[2].lower() or " ")
    count = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if count < 1:
        raise argparse.ArgumentTypeError("a size must be at least one byte")
    return count


def human_bytes(count: int) -> str:
    """A size for people.

    >>> human_bytes(812), human_bytes(1_234_567)
    ('812 bytes', '1.23 MB')
    """
    if count < 1000:
        return f"{count} bytes"
    power = 1
    while power < 4 and count >= 999.5 * 1000**power:
        power += 1
    value = count / 1000**power
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def positive_int(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1)


def nonnegative_int(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"must be {least} or more, not {value}")
    return value


def colour(text: str) -> tuple[float, float, float]:
    """Red, green and blue, each 0..1, separated by commas.

    >>> colour("1,0.5,0")
    (1.0, 0.5, 0.0)
    """
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a colour such as 1,1,1") from None
    if not all(0.0 <= part <= 1.0 for part in (red, green, blue)):
        raise argparse.ArgumentTypeError("red, green and blue must be 0 to 1")
    return red, green, blue


def box(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lowest and highest corner of a box, six numbers separated by commas.

    >>> box("-1,0,0,1,2,3")
    ((-1.0, 0.0, 0.0), (1.0, 2.0, 3.0))
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 6 or not all(a <= b for a, b in zip(numbers[:3], numbers[3:])):
        raise argparse.ArgumentTypeError(f"{text!r} is not a box such as -1,-1,-1,1,1,1")
    return tuple(numbers[:3]), tuple(numbers[3:])


def fraction_of(text: str) -> tuple[int, int]:
    """K/N: number K of N, from 0.

    >>> fraction_of("3/8")
    (3, 8)
    """
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N, with K from 0 to N - 1")
    return int(match[1]), int(match[2])


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """`--json`, which prints `what` as one object."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as one JSON object")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """`--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """`--threads`."""
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads to use (default: one a core); the result does not depend on it",
    )
