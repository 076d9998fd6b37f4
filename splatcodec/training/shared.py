"""Parameters that all Gaussians share: tables, networks, codebooks, entropy models; with an optimizer of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["SharedParameters"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.99, 1e-15


class SharedParameters:
    """Tensors by name with Adam's moments (Kingma and Ba, 2015); the trainer steps and keeps them.

    Attributes:
        params: leaves of the graph, float32.
        constants: further float32 tensors that checkpoints keep, such as a teacher's.
    """

    def __init__(self) -> None:
        self.params: dict[str, torch.Tensor] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self._moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._steps: dict[str, int] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.params[name]

    def __contains__(self, name: str) -> bool:
        return name in self.params

    def __len__(self) -> int:
        return len(self.params)

    def add(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Add a parameter, or put another in its place; the optimizer begins anew with it."""
        leaf = value.detach().to(torch.float32).clone().contiguous().requires_grad_()
        self.params[name] = leaf
        self._moments[name] = torch.zeros_like(leaf.detach()), torch.zeros_like(leaf.detach())
        self._steps[name] = 0
        return leaf

    def gradients(self) -> dict[str, torch.Tensor]:
        """By name, zeros where a parameter took no part in the loss; for sums over processes."""
        return {n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in self.params.items()}

    def step(self, gradients: Mapping[str, torch.Tensor], rates: Mapping[str, float]) -> bool:
        """Move all parameters that have a gradient; False, and nothing moved, where one is not finite."""
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
            return False
        with torch.no_grad():
            for name, gradient in gradients.items():
                self._steps[name] += 1
                count = self._steps[name]
                first, second = self._moments[name]
                first.lerp_(gradient, 1 - _BETA1)
                second.lerp_(gradient.square(), 1 - _BETA2)
                root = (second / (1 - _BETA2**count)).sqrt_().add_(_EPSILON)
                self.params[name].addcdiv_(first, root, value=-rates[name] / (1 - _BETA1**count))
        return True

    def clear_gradients(self) -> None:
        """Forget gradients."""
        for value in self.params.values():
            value.grad = None

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Everything as arrays by name, for checkpoints."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, value in self.params.items():
            first, second = self._moments[name]
            arrays |= {f"shared/{name}": value.detach().cpu().numpy()}
            arrays |= {f"shared first/{name}": first.cpu().numpy(), f"shared second/{name}": second.cpu().numpy()}
            arrays[f"shared steps/{name}"] = np.array([self._steps[name]], np.int64)
        arrays |= {f"shared constant/{name}": value.cpu().numpy() for name, value in self.constants.items()}
        return arrays

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]], device: torch.device) -> None:
        """The inverse of `columns`; other names in `arrays` are not looked at."""
        self.__init__()  # type: ignore[misc]
        for name in [key.removeprefix("shared/") for key in arrays if key.startswith("shared/")]:
            self.add(name, torch.from_numpy(arrays[f"shared/{name}"].copy()).to(device))
            first, second = (arrays[f"shared {part}/{name}"].copy() for part in ("first", "second"))
            self._moments[name] = torch.from_numpy(first).to(device), torch.from_numpy(second).to(device)
            self._steps[name] = int(arrays[f"shared steps/{name}"][0])
        for key in arrays:
            if key.startswith("shared constant/"):
                self.constants[key.removeprefix("shared constant/")] = torch.from_numpy(arrays[key].copy()).to(device)
