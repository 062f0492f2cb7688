"""`melmask demo`: the main job, end to end, in minutes, on labelled sounds that melmask synthesises itself."""

import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from melmask.audio.files import read_audio
from melmask.config import FrontEndConfig
from melmask.corpus.prepare import prepare
from melmask.corpus.store import Store
from melmask.datasets.synthetic import CLASSES, write_sound_set
from melmask.downstream.options import ProbeOptions
from melmask.downstream.probing import probe_tasks, table_text
from melmask.embedding.encoder import AudioEncoder, load
from melmask.embedding.folder import embed_table
from melmask.figures.reconstruction import save_reconstruction_picture
from melmask.figures.training import ReconstructionPictures
from melmask.pages.run import write_run_page
from melmask.system.extras import can_draw, require
from melmask.system.progress import duration_text
from melmask.train.pretrain import pretrain
from melmask.train.resume import resolve_config

_CLIPS_PER_CLASS = 100
_PICTURE = "reconstructions.png"
_PICTURED = ("sweep_rising", "arpeggio_falling", "vibrato_fast", "rhythm_gallop")


def run_demo(out: Path, overrides: Sequence[str] = ()) -> str:
    """Synthesise, prepare, pre-train, embed, probe and draw, all below `out`; returns the closing text.

    Steps that are complete are skipped when the demo runs again.

    Raises:
        OutputError: `out` cannot be written to.
        MissingExtraError: scikit-learn, which the probe needs, is not installed.
    """
    require("eval")
    draws = can_draw()
    start_s = time.monotonic()
    _say(f"1/5 sounds: {_CLIPS_PER_CLASS} clips of each of {len(CLASSES)} classes")
    labels = write_sound_set(out / "sounds", _CLIPS_PER_CLASS)
    # The test clips stay out of pre-training too: the probe's result is for sounds never heard.
    unlabelled, test = _write_manifests(labels)
    _say("2/5 prepare: log-mels of the clips that are not held out for the test")
    prepare([unlabelled], out / "store", FrontEndConfig())
    _say("3/5 pre-train a small masked autoencoder on them, without labels")
    store = Store(out / "store")
    config = resolve_config(out / "run", "demo", overrides, store)
    pretrain(store, out / "run", config, [ReconstructionPictures(store, config)] if draws else [], write_run_page)
    _say("4/5 embed every clip")
    model = load(out / "run")
    paths = [labels.parent / row["path"] for row in _rows(labels)]
    embed_table(model, paths, out / "embeddings.parquet")
    _say("5/5 probe: which of the classes is it? On held-out clips, beside two baselines")
    report = probe_tasks(model, [labels], out / "probe", ProbeOptions(scheme="split"))
    if draws:
        _draw(model, out / _PICTURE, test)
    return _closing(out, table_text(report), draws, time.monotonic() - start_s)


def _write_manifests(labels: Path) -> tuple[Path, list[Path]]:
    rows = _rows(labels)
    unlabelled = labels.with_name("unlabelled.csv")
    with unlabelled.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path",), *((row["path"],) for row in rows if row["split"] != "test")])
    return unlabelled, [labels.parent / row["path"] for row in rows if row["split"] == "test"]


def _rows(labels: Path) -> list[dict[str, str]]:
    with labels.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _draw(model: AudioEncoder, picture: Path, test: list[Path]) -> None:
    """Reconstructions of held-out clips."""
    chosen = [next(path for path in test if path.parent.name == label) for label in _PICTURED]
    waveforms = np.stack([read_audio(path, model.sample_rate_hz) for path in chosen])
    logmels = model.logmel(waveforms, sample_rate_hz=model.sample_rate_hz)
    save_reconstruction_picture(picture, model, logmels, [path.stem for path in chosen])


def _closing(out: Path, table: str, draws: bool, seconds: float) -> str:
    drawn = f"""pictures     {out / _PICTURE}
             {out / "probe" / "labels.png"} (which classes are taken for which)
"""
    page = f"{out / 'run' / 'index.html'} (the training: is it healthy, and the same clips as it went on)"
    return f"""
{table}

done in {duration_text(seconds)}
{drawn if draws else ""}run          {page}
embeddings   {out / "embeddings.parquet"}

the same on your own sounds:
  melmask prepare FOLDER --out store
  melmask pretrain store --recipe tiny --out runs/mine
  melmask embed FOLDER --model runs/mine --out embeddings.parquet
  melmask probe --model runs/mine --labels labels.csv"""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
