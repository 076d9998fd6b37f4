"""JSON objects whose members are checked as they are taken out; what is wrong is a FormatError that names the field."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeGuard

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

__all__ = ["JsonObject", "parse_object"]

_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class JsonObject:
    """A JSON object of the part `chunk` of a file; `where` is its place, such as "means."."""

    def __init__(self, members: dict[str, Any], chunk: str, where: str = "") -> None:
        self._members = members
        self._where = where
        self.chunk = chunk

    def __contains__(self, key: str) -> bool:
        return self._members.get(key) is not None

    def get(self, key: str) -> Any:
        """The member as it is; None where there is none."""
        return self._members.get(key)

    def fail(self, message: str, key: str) -> NoReturn:
        """Raise FormatError about a member."""
        raise FormatError(message, chunk=self.chunk, field=self._where + key)

    def _take(self, key: str, kind: type, what: str) -> Any:
        value = self._members.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fail(f"is not {what}", key)
        return value

    def object(self, key: str) -> JsonObject:
        """A member that is an object."""
        return JsonObject(self._take(key, dict, "an object"), self.chunk, f"{self._where}{key}.")

    def objects(self, key: str) -> list[JsonObject]:
        """A member that is a list of objects."""
        members = self.list(key)
        for i, member in enumerate(members):
            if not isinstance(member, dict):
                self.fail("is not an object", f"{key}[{i}]")
        return [JsonObject(member, self.chunk, f"{self._where}{key}[{i}].") for i, member in enumerate(members)]

    def list(self, key: str) -> list[Any]:
        """A member that is a list."""
        values: list[Any] = self._take(key, list, "a list")
        return values

    def text(self, key: str) -> str:
        """A member that is text."""
        value: str = self._take(key, str, "text")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """A member that is a whole number from `low` to `high`."""
        value = self._take(key, int, "a whole number")
        if not low <= value <= high:
            self.fail(f"is {str(value)[:40]}, expected {low} to {high}", key)
        return int(value)

    def number(self, key: str) -> float:
        """A member that is a number which float32 can hold."""
        value = self._members.get(key)
        if not _is_number(value):
            self.fail(f"{str(value)[:40]!r} is not a finite number", key)
        return float(value)

    def numbers(self, key: str, count: int) -> npt.NDArray[np.float64]:
        """A member that is a list of `count` such numbers."""
        values = self.list(key)
        if len(values) != count:
            self.fail(f"has {len(values)} numbers, expected {count}", key)
        for i, value in enumerate(values):
            if not _is_number(value):
                self.fail(f"{str(value)[:40]!r} is not a finite number", f"{key}[{i}]")
        return np.array(values, np.float64)


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a JSON value is a number that float32 can hold; True and False are none."""
    # Compared as Python numbers, so that integers of any length are safe; infinity is larger than the bound.
    return type(value) in (int, float) and -_MAX_FLOAT32 <= value <= _MAX_FLOAT32


def parse_object(text: bytes, chunk: str) -> JsonObject:
    """The object that the JSON text `chunk` of a file holds.

    Raises:
        FormatError: not UTF-8, not JSON, no object, nested too deeply, NaN or infinity in it.
    """

    def not_json(name: str) -> NoReturn:
        raise FormatError(f"{name} is not JSON", chunk=chunk, field="")

    try:
        members = json.loads(text.decode("utf-8-sig"), parse_constant=not_json)
    except RecursionError:
        raise FormatError("nested too deeply", chunk=chunk) from None
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8", chunk=chunk, offset=error.start) from None
    except json.JSONDecodeError as error:
        raise FormatError(f"not JSON: {error.msg}", chunk=chunk, offset=error.pos) from None
    except FormatError:
        raise
    except ValueError as error:  # numbers of thousands of digits
        raise FormatError(f"not JSON: {error}", chunk=chunk) from None
    if not isinstance(members, dict):
        raise FormatError("not a JSON object", chunk=chunk)
    return JsonObject(members, chunk)
