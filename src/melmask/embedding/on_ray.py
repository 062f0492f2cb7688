"""`melmask embed --engine ray`: the parts of one table on a Ray cluster, through Ray Data.

Every worker loads the model once and writes whole parts to the table's folder, which all machines must see; a part
that is there is not done again, so a stopped job resumes as on one machine.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from melmask.config import FrontEndConfig, Statistics
from melmask.embedding.encoder import AudioEncoder, load
from melmask.embedding.extract import embed_files
from melmask.embedding.folder import JobReport, report_of_finished
from melmask.embedding.tables import TableJob, settings_of
from melmask.errors import MissingExtraError


class PartWriter:
    """A Ray worker: embeds one part a call."""

    def __init__(
        self,
        source: str,
        device: str,
        precision: str,
        front_end: FrontEndConfig,
        statistics: Statistics,
        job: TableJob,
        choice: dict[str, Any],
    ):
        self._model = load(source, device, precision, front_end=front_end, statistics=statistics)
        self._job, self._choice = job, choice

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write part `row["part"]`."""
        sound_s = 0.0

        def counted():
            nonlocal sound_s
            for result in embed_files(self._model, self._job.paths_of([row["part"]]), **self._choice):
                sound_s += result.duration_s
                yield result

        self._job.write([row["part"]], counted())
        return {"part": row["part"], "sound_s": sound_s}


def embed_table_on_ray(
    model: AudioEncoder,
    paths: Sequence[Path],
    out: Path,
    *,
    workers: int,
    device: str = "cpu",
    **choice: Any,
) -> JobReport:
    """As `embed_table`, with `workers` Ray actors of one CPU each, or one GPU each if `device` is 'cuda'.

    Each worker loads `model.name` for itself, in the model's precision.

    Connects to the cluster that RAY_ADDRESS names, else starts one on this machine.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError, OutputError: as `embed_table`.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    start_s = time.monotonic()
    # Absolute names: workers have another working directory.
    paths, out, source = [path.absolute() for path in paths], out.absolute(), Path(model.name)
    source = source.absolute() if source.exists() else source
    settings = settings_of(model, paths, **choice)
    job = TableJob(out, paths, settings)
    if job.complete:
        return report_of_finished(out, paths, settings["scene_dimensions"])
    sound_s = 0.0
    with job.claimed():
        todo = job.todo()
        if todo:
            parts = ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo))
            done = parts.map(
                PartWriter,
                fn_constructor_args=(
                    str(source),
                    device,
                    model.precision,
                    model.card.front_end,
                    model.card.statistics,
                    job,
                    choice,
                ),
                concurrency=workers,
                num_cpus=1,
                num_gpus=1 if device.startswith("cuda") else 0,
            )
            sound_s = sum(row["sound_s"] for row in done.take_all())
        failed = job.merge()
    wall_s = time.monotonic() - start_s
    return JobReport(len(paths) - len(failed), len(failed), settings["scene_dimensions"], sound_s, wall_s)
