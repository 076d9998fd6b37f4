"""The META chunk: facts about a scene, as JSON (bitstreams/SPEC.md, section 6). Needs no decoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError
from ..limits import DEFAULT_LIMITS, Limits
from ..version import __version__
from .container import Chunk, Container

__all__ = ["metadata_chunk", "read_metadata"]


def metadata_chunk(metadata: Mapping[str, Any]) -> Chunk:
    """The META chunk of facts that are JSON-able, with the generator's name added."""
    facts = {"generator": f"splatcodec {__version__}", **metadata}
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return Chunk("META", text.encode(), critical=False)


def read_metadata(container: Container, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """The META object, or an empty one where there is no such chunk.

    Raises:
        FormatError: not a JSON object.
    """
    entries = container.of_type("META")
    if not entries:
        return {}
    place: dict[str, Any] = {"file": container.name, "chunk": "META", "offset": entries[0].offset}
    text = container.read(entries[0], limits.max_json_bytes)
    try:
        metadata = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"metadata is not JSON: {error}", **place) from None
    if not isinstance(metadata, dict):
        raise FormatError("metadata is not an object", **place)
    return metadata
