"""What one worker needs of the others, with gradients: the number of workers must not change the mathematics.

Convention: each rank computes a loss whose MEAN over ranks is the global loss, and parameter gradients are averaged
over ranks. Every function here is exact under that convention, and the identity on one rank.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from models.precision import at_least_float32


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread: sums that threads share are rounded otherwise, and where cores are scarce threads
    wait for one another longer than a small kernel takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Ranks(Protocol):
    """The group of workers as a loss sees it."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, local: Tensor) -> Tensor:
        """(B,...) of every rank stacked in rank order to (size*B,...), with gradient back to every rank."""
        ...

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in one flat message per dtype."""
        ...


@dataclass(frozen=True, slots=True)
class OneRank:
    """A single worker: nothing to exchange."""

    rank: int = 0
    size: int = 1

    def gather(self, local: Tensor) -> Tensor:
        return local

    def average_(self, tensors: Iterable[Tensor]) -> None:
        pass


@dataclass(frozen=True, slots=True)
class ProcessGroupRanks:
    """The default torch.distributed group (gloo or nccl)."""

    rank: int
    size: int

    def gather(self, local: Tensor) -> Tensor:
        gathered: Tensor = _Gather.apply(local, self.rank, self.size)  # type: ignore[no-untyped-call]
        return gathered

    def average_(self, tensors: Iterable[Tensor]) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for group in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            flat /= self.size
            for tensor, mean in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(mean.view_as(tensor))


def current_ranks() -> Ranks:
    """The group this process belongs to: one rank unless torch.distributed was initialised with more."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ProcessGroupRanks(dist.get_rank(), dist.get_world_size())
    return OneRank()


def mean_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """The mean of values (M,...), of which ranks may have different numbers, such as the objects of their pictures.

    The sum of this rank's over the mean count of all ranks: its mean over ranks is the mean of everyone's values. 0
    where nobody has any.
    """
    count = values.new_tensor(float(values.numel()), dtype=torch.float64)
    ranks.average_([count])
    return values.sum() / count.clamp(min=1 / ranks.size).to(values.dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.rows = rank, local.shape[0]
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(size)]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # Every rank's loss used this rank's rows: their gradients add up.
        # A copy: autograd may hand the same tensor to another branch as well.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        start = ctx.rank * ctx.rows
        return gradient[start : start + ctx.rows], None, None


def normalise_over_ranks(x: Tensor, epsilon: float, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch normalisation without affine, statistics over the batches of all ranks.

    x: (B,C,...), on each rank with its own B, which may be 0. Returns the normalised x, the mean and the biased
    variance (C,), and how many numbers of a channel all ranks have (). torch's SyncBatchNorm does the same on GPUs
    only.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = _NormaliseOverRanks.apply(x, epsilon, ranks.size)  # type: ignore[no-untyped-call]
    return result


class _NormaliseOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.dim())]
        shape = (1, -1) + (1,) * (x.dim() - 2)
        wide = at_least_float32(x)
        local_count = x.numel() // x.shape[1]
        if local_count:
            local_variance, local_mean = torch.var_mean(wide, dims, correction=0)
        else:
            local_variance = local_mean = wide.new_zeros(x.shape[1])
        # Means and variances, not sums of squares: no cancellation when the mean is large.
        local = torch.stack([local_mean, local_variance, torch.full_like(local_mean, local_count)])
        parts = [torch.empty_like(local) for _ in range(size)]
        dist.all_gather(parts, local)
        means, variances, counts = torch.stack(parts).unbind(1)
        count = counts.sum(0)
        shares = counts / count
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        inverse_std = torch.rsqrt(variance + epsilon)
        normalised = ((x - mean.view(shape)) * inverse_std.view(shape)).to(x.dtype)
        count = count[0]
        ctx.save_for_backward(normalised, inverse_std, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normalised, mean, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        normalised, inverse_std, count = ctx.saved_tensors
        dims = [0, *range(2, gradient.dim())]
        shape = (1, -1) + (1,) * (gradient.dim() - 2)
        wide = at_least_float32(gradient)
        sums = torch.stack([wide.sum(dims), (wide * normalised).sum(dims)])
        dist.all_reduce(sums)
        mean_gradient, mean_product = (sums / count).unbind(0)
        centred = gradient - mean_gradient.view(shape) - normalised * mean_product.view(shape)
        return (centred * inverse_std.view(shape)).to(gradient.dtype), None, None
