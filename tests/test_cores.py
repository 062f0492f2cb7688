"""Jobs side by side: each on one thread, in order, and noticed when other programs take the processor from them."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from melmask.system import contention
from melmask.system.contention import Contention
from melmask.system.cores import Cores
from melmask.system.environment import thread_environment


@pytest.fixture
def threads():
    """Set the number of PyTorch's threads: threads(4); it is set back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "most_jobs", "each"), [(4, None, 1), (4, 2, 2), (3, 2, 1), (1, None, 1), (2, 8, 1)])
def test_jobs_share_the_threads_and_give_their_results_in_order(threads, count, most_jobs, each):
    threads(count)
    cores = Cores(count, most_jobs)
    both = threading.Barrier(cores.count)
    parameter = torch.ones(64, 64, requires_grad=True)

    def job(number):
        if number < cores.count:
            # As many as can run at a time wait for each other here.
            both.wait(timeout=60)
        # The backward pass sets its caller's threads, so what counts is their number after one.
        torch.autograd.grad((parameter @ parameter).sum(), parameter)
        return number, torch.get_num_threads(), threading.get_ident()

    for _ in range(2):
        results = cores.run([lambda number=number: job(number) for number in range(9)])
        assert [number for number, _, _ in results] == list(range(9))
        assert {used for _, used, _ in results} == {each}
        assert results[0][2] == threading.get_ident()
        assert len({ident for _, _, ident in results}) == cores.count
        assert torch.get_num_threads() == count
    assert cores.run([]) == []
    cores.close()


@pytest.mark.parametrize("wrong", [0, 1, 5])
def test_the_error_of_a_job_reaches_the_caller_after_all_jobs_have_ended(threads, wrong):
    threads(2)
    running = []

    def job(number):
        running.append(number)
        if number == wrong:
            raise ZeroDivisionError(number)
        running.remove(number)

    with pytest.raises(ZeroDivisionError, match=str(wrong)):
        Cores(2).run([lambda number=number: job(number) for number in range(6)])
    assert running == [wrong]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("shares", "news"),
    [
        # Of each window: the share of its time in which the processor worked on a job, and what is reported.
        ([1.0, 0.8, 1.0], [None, None, None]),
        ([1.0, 0.5, 0.3], [None, "50%", None]),
        ([0.25, 0.8, 0.95, 0.95], ["25%", None, "for itself again", None]),
        # Those that come and go: the next report is 10 minutes after the one before, 30 windows of 20 s.
        ([0.5, 0.95] * 15 + [0.5, 0.4], ["50%", "for itself again", *[None] * 29, "40%"]),
    ],
)
def test_other_programs_are_reported_once_when_they_begin_and_when_they_end(monkeypatch, shares, news):
    now = {"monotonic": 0.0, "thread_time": 0.0}
    for clock in now:
        monkeypatch.setattr(contention.time, clock, lambda clock=clock: now[clock])
    watched, heard = Contention(), []
    for share in shares:

        def work(share=share):
            now["monotonic"] += 10
            now["thread_time"] += 10 * share

        watched.watch(work)
        assert watched.news() is None, "a shorter window says little"
        watched.watch(work)
        heard.append(watched.news())
    for text, expected in zip(heard, news, strict=True):
        assert text is expected is None or expected in text


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_threads_wait_asleep_unless_the_user_has_decided(name):
    assert thread_environment({"PATH": "x"}).keys() == {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    assert thread_environment({name: "x"}) == {}


def test_the_command_line_decides_before_pytorch_is_loaded():
    code = "import os, sys; from melmask.cli import main; main(['settings', 'tiny']); import torch\n"
    code += "sys.exit(os.environ.get('GOMP_SPINCOUNT') is None)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("count", [2, 3])
def test_an_embedding_does_not_depend_on_the_number_of_threads(encoder, sound, threads, count):
    clips = np.stack([sound(3.3, seed) for seed in range(5)])
    threads(1)
    expected = encoder.embed(clips, 16000)
    threads(count)
    found = encoder.embed(clips, 16000)
    assert torch.get_num_threads() == count
    np.testing.assert_allclose(found.frames, expected.frames, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.scene, expected.scene, rtol=0, atol=1e-5)
