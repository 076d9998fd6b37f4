"""docs/formats.md says what the code does."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import formats_table
import pytest

from splatcodec import formats

PAGE = (Path(__file__).parent.parent / "docs" / "formats.md").read_text()


def test_what_formats_hold_is_current():
    """Every cell; bounds that an encoder's choices move may be off by a factor of three."""
    table = formats_table.holds()
    stated = re.search("<!-- holds: begin -->\n(.*)\n<!-- holds: end -->", PAGE, re.DOTALL)
    assert stated
    message = f"run python tools/formats_table.py --holds --write\n{table}"
    have, wanted = ([row.split(" | ") for row in text.splitlines()] for text in (stated[1], table))
    assert [len(row) for row in have] == [len(row) for row in wanted], message
    for a, b in itertools.chain.from_iterable(zip(*rows) for rows in zip(have, wanted)):
        try:
            assert a == b or 1 / 3 < float(a) / float(b) < 3, message
        except ValueError:
            # Harmonics: a degree, then a bound.
            assert a.partition(", 0.")[0] == b.partition(", 0.")[0], message


def test_every_format_has_a_round_trip():
    trips = re.search("<!-- round trips: begin -->(.*)<!-- round trips: end -->", PAGE, re.DOTALL)
    assert trips
    for fmt, version in formats_table.written():
        assert f"| {formats_table.label(fmt, version)} |" in trips[1], "run python tools/formats_table.py --write"


def test_tables_are_replaced_between_their_marks():
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb"
    assert formats_table.replaced(page, "x", r"new \1") == "a\n<!-- x: begin -->\nnew \\1\n<!-- x: end -->\nb"
    with pytest.raises(AssertionError):
        formats_table.replaced(page, "y", "new")


def test_every_format_is_in_the_table():
    for fmt in formats.formats().values():
        assert f"| {fmt.title}" in PAGE
