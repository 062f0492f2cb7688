"""Which device computes, in which precision, with how many threads."""

import ctypes
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch

from melmask.config import HardwareConfig
from melmask.errors import ConfigError

INFERENCE_PRECISIONS = ("fp32", "fp32-fast", "bf16")
_CPU_PRODUCT_SIZE, _GPU_PRODUCT_SIZE = 2048, 8192
_PRODUCTS = 6
_FLOAT32_PRODUCT_ERROR = 1e-6
"""Relative; float32 products have 4e-7, TF32 3e-4, bfloat16 3e-3."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # <malloc.h>
_KEPT_BYTES = 2**31 - 1

T = TypeVar("T")
R = TypeVar("R")


def pick_device(name: str) -> torch.device:
    """The torch device of 'auto', 'cpu', 'cuda', 'cuda:1', 'mps'.

    Raises:
        ConfigError: for a device this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(device.type)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device is {name!r}, which this machine lacks; give 'auto' or 'cpu'") from error
    return device


def pick_precision(config: HardwareConfig, device: torch.device) -> torch.dtype:
    """The arithmetic of a run; 'auto' is bfloat16 only where the device has instructions for it.

    Raises:
        ConfigError: fp16 on a CPU.
    """
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else cpu_computes_bf16()
    wanted = "bf16" if config.precision == "auto" and native else config.precision
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError("hardware.precision is fp16, which CPUs do not compute; give 'auto', 'bf16' or 'fp32'")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(wanted, torch.float32)


@contextmanager
def inference_precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute what is inside in 'fp32', 'fp32-fast' or 'bf16'; the process' own settings are restored.

    'fp32' takes the quickest float32 products of full accuracy. 'fp32-fast' also allows products of bfloat16 or TF32
    parts, where the CPU (AMX) or the GPU has them, and is the same as 'fp32' elsewhere.
    """
    if name == "bf16":
        with autocast_of(name, device):
            yield
        return
    with _float32_products("medium" if name == "fp32-fast" else _exact_products(device)):
        yield


def autocast_of(name: str, device: torch.device) -> torch.autocast:
    """Return the context in which a thread computes in 'bf16'; with any other precision it does nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")


def exact_float32_products(device: torch.device) -> AbstractContextManager[None]:
    """Take the quickest float32 products of full accuracy for what is inside."""
    return _float32_products(_exact_products(device))


def _exact_products(device: torch.device) -> str:
    return "medium" if device.type == "cpu" and quick_products_are_exact() else "highest"


@contextmanager
def _float32_products(setting: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def quick_products_are_exact() -> bool:
    """Whether the setting that allows reduced precision gives full float32 accuracy on this CPU all the same.

    Without AMX it does nothing but choose oneDNN instead of MKL, which is 1.5 times as fast on some CPUs
    (docs/log.md). Measured on a product, not guessed from the CPU's name.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    with _float32_products("medium"):
        error = (a @ b).double() - exact
    return bool(error.norm() < _FLOAT32_PRODUCT_ERROR * exact.norm())


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 2 GB for reuse, where it is glibc; elsewhere nothing happens.

    By default it maps every block above 32 MB afresh, and the kernel zeroes it: a tenth of a step's time on CPU
    (docs/log.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    # Threads would otherwise have memory of their own in pieces of at most 64 MB, which does not keep large blocks.
    mallopt(_M_ARENA_MAX, 1)


def cpu_computes_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (avx512_bf16 or AMX); without, it is slower than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def available_cores() -> int:
    """Cores this process may use."""
    # Only Linux knows of a process' share of the cores.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int, sharing: int = 1) -> None:
    """Compute with `threads` CPU threads; 0 for this process' part of the cores if `sharing` processes use them.

    A process alone keeps to OMP_NUM_THREADS where that is set: more threads than cores are free are many times slower.
    Of several, torchrun sets it to 1, whatever the cores.
    """
    told = os.environ.get("OMP_NUM_THREADS", "") if sharing == 1 else ""
    # Python converts no text of thousands of digits.
    plain = told.isdecimal() and len(told) < 10
    cores = int(told) if plain and int(told) else max(1, available_cores() // sharing)
    torch.set_num_threads(threads or cores)


def environment_with(threads: int) -> dict[str, str]:
    """Return the variables of this process for one that it starts, whose libraries then use so many CPU threads."""
    # NumPy's products have threads of their own, which PyTorch's setting does not reach.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


def map_ahead(work: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[R]:
    """Yield `work(item)` of each item in order, computed by `threads` threads at most `ahead` items in advance.

    Meant for work that releases the interpreter's lock, such as decoding. PyTorch's own threads are held at one
    meanwhile, as the threads here fill the cores already.
    """
    waiting: deque[Future[R]] = deque()
    threads_before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_before)


def matmul_peak(device: torch.device, dtype: torch.dtype, cpu_size: int = _CPU_PRODUCT_SIZE) -> float:
    """Operations a second of the best of several large matrix products; float32 at full accuracy."""
    size = cpu_size if device.type == "cpu" else _GPU_PRODUCT_SIZE
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    with exact_float32_products(device):
        best_s = min(seconds_of(lambda: a @ b, 1, device) for _ in range(_PRODUCTS))
    return 2 * size**3 / best_s


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(work: Callable[[], Any], times: int, device: torch.device) -> float:
    """Mean time of calling `work`, the device waited for once, after the last call."""
    wait_for(device)
    start_s = time.perf_counter()
    for _ in range(times):
        work()
    wait_for(device)
    return (time.perf_counter() - start_s) / times
