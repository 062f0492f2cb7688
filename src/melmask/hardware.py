"""Which device computes, in which precision, with how many threads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from melmask.config import HardwareConfig
from melmask.errors import ConfigError

INFERENCE_PRECISIONS = ("fp32", "fp32-fast", "bf16")


def pick_device(name: str) -> torch.device:
    """The torch device of 'auto', 'cpu', 'cuda', 'cuda:1', 'mps'.

    Raises:
        ConfigError: for a device this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device is {name!r}, which this machine lacks; give 'auto' or 'cpu'") from error
    return device


def pick_precision(config: HardwareConfig, device: torch.device) -> torch.dtype:
    """bfloat16 or float32; 'auto' is bfloat16 only where the device has instructions for it."""
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else cpu_computes_bf16()
    wanted = "bf16" if config.precision == "auto" and native else config.precision
    return torch.bfloat16 if wanted == "bf16" else torch.float32


@contextmanager
def inference_precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute what is inside in 'fp32', 'fp32-fast' or 'bf16'; the process' own settings are restored.

    'fp32-fast' allows float32 matrix products in faster forms: on CPUs without AMX another library of equal accuracy
    (docs/log.md), on others and on GPUs bfloat16 or TF32 products inside.
    """
    if name == "bf16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if name == "fp32-fast" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def cpu_computes_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (avx512_bf16 or AMX); without, it is slower than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def use_threads(threads: int) -> None:
    """Compute with `threads` CPU threads; 0 for all cores this process may use."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
