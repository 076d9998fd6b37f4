"""The neighbour loss of Self-Organizing Gaussian Grids: what lies side by side in the grid is to be alike.

After Morgenstern et al. (ECCV 2024, arXiv:2312.13299): every plane of values is compared by Huber's loss with itself
blurred, the blur taken as fixed. Windows end at the border of the grid here, and the last row may be short.
"""

from __future__ import annotations

import torch

__all__ = ["blurred_planes", "neighbor_loss"]

_KERNEL, _SIGMA = 5, 3.0


def blurred_planes(values: torch.Tensor, width: int) -> torch.Tensor:
    """(N, C) means over windows of 5 x 5 cells, weighted by a Gaussian of 3 cells; no gradient.

    Args:
        values: (N, C) in grid order, row by row.
        width: cells of a row, 1 to N; the last row may be short.
    """
    values = values.detach()
    count, channels = values.shape
    height = -(-count // width)
    planes = values.new_zeros((channels + 1, height * width))
    planes[:channels, :count] = values.T
    planes[channels, :count] = 1.0  # where there is something
    reach = _KERNEL // 2
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=values.device) / _SIGMA) ** 2)
    across = planes.reshape(channels + 1, 1, height, width)
    across = torch.nn.functional.conv2d(across, taps.to(values.dtype)[None, None, None], padding=(0, reach))
    across = torch.nn.functional.conv2d(across, taps.to(values.dtype)[None, None, :, None], padding=(reach, 0))
    sums = across.reshape(channels + 1, -1)[:, :count]
    return (sums[:channels] / sums[channels]).T


def neighbor_loss(values: torch.Tensor, width: int) -> torch.Tensor:
    """Mean Huber loss (delta 1) between values (N, C) in grid order and their blurred planes; 0 for no values."""
    if not values.numel():
        return values.sum()
    return torch.nn.functional.huber_loss(values, blurred_planes(values, min(width, len(values))))
