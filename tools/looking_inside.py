"""Make the pictures and the numbers of docs/looking-inside.md.

    python tools/looking_inside.py --shared SHARED [--model MODEL] [--only pictures|numbers]

SHARED holds the folders `corpus` and `audio`, as for tools/box/build.py. The pictures show clips of `corpus` under CC0,
which the model in the box was trained on. The numbers are of clips of `audio` that it was not trained on; those may not
be published, their numbers may. Pictures go to docs/images/looking-inside/, numbers to
benchmarks/results/2026-11-30-looking-inside.md.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

import melmask
from melmask.config import MaskingConfig
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import MelmaskError
from melmask.figures import figure as figure_module
from melmask.figures.figure import save_figure
from melmask.figures.show import (
    show_attention,
    show_attention_statistics,
    show_features,
    show_reconstruction,
)
from melmask.inspection.attention import attention_of
from melmask.inspection.attention_statistics import AttentionStatistics
from melmask.inspection.clips import Clip, clip_of
from melmask.inspection.features import clip_features
from melmask.inspection.options import STRATEGIES, AttentionOptions, MaskOptions, StretchOptions
from melmask.inspection.reconstruction import clip_mask, patch_means, reconstruct_clip
from melmask.inspection.sound import sound_of

ROOT = Path(__file__).parents[1]
OUT, NUMBERS = ROOT / "docs/images/looking-inside", ROOT / "benchmarks/results/2026-11-30-looking-inside.md"
SPEECH = "rhasspy_dataset-voice-kerstin/de_rhasspy-0120_6dd57a.opus"
BELLS = "Fris0uman_CDDA-Soundpacks/church_bells_873327.opus"
BIRDS = "supertuxkart-data/exotic-birds_9f7db8.opus"
MUSIC = "lomiri-sounds/Call_me_9f19b6.opus"
SETS = ("esc50", "donateacry", "ravdess", "fsdd", "philharmonia", "phil_phrases", "librosa_music")
CLIPS_PER_SET, SEEDS, MOST_S = 8, 2, 2.08


def draw_pictures(model: AudioEncoder, corpus: Path) -> None:
    """Draw the pictures, most of them of one unit, so that they can be read on a page."""
    unit = StretchOptions(start=0.6, end=2.7)
    speech = corpus / SPEECH
    figures = {
        "speech-reconstruction": show_reconstruction(model, speech, MaskOptions(), unit),
        "speech-predictable": show_reconstruction(model, speech, MaskOptions(seeds=40), unit),
        "bells-predictable": show_reconstruction(model, corpus / BELLS, MaskOptions(seeds=40), unit),
        "birds-predictable": show_reconstruction(model, corpus / BIRDS, MaskOptions(seeds=40), unit),
        "speech-attention": show_attention(model, speech, AttentionOptions(), unit),
        "speech-patch": show_attention(model, speech, AttentionOptions(at=(1.8, 400.0), layer="11"), unit),
        "music-features": show_features(model, corpus / MUSIC, stretch=StretchOptions(end=8.0)),
    }
    for name, figure in figures.items():
        save_figure(figure, OUT / f"{name}.png")


def clips_of(model: AudioEncoder, audio: Path, name: str) -> list[Clip]:
    """Return clips of a set that were not trained on, spread over its table; of long ones, the first unit."""
    with (audio / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("esc10") != "1"]
    found: list[Clip] = []
    for number in np.linspace(0, len(rows) - 1, CLIPS_PER_SET, dtype=int):
        try:
            found.append(clip_of(model, audio / rows[number]["path"], end_s=MOST_S))
        except MelmaskError as error:
            sys.stderr.write(f"{error}\n")
    return found


def reconstruction_rows(model: AudioEncoder, sets: dict[str, list[Clip]]) -> list[str]:
    """Return rows of a table: the error of the model and of filled patches in dB, by set and strategy."""
    lines = ["| set | " + " | ".join(STRATEGIES) + " |", "|---|" + "--:|" * len(STRATEGIES)]
    for name, clips in sets.items():
        cells = []
        for strategy in STRATEGIES.values():
            errors = []
            for clip in clips:
                for seed in range(SEEDS):
                    try:
                        masked = clip_mask(model, clip, MaskingConfig(strategy=strategy), seed)
                        made = reconstruct_clip(model, clip, masked)
                    except MelmaskError:
                        # A clip of a single column has no stripe of time to hide.
                        continue
                    errors.append((made.error_db, made.filled_db))
            of_model, of_filled = np.mean(errors, axis=0)
            cells.append(f"{of_model:.1f} ({of_filled:.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        sys.stderr.write(lines[-1] + "\n")
    return lines


def loudness_rows(model: AudioEncoder, sets: dict[str, list[Clip]]) -> list[str]:
    """Return, by layer, how the attention that patches get goes with how loud they are, in ranks, over whole units."""
    config = model.card.model
    found = []
    for clips in sets.values():
        for clip in clips:
            unit = clip.logmel[:, : config.frames]
            if unit.shape[1] < config.frames:
                continue
            attention = attention_of(model, unit)
            loudness = np.argsort(np.argsort(patch_means(unit, config).ravel()))
            of_all = [attention.mean(layer).ravel() for layer in range(1, config.depth + 1)]
            of_cls = [attention.from_cls(layer).ravel() for layer in range(1, config.depth + 1)]
            ranks = [[np.argsort(np.argsort(weights)) for weights in part] for part in (of_all, of_cls)]
            found.append([[np.corrcoef(loudness, rank)[0, 1] for rank in part] for part in ranks])
    means = np.mean(found, axis=0)
    lines = ["| layer | " + " | ".join(map(str, range(1, config.depth + 1))) + " |", "|---|" + "--:|" * config.depth]
    for name, values in zip(("all tokens", "CLS"), means, strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{value:+.2f}" for value in values) + " |")
    return lines


def head_rows(found: AttentionStatistics) -> list[str]:
    """Return rows of a table: the heads that look nearest, farthest, most narrowly and most widely."""
    lines = ["| layer | head | distance in s | in rows | entropy in bits | to CLS |", "|--:|--:|--:|--:|--:|--:|"]
    for layer, head, *values in found.rows()[1:]:
        time_s, rows, bits, of_cls = map(float, values)  # type: ignore[arg-type]
        lines.append(f"| {layer} | {head} | {time_s:.2f} | {rows:.2f} | {bits:.1f} | {of_cls:.2f} |")
    return lines


def position_rows(model: AudioEncoder, sets: dict[str, list[Clip]]) -> list[str]:
    """Return rows of a table: the share of the variance of frame vectors within a clip that is their position."""
    lines = ["| set | share of position |", "|---|--:|"]
    for name, clips in sets.items():
        shares = [clip_features(model, clip).of_position for clip in clips if clip.logmel.shape[1] >= 64]
        if shares:
            lines.append(f"| {name} | {100 * np.mean(shares):.0f} % |")
    return lines


def sound_rows(model: AudioEncoder, sets: dict[str, list[Clip]]) -> list[str]:
    """Return rows of a table: how far the log-mel of an inverted sound is from that which was inverted, in dB."""
    mels, lines = model.card.front_end.mels, ["| set | first resolution | others |", "|---|--:|--:|"]
    for name, clips in sets.items():
        errors = []
        for clip in clips[:4]:
            again = model.logmel(sound_of(clip.logmel, model), model.card.front_end.sample_rate_hz)[0]
            distances = np.abs(np.maximum(again, again.max() - 16.1) - np.maximum(clip.logmel, again.max() - 16.1))
            errors.append([4.343 * part.mean() for part in np.split(distances, [mels]) if part.size])
        means = np.mean(errors, axis=0)
        lines.append(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return lines


def measure(model: AudioEncoder, audio: Path) -> None:
    """Write the numbers, and the picture of all heads."""
    sets = {name: clips_of(model, audio, name) for name in SETS}
    paths = [audio / name / clip.name for name, clips in sets.items() for clip in clips]
    figure, heads = show_attention_statistics(model, paths, "heads over clips that were not trained on")
    save_figure(figure, OUT / "heads.png")
    parts = {
        "Error in dB of the model, and of filled patches in brackets, 75 % hidden": reconstruction_rows(model, sets),
        f"Heads ({heads.units} units of {heads.sounds} clips)": head_rows(heads),
        "Rank correlation of the attention that patches get with their level": loudness_rows(model, sets),
        "Variance of frame vectors": position_rows(model, sets),
        "Error of inverted sound in dB, down to 70 dB below the loudest": sound_rows(model, sets),
    }
    text = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in parts.items())
    NUMBERS.write_text(f"# What the model in the box sees, hears and attends to\n\n{text}\n", encoding="utf-8")


def main() -> None:
    """Make both, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--model", help="the default is the model in the box")
    parser.add_argument("--only", choices=["pictures", "numbers"])
    options = parser.parse_args()
    model = melmask.load(options.model, device="cpu")
    OUT.mkdir(parents=True, exist_ok=True)
    # A page is read on a screen, and the repository holds the pictures for ever.
    figure_module.DOTS_PER_INCH = 110
    if options.only != "numbers":
        draw_pictures(model, options.shared / "corpus")
    if options.only != "pictures":
        measure(model, options.shared / "audio")


if __name__ == "__main__":
    main()
