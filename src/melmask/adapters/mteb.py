"""mteb's audio encoder interface (https://github.com/embeddings-benchmark/mteb), with which MAEB is run.

    import mteb
    from melmask.adapters.mteb import load_model

    model = load_model("runs/mine")
    mteb.evaluate(model, mteb.get_benchmark("MAEB(v1, audio-only)"))

A clip's vector is its scene vector: by default the mean and the standard deviation of the frame vectors over time.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from melmask.adapters.clips import embed_clips
from melmask.checkpoint.hub import PREFIX
from melmask.embedding.choice import ChoiceChanges, FeatureChoice
from melmask.embedding.encoder import load
from melmask.errors import ConfigError, InputError
from melmask.system.extras import require
from melmask.system.terminal import note

_DEFAULT = FeatureChoice(scene="mean+std")


class MtebModel:
    """A melmask model behind mteb's `EncoderProtocol`; also the `loader` of its `ModelMeta`.

    Attributes: `mteb_model_meta` (mteb's description of the model), `encoder`, `choice`.
    """

    mteb_model_meta: Any = None

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        model: str = "",
        **changes: Unpack[ChoiceChanges],
    ):
        """Load a model as mteb's loaders are called.

        Args:
            model_name: 'owner/name', as mteb lists it; without `model`, that is the model's name on the Hub, too.
            revision: What mteb files results under; the model does not depend on it.
            device: 'cpu', 'cuda', 'cuda:1', 'mps'; without it, a GPU if there is one.
            model: A run, a checkpoint folder, a .pth file or hub:owner/name.
            **changes: Fields of `FeatureChoice` that differ from the default, which is scene="mean+std".

        Raises:
            CheckpointError: the model is missing, damaged, or of an unknown kind.
            ConfigError: the device is unknown, or the model does not offer the choice.
        """
        self.encoder = load(model or f"{PREFIX}{model_name}", device or "auto")
        self.choice = _DEFAULT.changed(**changes).of_model(self.encoder.card)

    def encode(self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any = None, **_: Any) -> np.ndarray:
        """Return the scene vectors (clips, size) float32 of all batches, in their order.

        Args:
            inputs: Batches, as mteb's data loaders give them. Their 'audio' is a list of clips, each with an 'array'
                and its 'sampling_rate'. Clips may differ in length and rate; channels, which go first, are averaged.
            task_metadata: mteb's description of the task, for messages.

        Raises:
            InputError: a batch holds no audio, or a clip cannot be embedded; the message has its number.
        """
        task = getattr(task_metadata, "name", "the task")
        scenes: list[np.ndarray] = []
        for batch in inputs:
            if "audio" not in batch:
                kinds = ", ".join(sorted(batch)) or "nothing"
                raise InputError(f"{task} gives {kinds} and no audio; take tasks whose modalities are audio alone")
            first = len(scenes) + 1
            clips = [self._clip(item, f"clip {number} of {task}") for number, item in enumerate(batch["audio"], first)]
            made = embed_clips(self.encoder, clips, self.choice, keep_frames=False)
            scenes += [vectors.scene() for vectors in made]
        return np.stack(scenes) if scenes else np.empty((0, self.size), np.float32)

    @property
    def size(self) -> int:
        """The size of a clip's vector."""
        return self.choice.scene_size(self.encoder.card.model)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosines (n, m) of n and m vectors, as mteb computes them."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosines (n,) of n pairs of vectors, as mteb computes them."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _clip(self, item: Any, label: str) -> tuple[np.ndarray, int | float]:
        """Return (samples,) and the rate of what mteb passes as a clip: a dictionary, or a decoder that acts like one.

        Raises:
            InputError: the clip has no rate, or is not finite.
        """
        array, rate_hz = np.asarray(item["array"]), item["sampling_rate"]
        if rate_hz is None:
            raise InputError(f"{label} has no sampling rate; set it in the data set")
        if array.ndim > 1:
            # The mean of int16 would be floats that are 32768 times too loud.
            array = (array / 32768 if array.dtype == np.int16 else array).mean(axis=0)
        if not np.isfinite(array).all():
            raise InputError(f"{label} holds NaN or infinite samples; repair the data set")
        if array.size * self.encoder.sample_rate_hz < rate_hz:
            # The benchmark needs a vector for each clip.
            note(f"melmask: {label} is shorter than a sample of the model; it is embedded as silence")
            return np.zeros(1, np.float32), self.encoder.sample_rate_hz
        return array, float(rate_hz)


def load_model(
    model: str | Path, name: str = "", device: str | None = None, **changes: Unpack[ChoiceChanges]
) -> MtebModel:
    """Load a model for `mteb.evaluate`, with the `ModelMeta` that mteb needs.

    The revision is the digest of the weights, so mteb never takes the results of one model for those of another.

    Args:
        model: A run, a checkpoint folder, a .pth file or hub:owner/name.
        name: 'owner/name', under which mteb files the results; by default the Hub's, or 'melmask/' and the folder's.
        device: As for `MtebModel`.
        **changes: Fields of `FeatureChoice` that differ from the default. mteb files such results as an experiment.

    Raises:
        MissingExtraError: mteb is not installed.
        CheckpointError: the model is missing, damaged, or of an unknown kind.
        ConfigError: the name is not 'owner/name', or the model does not offer the choice.
    """
    require("mteb")
    if not name:
        source = str(model)
        name = source.removeprefix(PREFIX) if source.startswith(PREFIX) else f"melmask/{Path(source).resolve().name}"
    if name.count("/") != 1 or not all(name.split("/")):
        raise ConfigError(f"the name is {name!r}; mteb needs it as owner/name")
    loaded = MtebModel(name, device=device, model=str(model), **changes)
    loaded.mteb_model_meta = _meta(loaded, name, str(model), dict(changes))
    return loaded


def _meta(loaded: MtebModel, name: str, source: str, changes: dict[str, Any]) -> Any:
    """Describe a model as mteb wants it. What melmask cannot know (license, data, date) is left empty."""
    from mteb.models import ModelMeta

    weights = list(loaded.encoder.model.encoder.parameters())
    return ModelMeta(
        loader=MtebModel,
        loader_kwargs={"model": source},
        experiment_kwargs=changes or None,
        name=name,
        revision=loaded.encoder.sha256[:40],
        release_date=None,
        languages=None,
        n_parameters=sum(parameter.numel() for parameter in weights),
        memory_usage_mb=sum(parameter.nbytes for parameter in weights) / 2**20,
        max_tokens=None,
        embed_dim=loaded.size,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        training_datasets=None,
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        modalities=["audio"],
    )
