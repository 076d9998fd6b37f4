"""One run over several processes (`torchrun`): views are split over ranks, gradients averaged, the rest the same."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType

import torch

from ..errors import BackendUnavailableError, ParameterError, SplatCodecError

__all__ = ["Ranks"]


class Ranks:
    """The processes of this run; a context manager that joins and leaves them.

    `torchrun` says who is who in the environment (RANK, WORLD_SIZE, LOCAL_RANK); without it there is one process.
    """

    def __init__(self) -> None:
        try:
            self.count = int(os.environ.get("WORLD_SIZE", "1"))
            self.rank = int(os.environ.get("RANK", "0"))
            self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        except ValueError:
            raise ParameterError("RANK, WORLD_SIZE and LOCAL_RANK must be numbers") from None
        if not 0 <= self.rank < self.count:
            raise ParameterError(f"RANK {self.rank} of WORLD_SIZE {self.count}")

    def __enter__(self) -> Ranks:
        if self.count > 1:
            if not torch.distributed.is_available():
                raise BackendUnavailableError("this torch was built without torch.distributed")
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            try:
                torch.distributed.init_process_group(backend)
            except (RuntimeError, ValueError) as error:
                raise SplatCodecError(f"the processes do not find one another: {error}", hint="use torchrun") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.count > 1:
            torch.distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all ranks; the same bits on every rank."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def from_first(self, values: list[float]) -> list[float]:
        """The first rank's numbers, on every rank."""
        if self.count == 1:
            return values
        device = torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.broadcast(tensor, 0)
        return [float(value) for value in tensor.tolist()]
