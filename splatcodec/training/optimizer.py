"""Adam (Kingma and Ba, 2015) for the rows that a picture showed, and no others.

Most Gaussians are outside most pictures: leaving their moments alone saves the time, and keeps a Gaussian that is
seldom seen from drifting on old momentum. Each row counts its own steps, so that a new Gaussian starts as Adam does.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..render.kernel import kernel, run_threaded
from .splats import Splats

__all__ = ["adam_step"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-15
_MAX_STEPS = 1 << 14  # after so many steps the corrections are 1 to float32 precision
_ROWS_PER_TASK = 1 << 12


@kernel
def _adam_rows(first, last, rows, active, values, gradients, m1, m2, scale1, scale2, rate):
    """One step of rows[first:last]; `scale1`, `scale2` undo the bias of the moments, per row of `rows`."""
    b1, b2, epsilon = np.float32(_BETA1), np.float32(_BETA2), np.float32(_EPSILON)
    c1, c2 = np.float32(1.0 - _BETA1), np.float32(1.0 - _BETA2)
    for k in range(first, last):
        row = rows[k]
        step = rate * scale1[k]
        root = scale2[k]
        value, gradient, one, two = values[row], gradients[row], m1[row], m2[row]
        for j in range(active):
            g = gradient[j]
            a = b1 * one[j] + c1 * g
            b = b2 * two[j] + c2 * (g * g)
            one[j] = a
            two[j] = b
            value[j] -= step * a / (np.sqrt(b) * root + epsilon)


@kernel
def _finite_rows(first, last, rows, gradients, ok):
    for k in range(first, last):
        # NaN and infinity times zero are NaN, and stay it.
        total = np.float32(0.0)
        gradient = gradients[rows[k]]
        for j in range(len(gradient)):
            total += gradient[j] * np.float32(0.0)
        if total != np.float32(0.0):
            ok[k] = False


_steps = np.arange(1, _MAX_STEPS + 1)
_SCALE1 = (1.0 / (1.0 - _BETA1**_steps)).astype(np.float32)
_SCALE2 = (1.0 / np.sqrt(1.0 - _BETA2**_steps)).astype(np.float32)


def adam_step(
    splats: Splats,
    gradients: Mapping[str, torch.Tensor],
    visible: torch.Tensor,
    rates: Mapping[str, float],
    *,
    active: Mapping[str, int] | None = None,
    num_threads: int = 1,
) -> int:
    """Move the visible rows of all parameters.

    Args:
        splats: parameters and moments; changed in place.
        gradients: by parameter name, shaped as the parameters; a parameter without is left alone.
        visible: (N,) bool.
        rates: learning rate by parameter name.
        active: of these parameters only so many leading values of a row are moved (SH bands not yet in use).
        num_threads: on the CPU; the result does not depend on it.

    Returns:
        How many rows were left out because a gradient in them was not finite.
    """
    if splats.device.type != "cpu":
        return _adam_torch(splats, gradients, visible, rates)
    rows = np.flatnonzero(visible.numpy())
    flat = {name: _rows(gradient) for name, gradient in gradients.items()}
    ok = np.ones(len(rows), np.bool_)
    blocks = [(k, min(k + _ROWS_PER_TASK, len(rows))) for k in range(0, len(rows), _ROWS_PER_TASK)]
    checks = [(*block, rows, gradient, ok) for gradient in flat.values() if gradient.shape[1] for block in blocks]
    run_threaded(_finite_rows, checks, num_threads)
    bad = int(len(ok) - np.count_nonzero(ok))
    if bad:
        rows = rows[ok]
        blocks = [(k, min(k + _ROWS_PER_TASK, len(rows))) for k in range(0, len(rows), _ROWS_PER_TASK)]
    steps = splats.steps.numpy()
    steps[rows] += 1
    at = np.minimum(steps[rows], _MAX_STEPS) - 1
    scale1, scale2 = _SCALE1[at], _SCALE2[at]
    tasks: list[tuple[Any, ...]] = []
    for name, gradient in flat.items():
        values = _rows(splats.params[name].detach())
        first, second = (_rows(moment) for moment in splats.moments[name])
        columns = min((active or {}).get(name, values.shape[1]), values.shape[1])
        if columns:
            rate = np.float32(rates[name])
            tasks += [
                (*block, rows, columns, values, gradient, first, second, scale1, scale2, rate) for block in blocks
            ]
    run_threaded(_adam_rows, tasks, num_threads)
    return bad


def _rows(tensor: torch.Tensor) -> Any:
    """A tensor as an array (N, D) that shares its memory."""
    return tensor.contiguous().numpy().reshape(len(tensor), -1)


def _adam_torch(
    splats: Splats, gradients: Mapping[str, torch.Tensor], visible: torch.Tensor, rates: Mapping[str, float]
) -> int:
    """The same in plain torch, for other devices: the definition."""
    with torch.no_grad():
        finite = torch.ones_like(visible)
        for gradient in gradients.values():
            finite &= torch.isfinite(gradient.reshape(len(visible), -1)).all(dim=1)
        bad = int((visible & ~finite).sum())
        rows = torch.nonzero(visible & finite)[:, 0]
        splats.steps[rows] += 1
        steps = splats.steps[rows].clamp(max=_MAX_STEPS).double()
        scale1, scale2 = (1 / (1 - _BETA1**steps)).float(), (1 / (1 - _BETA2**steps).sqrt()).float()
        for name, gradient in gradients.items():
            g = gradient[rows]
            shape = (-1, *([1] * (g.ndim - 1)))
            first, second = splats.moments[name]
            a = _BETA1 * first[rows] + (1 - _BETA1) * g
            b = _BETA2 * second[rows] + (1 - _BETA2) * g * g
            first[rows], second[rows] = a, b
            change = rates[name] * scale1.reshape(shape) * a / (b.sqrt() * scale2.reshape(shape) + _EPSILON)
            splats.params[name][rows] -= change
    return bad
