"""`melmask embed --engine ray`: write the parts of one table on a Ray cluster, through Ray Data.

Every worker loads the model once and writes whole parts to the table's folder, which all machines must see. Parts that
are there already are skipped, so a stopped job resumes as on one machine.
"""

from pathlib import Path
from typing import Any

from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder, load
from melmask.embedding.extract import embed_files
from melmask.embedding.tables import TableJob, WriteParts
from melmask.system.extras import require


class PartWriter:
    """A Ray worker, which embeds one part in each call."""

    def __init__(self, source: str, device: str, choice: FeatureChoice, job: TableJob):
        settings = job.settings
        self._model = load(
            source, device, settings.precision, front_end=settings.front_end, statistics=settings.statistics
        )
        self._model.reading = settings.reading
        self._choice, self._job = choice, job

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write part `row["part"]`; return its number and how many seconds of sound it has."""
        sounds, keep_frames = self._job.sounds_of([row["part"]]), self._job.settings.frames
        results = embed_files(self._model, sounds, self._choice, keep_frames=keep_frames)
        return {"part": row["part"], "sound_s": self._job.write([row["part"]], results)}


def ray_writer(workers: int, device: str) -> WriteParts:
    """Return a function that writes the parts of a job with `workers` Ray actors, of one CPU or GPU each.

    Each worker loads the model by its name. The paths of the job must be absolute, as workers have another working
    directory. Ray connects to the cluster that RAY_ADDRESS names, or starts one on this machine.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    require("ray")
    import ray

    def write_parts(model: AudioEncoder, choice: FeatureChoice, job: TableJob) -> float:
        todo = job.todo()
        if not todo:
            return 0.0
        source = Path(model.name)
        # A name on the Hub is not a path, and stays as it is.
        source = source.absolute() if source.exists() else source
        # A block of its own for each part lets Ray spread the parts over the workers.
        parts = ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo))
        done = parts.map(
            PartWriter,
            fn_constructor_args=(str(source), device, choice, job),
            concurrency=workers,
            num_cpus=1,
            num_gpus=1 if device.startswith("cuda") else 0,
        )
        return sum(row["sound_s"] for row in done.take_all())

    return write_parts
