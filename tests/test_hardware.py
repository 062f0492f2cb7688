"""Precision, threads, memory: what a process is set to, and that it is set back."""

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


def test_memory_can_be_kept_and_cores_counted():
    keep_freed_memory()
    assert torch.ones(10_000_000).sum() == 10_000_000
    assert available_cores() >= 1


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
