"""One optimizer step of an objective, on one process or many, and the state that such steps change.

Up to rounding, a step is the same function of (weights, crops, draws, rate) for any number of processes and any
micro-batch, because gradients are means over the rows of the global batch.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from melmask.audio.logmel import scales
from melmask.config import PretrainConfig, Statistics
from melmask.errors import ConfigError
from melmask.models.layers import Block
from melmask.models.network import Network, build_network
from melmask.objectives.base import Objective
from melmask.system.contention import Contention
from melmask.system.cores import Cores
from melmask.system.hardware import exact_float32_products, pick_precision
from melmask.train.optimizer import build_optimizer, check_moments, step_jobs
from melmask.train.processes import Processes
from melmask.train.shares import Shares, share_count


class Engine:
    """An objective in training: weights, the optimizer's moments, the average of the weights, the loss scale.

    Attributes:
        objective, optimizer, precision, device: What a step uses.
        contention: Notices when other programs take the processor from the computation; None if nothing is known.
        averaged: The average of the network's weights over the steps; None without `optimizer.ema_decay`.
        lap: Called with the name of each part of a step when the part ends; `train/bench.py` measures with it.
    """

    def __init__(self, objective: Objective, config: PretrainConfig, statistics: Statistics, processes: Processes):
        self.objective, self.device = objective, processes.device
        self._config, self._processes = config, processes
        # Made once: numbers that travel to a GPU in each step would make it wait.
        self._scales = scales(statistics, config.model.mels, processes.device)
        self.precision = pick_precision(config.hardware, processes.device)
        self._sharded = config.hardware.sharding == "fsdp" and processes.count > 1
        if self._sharded and self.precision == torch.float16:
            raise ConfigError("hardware.precision is fp16 and hardware.sharding fsdp; use bf16 or sharding=none")
        # The average begins as a copy. The copy is made here, while this process still has all weights.
        self.averaged = copy.deepcopy(self.model) if config.optimizer.ema_decay else None
        if self.averaged is not None:
            self._place(self.averaged, self.averaged.blocks())
        loss = _Loss(objective)
        self._place(loss, self.model.blocks())
        self._loss: nn.Module = loss
        # Only blocks that are trained keep activations for a backward pass; those of a teacher, for example, do not.
        for block in objective.module.modules():
            if isinstance(block, Block) and any(p.requires_grad for p in block.parameters()):
                block.checkpointing = config.hardware.activation_checkpointing
        # The loss is compiled before DDP wraps it, so that DDP calls the compiled one.
        if config.hardware.compile:
            loss.compile()
        threads = torch.get_num_threads()
        count = share_count(config, objective.module, processes, threads)
        # A GPU and other processes let this one wait, which has nothing to do with other programs.
        known = processes.device.type == "cpu" and (count > 1 or processes.count == 1)
        self.contention = Contention() if known else None
        self._cores = Cores(threads, count, self.contention)
        self._shares = Shares(objective.module, self._cores, count) if count > 1 else None
        if processes.count > 1 and not self._sharded and self._shares is None:
            self._loss = DistributedDataParallel(loss, gradient_as_bucket_view=True)
        self.optimizer = build_optimizer(objective.module, config.optimizer)
        self.lap: Callable[[str], None] = lambda _: None
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=self.precision == torch.float16)

    @property
    def shares(self) -> int:
        """In how many shares this process computes a step side by side; 1: all threads share every operation."""
        return self._shares.count if self._shares is not None else 1

    @property
    def model(self) -> Network:
        """The network that the objective trains, with its current weights."""
        return self.objective.network

    def _place(self, module: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Move a module to the device and, if the processes share its weights, keep only this process' part."""
        module.to(self.device)
        if self._sharded:
            # Block by block: FSDP gathers one sharded module at a time, so only one block is whole in memory.
            for block in blocks:
                fully_shard(block)
            fully_shard(module)

    def step(self, crops: np.ndarray, drawn: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Take one step of the optimizer at learning rate `rate` on this process' share of the batch.

        Args:
            crops: (rows, frames, mels) float16 log-mels.
            drawn: What the objective drew for these rows, such as their masks; each row has the same number of entries.
            rate: Learning rate of this step.

        Returns:
            This process' mean loss, and the norm of the gradient before clipping; both are still on the device.
        """
        # The rate is a function of the step, so there is no scheduler whose state would have to be saved.
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        if self._config.crops_together > 1:
            crops, drawn = self._in_groups(crops, drawn)
        with exact_float32_products(self.device), self._cores.engaged():
            if self._shares is not None:
                return self._step_in_shares(self._shares, crops, drawn)
            return self._cores.run([lambda: self._step(crops, drawn)])[0]

    def _in_groups(self, crops: np.ndarray, drawn: Tensor) -> tuple[np.ndarray, Tensor]:
        """Put the crops that the loss compares side by side; they are the same ones for any number of processes."""
        # A process has the rows of the batch that are equal modulo the number of processes. Rows that are equal modulo
        # the number of groups, a multiple of it, form a group. So each group lies within one process.
        order = np.arange(len(crops)).reshape(self._config.crops_together, -1).T.ravel()
        return crops[order], drawn.unflatten(0, (len(crops), -1))[torch.from_numpy(order)].flatten(0, 1)

    def _step_in_shares(self, shares: Shares, crops: np.ndarray, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step on several cores of a CPU."""
        per_crop = len(drawn) // len(crops)

        def loss_of(first: int, last: int) -> Tensor:
            return self._loss_of(crops[first:last], drawn[first * per_crop : last * per_crop])

        most, together = self._config.hardware.micro_batch, self._config.crops_together
        total = shares.backward(loss_of, len(crops), most, self.lap, together)
        if self._processes.count > 1:
            shares.exchange(self._processes)
        self.lap("sum of gradients")
        norm = shares.norm()
        shares.clip(norm, self._config.optimizer.max_gradient_norm)
        self._cores.run(step_jobs(self.optimizer, self._cores.count))
        self.objective.after_step()
        self._average()
        self.lap("optimizer")
        return total, norm

    def _step(self, crops: np.ndarray, drawn: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), device=self.device)
        for part, random, share, last in self._micro_batches(crops, drawn):
            with self._exchange_gradients(last):
                loss = self._loss_of(part, random) * share
                self._scaler.scale(loss).backward()
                self.lap("backward")
            total += loss.detach()
        # The scaler uses only an optimizer's groups and its step, which `MuonAndAdamW` has too.
        optimizer = cast("torch.optim.Optimizer", self.optimizer)
        self._scaler.unscale_(optimizer)
        # The record has the norm even if nothing is clipped: an infinite limit clips nothing.
        limit = self._config.optimizer.max_gradient_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.objective.module.parameters(), limit)
        self._scaler.step(optimizer)
        self._scaler.update()
        self.objective.after_step()
        self._average()
        self.lap("optimizer")
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self._scaler.is_enabled():
            # An occasional overflow of a scaled loss is normal: the scaler has skipped such a step.
            norm = norm.nan_to_num(0.0, 0.0, 0.0)
        return total, norm

    def _loss_of(self, crops: np.ndarray, drawn: Tensor) -> Tensor:
        """Return the mean loss of some crops; several threads may call this at once."""
        device = self.device
        # Crops travel to the device as float16, half the bytes, and become float32 there.
        logmel = _to_device(torch.from_numpy(crops), device).float().transpose(1, 2)
        mean, std = self._scales
        logmel = (logmel - mean) / std
        drawn = _to_device(drawn, device)
        self.lap("data")
        # Autocast keeps the weights that it has converted for the next micro-batch. Threads would share them, and the
        # graph of one would reach into that of another.
        keep = self._shares is None
        with torch.autocast(device.type, self.precision, self.precision != torch.float32, cache_enabled=keep):
            loss = self._loss(logmel, drawn)
        self.lap("decoder and loss")
        return loss

    def _micro_batches(self, crops: np.ndarray, drawn: Tensor) -> Iterator[tuple[np.ndarray, Tensor, float, bool]]:
        """Yield (crops, what was drawn for them, their share of the rows, whether they are the last part)."""
        size = self._config.hardware.micro_batch or len(crops)
        # An objective may draw several entries for a crop, such as masks; they stay with their crop.
        per_crop = len(drawn) // len(crops)
        for start in range(0, len(crops), size):
            part = crops[start : start + size]
            last = start + size >= len(crops)
            yield part, drawn[start * per_crop : (start + size) * per_crop], len(part) / len(crops), last

    def _exchange_gradients(self, now: bool) -> contextlib.AbstractContextManager[None]:
        """Exchange gradients between the processes only in the backward pass of the last micro-batch."""
        # Each process sums the gradients of its micro-batches; exchanging the sums once is enough, and cheaper.
        if isinstance(self._loss, FSDPModule):
            self._loss.set_requires_gradient_sync(now)
        elif isinstance(self._loss, DistributedDataParallel) and not now:
            return self._loss.no_sync()
        return contextlib.nullcontext()

    @torch.no_grad()
    def _average(self) -> None:
        if self.averaged is None:
            return
        # Parameters only: the buffers are position tables, which are equal in both.
        weight = 1 - self._config.optimizer.ema_decay
        for mean, value in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            _local(mean).lerp_(_local(value), weight)

    def inference_model(self) -> Network:
        """Return the whole network that checkpoints hold: the averaged one if there is one.

        Every process must call this.
        """
        chosen = self.averaged or self.model
        if not self._sharded:
            return chosen
        # Only the first process uses the result, but gathering the parts takes all processes.
        whole = build_network(self.model.config)
        whole.load_state_dict(_whole(chosen.state_dict()))
        return whole.to(self.device) if self._processes.first else whole

    def state(self) -> dict[str, Any]:
        """Return all that steps change; parts that the processes share are gathered. Every process must call this."""
        state = {"model": self.objective.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.averaged is not None:
            state["averaged"] = self.averaged.state_dict()
        if self._scaler.is_enabled():
            state["scaler"] = self._scaler.state_dict()
        return _whole(state) if self._sharded else state

    def is_broken(self) -> bool:
        """Tell whether any weight that this process has is not a finite number."""
        own = map(_local, self.objective.module.parameters())
        return not torch.stack([part.detach().isfinite().all() for part in own]).all()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, on any number of processes.

        Raises:
            KeyError, RuntimeError, ValueError: it belongs to another network.
        """
        self._load_weights(self.objective.module, state["model"])
        if self.averaged is not None:
            self._load_weights(self.averaged, state.get("averaged", state["model"]))
        if self._scaler.is_enabled() and "scaler" in state:
            self._scaler.load_state_dict(state["scaler"])
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.optimizer, torch.optim.AdamW):
            check_moments(self.optimizer)
        if self._sharded:
            assert isinstance(self.optimizer, torch.optim.AdamW), "PretrainConfig refuses Muon with sharding"
            for parameter, moments in self.optimizer.state.items():
                for name, value in moments.items():
                    # Moments are shared like their parameter, whose shape they have; the count of steps is one number.
                    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                        moments[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)

    def _load_weights(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        own = model.state_dict()
        if self._sharded:
            weights = {name: _as_shared(value, own[name]) for name, value in weights.items()}
        model.load_state_dict(weights)


class _Loss(nn.Module):
    """The objective's loss as the `forward` of a module, because PyTorch compiles, copies and shards modules."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.module = objective.module
        self._objective = objective

    def forward(self, logmel: Tensor, drawn: Tensor) -> Tensor:
        return self._objective.loss(logmel, drawn)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    # Only a copy from pinned memory need not wait until the GPU has done its earlier work.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _as_shared(value: Tensor, own: Tensor) -> Tensor:
    """Return this process' part of `value` if it has only a part of `own`, else all of it."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def _whole(state: Any) -> Any:
    """Return a nested state with every sharded tensor gathered on the CPU."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {key: _whole(value) for key, value in state.items()}
    return state
