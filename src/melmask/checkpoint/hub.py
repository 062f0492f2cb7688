"""Checkpoints on the Hugging Face Hub: config.json, model.safetensors and a README.md that is the model card.

Names begin with `hub:`, as in `hub:owner/name`, so that a mistyped path never turns into a download.
"""

import tempfile
from pathlib import Path
from types import ModuleType

from melmask.checkpoint.folder import CONFIG, WEIGHTS, ModelCard, save_checkpoint
from melmask.errors import CheckpointError, OutputError
from melmask.models.network import Network
from melmask.system.extras import require

PREFIX = "hub:"


def download(name: str) -> Path:
    """Fetch `hub:owner/name`, or take it from the local cache, and return the checkpoint folder.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        CheckpointError: there is no such model, or the Hub cannot be reached.
    """
    hub = _hub()
    try:
        return Path(hub.snapshot_download(name.removeprefix(PREFIX), allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:
        # The library raises its own errors, its HTTP client's and the operating system's; all mean the same here.
        raise CheckpointError(
            f"{name} cannot be fetched ({_reason(error)}); check the name and the connection"
        ) from error


def push(name: str, model: Network, card: ModelCard, license_name: str) -> str:
    """Create or update `hub:owner/name` and return its address.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        OutputError: the Hub refuses, or cannot be reached.
    """
    hub = _hub()
    repository = name.removeprefix(PREFIX)
    # A fresh copy is uploaded, because the user's own folder may hold other files too.
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save_checkpoint(folder, model, card)
        (folder / "README.md").write_text(model_card(repository, card, license_name), encoding="utf-8")
        try:
            api = hub.HfApi()
            api.create_repo(repository, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=str(folder)))
        except Exception as error:
            raise OutputError(
                f"{name} cannot be pushed ({_reason(error)}); check the name and run `hf auth login`"
            ) from error


def model_card(repository: str, card: ModelCard, license_name: str) -> str:
    """Return the README.md of a model: how to use it, what its input is, how it was trained."""
    model, front_end = card.model, card.front_end
    training = {key: value for key, value in card.training.items() if key != "config"}
    # Models of early versions and converted ones do not name their objective. All were masked autoencoders.
    kind = card.training.get("config", {}).get("objective", {}).get("kind", "mae")
    tags, about = ["audio", "feature-extraction"], f"Audio embeddings, pre-trained with the objective '{kind}'"
    if kind == "mae":
        tags += ["masked-autoencoder", "msm-mae"]
        about = "Audio embeddings by masked spectrogram modeling (MSM-MAE, PMLR 166, 2022)"
    facts = "\n".join(f"- {key}: {value}" for key, value in training.items()) or "- not recorded"
    return f"""---
library_name: melmask
license: {license_name}
tags: [{", ".join(tags)}]
---
# {repository.rsplit("/", 1)[-1]}

{about}, for melmask.

```python
import melmask

e = melmask.load("{PREFIX}{repository}").embed("dog.wav")
e.scene, e.frames, e.times_ms
```

- input: {front_end.sample_rate_hz} Hz mono (other rates are resampled), {front_end.mels} mel bands from
  {front_end.min_hz:g} to {front_end.max_hz:g} Hz each {front_end.hop_ms:g} ms, normalized with mean
  {card.statistics.mean:.4f} and standard deviation {card.statistics.std:.4f}{_further(card)}
- network: {model.width} wide, {model.depth} blocks, patches {model.patch_mels} x {model.patch_frames}, units of
  {model.mels} x {model.frames}; {"with" if model.has_decoder else "without"} decoder

## Training

{facts}
"""


def _further(card: ModelCard) -> str:
    """Say what else the input has, in words that follow a sentence about the first resolution."""
    front_end, statistics = card.front_end, card.statistics
    parts = zip(front_end.further_resolutions, statistics.further_means, statistics.further_stds, strict=True)
    texts = [
        f"; {front_end.mels} more bands ({further.scale}) with a window of {further.window_ms:g} ms, mean {mean:.4f} "
        f"and standard deviation {std:.4f}"
        for further, mean, std in parts
    ]
    return "".join(texts)


def _reason(error: Exception) -> str:
    """Return the first line of the error's text, or its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _hub() -> ModuleType:
    require("hub")
    import huggingface_hub

    return huggingface_hub
