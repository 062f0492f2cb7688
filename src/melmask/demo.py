"""Run the main job end to end in minutes, on labeled sounds that melmask synthesizes itself."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from melmask.audio.files import read_audio
from melmask.checkpoint.bundled import has_bundled_model
from melmask.config import FrontEndConfig
from melmask.corpus.prepare import prepare
from melmask.corpus.store import Store
from melmask.datasets.synthetic import CLASSES, write_sound_set
from melmask.downstream.options import ProbeOptions
from melmask.downstream.probe import probe_tasks
from melmask.downstream.records import table_text
from melmask.embedding.encoder import AudioEncoder, load
from melmask.embedding.folder import embed_table
from melmask.embedding.whitening import set_features
from melmask.figures.reconstruction import save_reconstruction_picture
from melmask.figures.training import ReconstructionPictures
from melmask.pages.run import write_run_page
from melmask.system.extras import can_draw
from melmask.system.files import write_csv
from melmask.system.progress import duration_text
from melmask.system.terminal import note
from melmask.train.pretrain import pretrain
from melmask.train.resume import resolve_config

_CLIPS_PER_CLASS = 100
_PICTURE, _FIRST_PICTURE = "reconstructions.png", "box.png"
# Four classes whose log-mels look different at a glance.
_PICTURED = ("sweep_rising", "arpeggio_falling", "vibrato_fast", "rhythm_gallop")


def run_demo(out: Path, overrides: Sequence[str] = ()) -> str:
    """Synthesize, prepare, pre-train, embed, probe and draw, all below `out`, and return the closing text.

    When the demo runs again, it skips the steps that are complete.

    Args:
        out: folder for everything that the demo writes.
        overrides: settings of the recipe demo, as "optimizer.steps=100".

    Raises:
        ConfigError: a setting is not known, or its value is refused.
        OutputError: `out` cannot be written to.
    """
    draws = can_draw()
    start_s = time.monotonic()
    note(f"1/5 sounds: {_CLIPS_PER_CLASS} clips of each of {len(CLASSES)} classes")
    labels = write_sound_set(out / "sounds", _CLIPS_PER_CLASS)
    rows = _rows(labels)
    test = [labels.parent / row["path"] for row in rows if row["split"] == "test"]
    if draws and has_bundled_model():
        # Whoever tries melmask sees something before the training, which takes minutes.
        _draw(load(), out / _FIRST_PICTURE, test)
        note(f"what the model in the box reconstructs of four of them: {out / _FIRST_PICTURE}")
    # The test clips stay out of pre-training too, so the probe tests sounds that the model has never heard.
    unlabeled = labels.with_name("unlabeled.csv")
    write_csv(unlabeled, [("path",), *((row["path"],) for row in rows if row["split"] != "test")])
    note("2/5 prepare: log-mels of the clips that are not held out for the test")
    prepare([unlabeled], out / "store", FrontEndConfig())
    note("3/5 pre-train a small masked autoencoder on them, without labels")
    store = Store(out / "store")
    config = resolve_config(out / "run", "demo", overrides, store)
    pretrain(store, out / "run", config, [ReconstructionPictures(store, config)] if draws else [], write_run_page)
    set_features(out / "run", store, config)
    note("4/5 embed every clip")
    model = load(out / "run")
    embed_table(model, [labels.parent / row["path"] for row in rows], out / "embeddings.parquet")
    note("5/5 probe: which of the classes is it? On held-out clips, beside two baselines")
    report = probe_tasks(model, [labels], out / "probe", ProbeOptions(scheme="split"))
    # An objective that is chosen by a setting may leave an encoder that cannot reconstruct.
    reconstructs = model.card.model.has_decoder
    if draws and reconstructs:
        _draw(model, out / _PICTURE, test)
    return _closing(out, table_text(report), draws, reconstructs, time.monotonic() - start_s)


def _rows(labels: Path) -> list[dict[str, str]]:
    with labels.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _draw(model: AudioEncoder, picture: Path, test: list[Path]) -> None:
    """Draw what the model reconstructs of four clips that it has never heard."""
    chosen = [next(path for path in test if path.parent.name == label) for label in _PICTURED]
    waveforms = np.stack([read_audio(path, model.sample_rate_hz) for path in chosen])
    logmels = model.logmel(waveforms, sample_rate_hz=model.sample_rate_hz)
    save_reconstruction_picture(picture, model, logmels, [path.stem for path in chosen])


def _closing(out: Path, table: str, draws: bool, reconstructs: bool, seconds: float) -> str:
    pictures = [f"{out / 'probe' / 'labels.png'} (which classes it takes for which)"]
    if reconstructs:
        pictures.insert(0, f"{out / _PICTURE} (what the model reconstructs of sounds that it has never heard)")
    drawn = "pictures     " + f"\n{'':13}".join(pictures) + "\n"
    page = f"{out / 'run' / 'index.html'} (whether the training was healthy)"
    return f"""
{table}

done in {duration_text(seconds)}
{drawn if draws else ""}run          {page}
embeddings   {out / "embeddings.parquet"}

do the same with your own sounds:
  melmask embed FOLDER                                   # with the model in the box
  melmask prepare FOLDER --out store                     # or train a model on them
  melmask pretrain store --recipe tiny --out runs/mine
  melmask embed FOLDER --model runs/mine --out embeddings.parquet
  melmask probe --model runs/mine --labels labels.csv"""
