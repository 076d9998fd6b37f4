"""Where Gaussians are added and taken away while a scene is trained: one strategy a module, found without a list.

>>> sorted(strategies())
['adc', 'errors', 'mcmc', 'none']
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from ...errors import UnknownIdError
from .base import DensifyContext, Strategy

__all__ = ["DensifyContext", "Strategy", "strategies", "strategy_named"]


@functools.cache
def strategies() -> Mapping[str, type[Strategy]]:
    """Every strategy by name: the `STRATEGY` of each module here whose name has no leading underscore."""
    found: dict[str, type[Strategy]] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_") or module.name == "base":
            continue
        strategy = importlib.import_module(f"{__name__}.{module.name}").STRATEGY
        assert issubclass(strategy, Strategy), module.name
        assert strategy.name not in found, strategy.name
        found[strategy.name] = strategy
    return MappingProxyType(found)


def strategy_named(name: str) -> type[Strategy]:
    """The strategy of that name.

    Raises:
        UnknownIdError: there is none.
    """
    if name not in strategies():
        raise UnknownIdError.of("strategy", name, strategies())
    return strategies()[name]
