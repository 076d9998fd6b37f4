"""Residual vector quantization while training: what is drawn is what the file will hold.

After Lee et al. ("Compact 3D Gaussian Representation for Radiance Field", 2024): each stage takes the entry nearest to
what the stages before left; gradients pass the choice unchanged (straight-through); codebooks start from k-means and
follow the values by a loss of their own. Usable alone:

>>> values = torch.randn(500, 3)
>>> vq = ResidualQuantizer.fitted(values, stages=3, entries=16)
>>> drawn, labels, loss = vq(values)
>>> drawn.shape, labels.shape
(torch.Size([500, 3]), (500, 3))
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ParameterError
from ..preprocess.codebooks import fit_codebooks, residual_labels

__all__ = ["ResidualQuantizer"]


class ResidualQuantizer:
    """Codebooks as a parameter.

    Args:
        codebooks: (S, C, D) float32; may be a leaf that an optimizer moves.
        step: entries are drawn, and stored, as multiples of it.
    """

    def __init__(self, codebooks: torch.Tensor, step: float = 1 / 256) -> None:
        if codebooks.ndim != 3 or not codebooks.numel():
            raise ParameterError("codebooks are (stages, entries, dimensions), each at least 1")
        self.codebooks = codebooks
        self.step = float(np.float32(step))

    @classmethod
    def fitted(
        cls,
        values: torch.Tensor,
        *,
        stages: int,
        entries: int,
        weights: torch.Tensor | None = None,
        step: float = 1 / 256,
        seed: int = 0,
    ) -> ResidualQuantizer:
        """Codebooks by k-means of values (N, D), N at least 1; with fewer values than entries there are N entries.

        Raises:
            ParameterError: no values, values that are not finite, or numbers out of range.
        """
        mass = None if weights is None else weights.detach().cpu().numpy()
        books = fit_codebooks(values.detach().cpu().numpy(), stages, entries, weights=mass, seed=seed)
        return cls(torch.from_numpy(books).to(values.device), step)

    def integers(self) -> npt.NDArray[np.int32]:
        """(S, C, D) entries in steps, as they are stored."""
        return np.rint(self.codebooks.detach().cpu().numpy().astype(np.float64) / self.step).astype(np.int32)

    def labels(self, values: torch.Tensor) -> npt.NDArray[np.int32]:
        """(N, S) labels of values (N, D): the entries as they are stored, nearest first."""
        books = (self.integers() * self.step).astype(np.float32)
        return residual_labels(values.detach().cpu().numpy(), books)

    def __call__(self, values: torch.Tensor) -> tuple[torch.Tensor, npt.NDArray[np.int32], torch.Tensor]:
        """Quantize, differentiably.

        Args:
            values: (N, D).

        Returns:
            (N, D) sums of entries, with the gradient passed to `values` unchanged; (N, S) labels; the loss of the
            codebooks: mean squared distance of what each stage was given from the entry it took, over N and C.
        """
        labels = self.labels(values)
        index = torch.from_numpy(labels.astype(np.int64)).to(values.device)
        left, loss = values.detach(), values.new_zeros(())
        total = torch.zeros_like(left)
        for stage, entries in enumerate(self.codebooks):
            rounded = torch.round(entries / self.step) * self.step
            taken = entries[index[:, stage]]
            loss = loss + (left - taken).square().sum()
            exact = rounded.detach()[index[:, stage]]
            left, total = left - exact, total + exact
        loss = loss / max(1, len(values) * self.codebooks.shape[1])
        return values + (total - values).detach(), labels, loss
