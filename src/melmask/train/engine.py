"""One optimizer step of the network, on one process or many, and the state that such steps change.

A step is the same function of (weights, crops, masks, rate) for any number of processes and any micro-batch, up to
rounding: gradients are means over the rows of the global batch, whoever computes them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from melmask.config import PretrainConfig, Statistics
from melmask.errors import ConfigError
from melmask.objectives.mae import MaskedAutoencoder, build_model
from melmask.system.hardware import exact_float32_products, pick_precision
from melmask.train.optimizer import build_optimizer
from melmask.train.processes import Processes


class Engine:
    """The network in training: weights, the optimizer's moments, the average of the weights, the loss scale.

    Attributes: `model`, `averaged` (None without `optimizer.ema_decay`), `optimizer`, `precision`; `lap` is called with
    the name of each part of a step as it ends, for whoever measures them.
    """

    def __init__(self, config: PretrainConfig, statistics: Statistics, processes: Processes):
        self._config, self._statistics, self._processes = config, statistics, processes
        self.precision = pick_precision(config.hardware, processes.device)
        self._sharded = config.hardware.sharding == "fsdp" and processes.count > 1
        if self._sharded and self.precision == torch.float16:
            raise ConfigError("hardware.precision is fp16 and hardware.sharding fsdp; use bf16 or sharding=none")
        self.model = self._build()
        self.averaged = self._build() if config.optimizer.ema_decay else None
        self._network: nn.Module = self.model
        for block in self.model.blocks():
            block.checkpointing = config.hardware.activation_checkpointing
        if config.hardware.compile:
            self.model.compile()
        if processes.count > 1 and not self._sharded:
            self._network = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.lap: Callable[[str], None] = _nothing
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=self.precision == torch.float16)

    def _build(self) -> MaskedAutoencoder:
        model = build_model(self._config.model, self._config.run.seed).to(self._processes.device)
        if self._sharded:
            for block in model.blocks():
                fully_shard(block)
            fully_shard(model)
        return model

    def step(self, crops: np.ndarray, masked: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """One step of the optimizer at learning rate `rate` on this process' share of the batch.

        Args:
            crops: (rows, frames, mels) float16 log-mels.
            masked: (rows * masks_per_crop, patches) bool, the masks of a crop one after another.
            rate: Learning rate of this step.

        Returns:
            This process' mean loss, and the norm of the gradient before clipping; both still on the device.
        """
        with exact_float32_products(self._processes.device):
            return self._step(crops, masked, rate)

    def _step(self, crops: np.ndarray, masked: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        device = self._processes.device
        total = torch.zeros((), device=device)
        for part, masks, share, last in self._micro_batches(crops, masked):
            logmel = _to_device(torch.from_numpy(part), device).float().transpose(1, 2)
            logmel = (logmel - self._statistics.mean) / self._statistics.std
            logmel = logmel.repeat_interleave(self._config.masking.masks_per_crop, dim=0)
            with self._exchange_gradients(last):
                masks = _to_device(masks, device)
                self.lap("data")
                with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
                    loss = self._network(logmel, masks, self._config.masking).loss * share
                self.lap("decoder and loss")
                self._scaler.scale(loss).backward()
                self.lap("backward")
            total += loss.detach()
        self._scaler.unscale_(self.optimizer)
        limit = self._config.optimizer.max_gradient_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._average()
        self.lap("optimizer")
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self._scaler.is_enabled():
            # With a scaled loss an overflow is in order now and then: the scaler has passed over such a step.
            norm = norm.nan_to_num(0.0, 0.0, 0.0)
        return total, norm

    def _micro_batches(self, crops: np.ndarray, masked: Tensor) -> Iterator[tuple[np.ndarray, Tensor, float, bool]]:
        """(crops, masks, their share of the rows, whether they are the last)."""
        size = self._config.hardware.micro_batch or len(crops)
        masks = self._config.masking.masks_per_crop
        for start in range(0, len(crops), size):
            part = crops[start : start + size]
            last = start + size >= len(crops)
            yield part, masked[start * masks : (start + size) * masks], len(part) / len(crops), last

    def _exchange_gradients(self, now: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are summed over the processes with the last micro-batch only."""
        if isinstance(self._network, FSDPModule):
            self._network.set_requires_gradient_sync(now)
        elif isinstance(self._network, DistributedDataParallel) and not now:
            return self._network.no_sync()
        return contextlib.nullcontext()

    @torch.no_grad()
    def _average(self) -> None:
        if self.averaged is None:
            return
        weight = 1 - self._config.optimizer.ema_decay
        for mean, value in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            _local(mean).lerp_(_local(value), weight)

    def inference_model(self) -> MaskedAutoencoder:
        """The network that checkpoints hold, all of it: the averaged one if there is one. Every process must call."""
        chosen = self.averaged or self.model
        if not self._sharded:
            return chosen
        whole = build_model(self._config.model)
        whole.load_state_dict(_whole(chosen.state_dict()))
        return whole.to(self._processes.device) if self._processes.first else whole

    def state(self) -> dict[str, Any]:
        """All that steps change, whole, whatever the sharding. Every process must call."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.averaged is not None:
            state["averaged"] = self.averaged.state_dict()
        if self._scaler.is_enabled():
            state["scaler"] = self._scaler.state_dict()
        return _whole(state) if self._sharded else state

    def is_broken(self) -> bool:
        """Whether any weight that this process has is not a finite number."""
        own = (p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters())
        return not torch.stack([part.detach().isfinite().all() for part in own]).all()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave, on any number of processes.

        Raises:
            KeyError, RuntimeError, ValueError: it is of another network.
        """
        self._load_weights(self.model, state["model"])
        if self.averaged is not None:
            self._load_weights(self.averaged, state.get("averaged", state["model"]))
        if self._scaler.is_enabled() and "scaler" in state:
            self._scaler.load_state_dict(state["scaler"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._sharded:
            assert isinstance(self.optimizer, torch.optim.AdamW), "PretrainConfig refuses the other"
            for parameter, moments in self.optimizer.state.items():
                for name, value in moments.items():
                    if value.shape == parameter.shape:
                        moments[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Start from these weights (float32, by name) instead of the seed's."""
        for model in (self.model, self.averaged):
            if model is not None:
                self._load_weights(model, weights)

    def _load_weights(self, model: MaskedAutoencoder, weights: dict[str, Tensor]) -> None:
        if self._sharded:
            own = model.state_dict()
            weights = {
                name: distribute_tensor(value.to(own[name].device), own[name].device_mesh, own[name].placements)
                for name, value in weights.items()
            }
        model.load_state_dict(weights)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    # Only a copy from pinned memory does not wait for what the GPU has still to do.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _nothing(_part: str) -> None:
    pass


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _whole(state: Any) -> Any:
    """A nested state with every sharded tensor gathered, on the CPU."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {key: _whole(value) for key, value in state.items()}
    return state
