"""The gradients of a batch on a CPU: its rows are computed in shares, one on each core, and added up in a fixed order.

The shares decide how gradients are rounded, and nothing else. Their number depends only on the settings, on the number
of threads and on the size of the network. So a run that resumes with the same number of threads equals one that was
never stopped, bit for bit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from melmask.config import PretrainConfig
from melmask.system.cores import Cores
from melmask.train.processes import Processes

_MOST_GRADIENT_BYTES = 2 << 30
"""Each share has gradients of its own, so a large network has fewer shares, with several threads for each."""
_BUCKET_VALUES = 8 << 20
"""Gradients that processes exchange at once: 32 MB."""


def share_count(config: PretrainConfig, module: nn.Module, processes: Processes, threads: int) -> int:
    """Return in how many shares this process computes its rows; 1 means that its threads share every operation."""
    hardware = config.hardware
    # What the loss compares stays in one share.
    rows = config.data.batch_size // processes.count // config.crops_together
    # GPUs and sharded networks divide the work in their own ways, and compiled code keeps its number of threads.
    if processes.device.type != "cpu" or (hardware.sharding == "fsdp" and processes.count > 1) or hardware.compile:
        return 1
    if hardware.shares:
        return min(hardware.shares, rows)
    return min(shares_that_fit(module, threads), max(1, rows))


def shares_that_fit(module: nn.Module, threads: int) -> int:
    """Return a share for each thread of a CPU, or fewer if the gradients of so many would take too much memory."""
    gradient_bytes = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    return max(1, min(threads, _MOST_GRADIENT_BYTES // max(1, gradient_bytes)))


class Shares:
    """Computes the gradients of a module in `count` shares side by side, and changes its parameters likewise."""

    def __init__(self, module: nn.Module, cores: Cores, count: int):
        self.count = count
        self._cores = cores
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._owned: list[list[int]] = [[] for _ in range(cores.count)]
        values = [0] * cores.count
        # Each core sums and changes parameters of its own. The largest is given first, to the core that has the least.
        for number in sorted(range(len(self._parameters)), key=lambda number: -self._parameters[number].numel()):
            core = values.index(min(values))
            self._owned[core].append(number)
            values[core] += self._parameters[number].numel()

    def backward(
        self,
        loss_of: Callable[[int, int], Tensor],
        rows: int,
        most: int,
        lap: Callable[[str], None],
        together: int = 1,
    ) -> Tensor:
        """Set the gradients of the mean loss over the rows, and return that loss.

        Args:
            loss_of: Returns the mean loss of the rows from a number to another; several threads call it at once.
            rows: How many rows there are.
            most: How many rows are computed at once, over all shares; 0: all.
            lap: Called with the name of a part of the step when the part ends; several threads call it at once.
            together: Rows are never divided within so many neighbors.
        """
        edges = [rows // together * share // self.count * together for share in range(self.count + 1)]
        step = max(1, most // self.count // together) * together if most else rows

        def share_of(first: int, last: int) -> tuple[Tensor, list[Tensor | None]]:
            total = torch.zeros(())
            gradients: list[Tensor | None] = [None] * len(self._parameters)
            for start in range(first, last, step):
                end = min(start + step, last)
                loss = loss_of(start, end) * ((end - start) / rows)
                found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
                lap("backward")
                gradients = [_sum(pair) for pair in zip(gradients, found, strict=True)]
                total = total + loss.detach()
            return total, gradients

        shares = self._cores.run([partial(share_of, first, last) for first, last in pairwise(edges)])

        @torch.no_grad()
        def add_up(number: int) -> None:
            self._parameters[number].grad = _sum([gradients[number] for _, gradients in shares])

        self.each(add_up)
        return torch.stack([loss for loss, _ in shares]).sum()

    def exchange(self, processes: Processes) -> None:
        """Replace each gradient by its mean over all processes."""
        found = [p.grad for p in self._parameters if p.grad is not None]
        # One exchange of many gradients costs less than many exchanges, and one of all would need too much memory.
        while found:
            size = 0
            bucket: list[Tensor] = []
            while found and (not bucket or size + found[-1].numel() <= _BUCKET_VALUES):
                bucket.append(found.pop())
                size += bucket[-1].numel()
            mean = processes.mean(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, part in zip(bucket, mean.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def norm(self) -> Tensor:
        """Return the norm of the whole gradient."""
        norms = [torch.zeros(())] * len(self._parameters)

        def measure(number: int) -> None:
            gradient = self._parameters[number].grad
            if gradient is not None:
                norms[number] = torch.linalg.vector_norm(gradient)

        self.each(measure)
        return torch.linalg.vector_norm(torch.stack(norms))

    def clip(self, norm: Tensor, most: float) -> None:
        """Scale the gradients, whose norm is given, down to a norm of `most`; 0: leave them."""
        if not most or not norm > most:
            return
        # As `torch.nn.utils.clip_grad_norm_` does, to the last bit.
        scale = most / (norm + 1e-6)

        def shrink(number: int) -> None:
            gradient = self._parameters[number].grad
            if gradient is not None:
                gradient.mul_(scale)

        self.each(shrink)

    def each(self, work: Callable[[int], None]) -> None:
        """Call `work` with the number of each parameter that is trained, side by side."""

        def all_of(owned: Sequence[int]) -> None:
            for number in owned:
                work(number)

        self._cores.run([partial(all_of, owned) for owned in self._owned])


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Add gradients in their order, without those that are missing."""
    total = None
    for gradient in gradients:
        # Never in place: what the backward pass returns may be a view, or the gradient of two parameters at once.
        if gradient is not None:
            total = gradient if total is None else total + gradient
    return total
