"""Precision, threads, memory: what a process is set to, and that it is set back."""

import os
from types import SimpleNamespace

import pytest
import torch

from melmask.system import hardware
from melmask.system.hardware import (
    available_cores,
    inference_precision,
    keep_freed_memory,
    quick_products_are_exact,
    use_threads,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["fp32", "fp32-fast", "bf16"])
@pytest.mark.parametrize("before", ["highest", "high"])
def test_the_process_own_setting_comes_back(name, before):
    torch.set_float32_matmul_precision(before)
    try:
        with inference_precision(name, CPU):
            assert torch.is_autocast_enabled("cpu") == (name == "bf16")
        assert torch.get_float32_matmul_precision() == before
        with pytest.raises(ZeroDivisionError), inference_precision(name, CPU):
            raise ZeroDivisionError
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("shape", [(33, 48, 7), (66, 192, 768), (1056, 768, 3072)])
def test_fp32_products_have_full_accuracy(shape):
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    exact = a.double() @ b.double()
    with inference_precision("fp32", CPU):
        error = ((a @ b).double() - exact).norm() / exact.norm()
    assert error < 1e-6
    assert ((a.bfloat16() @ b.bfloat16()).double() - exact).norm() / exact.norm() > 1e-6


def test_less_accurate_products_are_not_taken_for_exact(monkeypatch):
    product = torch.Tensor.__matmul__

    def rounded(a, b):
        return product(a.bfloat16().float() if a.dtype == torch.float32 else a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    quick_products_are_exact.cache_clear()
    try:
        assert not quick_products_are_exact()
        with inference_precision("fp32", CPU):
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        quick_products_are_exact.cache_clear()


def test_freed_memory_is_kept_in_one_place_for_reuse(monkeypatch):
    told = []
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *pair: told.append(pair)))
    keep_freed_memory()
    # The numbers of M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX in malloc.h of glibc.
    assert [number for number, _ in told] == [-3, -1, -8]
    assert told[0][1] == told[1][1] > 1 << 30 and told[2][1] == 1


@pytest.mark.parametrize("error", [OSError, AttributeError, TypeError])
def test_where_the_c_library_is_another_one_a_job_goes_on(monkeypatch, error):
    def refuse(_):
        raise error

    monkeypatch.setattr(hardware.ctypes, "CDLL", refuse)
    keep_freed_memory()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not say which cores a process has")
def test_only_the_cores_that_a_process_may_use_count():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("told", "threads", "sharing", "expected"),
    [("1", 0, 1, 1), ("", 0, 1, 6), ("none", 0, 1, 6), ("0", 0, 1, 6), ("1", 0, 3, 2), ("1", 4, 1, 4)],
)
def test_a_process_alone_keeps_to_the_threads_it_was_told(monkeypatch, told, threads, sharing, expected):
    """torchrun tells each of several processes 1, whatever the cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(hardware, "available_cores", lambda: 6)
    before = torch.get_num_threads()
    try:
        use_threads(threads, sharing)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
