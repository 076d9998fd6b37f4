"""Ways of training: one a module, found without a list.

>>> "plain" in methods()
True
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from ...errors import UnknownIdError
from .base import Method

__all__ = ["Method", "method_named", "methods"]


@functools.cache
def methods() -> Mapping[str, type[Method]]:
    """Every method by name: the `METHOD` of each module here whose name has no leading underscore."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_") or module.name == "base":
            continue
        method = importlib.import_module(f"{__name__}.{module.name}").METHOD
        assert issubclass(method, Method), module.name
        assert method.name not in found, method.name
        found[method.name] = method
    return MappingProxyType(found)


def method_named(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        UnknownIdError: there is none.
    """
    if name not in methods():
        raise UnknownIdError.of("method", name, methods())
    return methods()[name]
