"""What the commands say and where: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import SplatCodecError, SplatCodecWarning

__all__ = ["Console", "jsonable"]

_BAR_CELLS = 30
_MIN_REDRAW_S = 0.05


class Console:
    """The terminal as the commands see it.

    Args:
        verbosity: -1 quiet (errors and asked-for output only), 0 normal, 1 verbose.
        as_json: the result is one JSON object; summaries for people are left out.
    """

    def __init__(self, verbosity: int = 0, as_json: bool = False) -> None:
        self.verbosity = verbosity
        self.as_json = as_json
        self._bar = verbosity >= 0 and sys.stderr.isatty()
        self._bar_shown = False
        self._drawn_at = 0.0

    @property
    def verbose(self) -> bool:
        """Whether details were asked for."""
        return self.verbosity > 0

    def result(self, text: str) -> None:
        """Print what the command was called for.

        Raises:
            SplatCodecError: stdout cannot be written, unless nobody reads it any more (BrokenPipeError).
        """
        self._clear_bar()
        try:
            print(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise SplatCodecError(f"cannot write the result: {error.strerror or error}") from None

    def summary(self, text: str) -> None:
        """Print what was done, where the real result is a file."""
        if self.verbosity >= 0 and not self.as_json:
            self.result(text)

    def json(self, facts: Mapping[str, Any]) -> None:
        """Print one JSON object; numbers that JSON lacks become null."""
        self.result(json.dumps(jsonable(facts), indent=2, ensure_ascii=False, allow_nan=False))

    def note(self, text: str) -> None:
        """Something worth knowing, on stderr."""
        if self.verbosity >= 0:
            self._say(text)

    def detail(self, text: str) -> None:
        """Something that only `--verbose` shows, on stderr."""
        if self.verbose:
            self._say(text)

    def error(self, text: str) -> None:
        """Why the command failed, on stderr, always."""
        self._say(text)

    def _say(self, text: str) -> None:
        self._clear_bar()
        print(f"splatcodec: {text}", file=sys.stderr)

    def progress(self, stage: str, share: float) -> None:
        """Draw a progress bar, if somebody watches; `share` is 0..1."""
        now = time.monotonic()
        if not self._bar or (now - self._drawn_at < _MIN_REDRAW_S and share < 1.0):
            return
        self._drawn_at = now
        full = round(_BAR_CELLS * min(max(share, 0.0), 1.0))
        line = f"[{'#' * full}{'.' * (_BAR_CELLS - full)}] {100 * share:3.0f} % {stage}"
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{line[:width]}")
        sys.stderr.flush()
        self._bar_shown = True

    def steps(self, stage: str) -> Any:
        """`progress` in the form of callbacks that count: (done, in all)."""
        return lambda done, total: self.progress(stage, done / total if total else 1.0)

    def close(self) -> None:
        """Take the progress bar away."""
        self._clear_bar()

    def _clear_bar(self) -> None:
        if self._bar_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._bar_shown = False

    @contextmanager
    def catch_warnings(self) -> Iterator[None]:
        """Show each SplatCodecWarning as one note; those of other packages only to the verbose."""
        seen: set[str] = set()

        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            text = str(message)
            if text in seen:
                return
            seen.add(text)
            if issubclass(category, SplatCodecWarning):
                self.note(f"warning: {text}")
            else:
                self.detail(f"warning: {category.__name__}: {text}")

        with warnings.catch_warnings():
            warnings.simplefilter("always", SplatCodecWarning)
            warnings.showwarning = show
            yield


def jsonable(value: Any) -> Any:
    """`value` with tuples as lists, numpy scalars as numbers and non-finite numbers as None.

    >>> jsonable({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # numpy, without importing it
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
