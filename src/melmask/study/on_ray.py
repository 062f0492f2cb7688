"""`melmask study --engine ray`: do the runs of a study on a Ray cluster; all machines must see the study's folder."""

from collections.abc import Sequence
from pathlib import Path

from melmask.errors import MissingExtraError
from melmask.study.side_by_side import Ended, do_run


def do_runs_on_ray(folder: Path, names: Sequence[str], threads: int, gpus: int, ended: Ended) -> None:
    """Do the runs as Ray tasks of `threads` CPUs and `gpus` GPUs each; Ray decides how many are under way at once.

    Ray connects to the cluster that RAY_ADDRESS names, or starts one on this machine.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    task = ray.remote(num_cpus=threads, num_gpus=gpus)(do_run)
    # Workers have another working directory, so the path must be absolute.
    names_of = {task.remote(folder.absolute(), name, threads): name for name in names}
    while names_of:
        (done, *_), _ = ray.wait(list(names_of), num_returns=1)
        ended(names_of.pop(done), ray.get(done))
