"""`melmask convert`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from melmask.config import FrontEndConfig, HardwareConfig, Statistics
from melmask.config_text import with_overrides
from melmask.errors import CheckpointError, ConfigError, OutputError
from melmask.system.terminal import say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Convert other projects' checkpoints to melmask's, or melmask's to MSM-MAE's."""

    model: Path = field(metadata={"positional": "MODEL"})
    """An MSM-MAE .pth file, a run or a checkpoint folder."""
    out: Path = field(metadata={"positional": "OUT"})
    """The folder to write. With --to msm-mae, it is a file."""
    to: Literal["melmask", "msm-mae"] = "melmask"
    """Format to write."""
    statistics: tuple[float, float] | None = field(default=None, metadata={"metavar": ("MEAN", "STD")})
    """Mean and standard deviation of the log-mels. The default is what the file holds, or else AudioSet's."""
    whiten: Path | None = field(default=None, metadata={"metavar": "STORE"})
    """Learn the whitening of scene vectors from this store of unlabeled sound, made with the model's front end. Then
    `melmask embed` and others use whitened scene vectors of the model unless told otherwise."""
    directions: int = field(default=128, metadata={"limits": (1, 10_000)})
    """With --whiten, how many of the strongest directions are damped."""
    settings: tuple[str, ...] = field(default=(), metadata={"settings": FrontEndConfig()})
    """set the front end. Other projects' checkpoints omit theirs, so melmask assumes that of the 16 kHz models. For
    32 kHz models, give sample_rate_hz=32000 n_fft=800 win_samples=800 hop_samples=320 max_hz=16000. These are the
    settings and their defaults:"""


def run(options: Options) -> int:
    """Write the model in the other format, and print what it is."""
    from melmask.checkpoint.convert import save_msm_mae
    from melmask.checkpoint.folder import save_checkpoint
    from melmask.checkpoint.locate import load_any
    from melmask.corpus.store import Store
    from melmask.embedding.whitening import whitened_card

    _check_out(options)
    model, card, source = load_any(options.model)
    # melmask's own checkpoints know their front end, and for others one is assumed. Settings override both.
    card = replace(card, front_end=with_overrides(card.front_end, options.settings))
    if options.statistics:
        mean, std = options.statistics
        card = replace(card, statistics=Statistics(mean=mean, std=std))
    if options.whiten is not None:
        card = whitened_card(model, card, Store(options.whiten), options.directions, HardwareConfig())
    if options.to == "msm-mae":
        save_msm_mae(options.out, model, card)
    else:
        save_checkpoint(options.out, model, card)
    m = card.model
    damped = f", {card.whitened_directions} directions of scene vectors damped" if card.whitening else ""
    say(
        f"{source} -> {options.out}: {m.mels}x{m.frames}, patches {m.patch_mels}x{m.patch_frames}"
        f"{f' of {m.resolutions} resolutions' if m.resolutions > 1 else ''}, "
        f"{m.width} wide, {m.depth} deep, {'with' if m.has_decoder else 'without'} decoder, "
        f"{card.front_end.sample_rate_hz} Hz, "
        f"mean {card.statistics.mean:g}, std {card.statistics.std:g}"
        f"{'' if options.to == 'msm-mae' else damped}"
    )
    if options.to == "msm-mae":
        say(
            "the file has no room for the statistics, the front end and the number of heads; tell its reader what they "
            f"are (melmask takes --statistics {card.statistics.mean:g} {card.statistics.std:g})"
        )
        if card.layers or card.whitening is not None:
            say(
                "nor has it room for the layer that features come from, and for the whitening: its readers take the "
                "last block, and scene vectors as they are"
            )
        # They derive the number of heads from the width of the network.
        heads = [("encoder", "features", m.width, m.heads)]
        if m.has_decoder:
            heads.append(("decoder", "reconstructions", m.decoder_width, m.decoder_heads))
        for part, wrong, width, number in heads:
            if width != 64 * number:
                say(
                    f"readers of this format assume heads of width 64; those of the {part} have {width // number}, so "
                    f"its {wrong} would be wrong there"
                )
    return 0


def _check_out(options: Options) -> None:
    """Refuse what would be lost, before the work."""
    from melmask.checkpoint.folder import CONFIG, WEIGHTS, read_card

    if options.to == "msm-mae":
        if options.whiten is not None:
            raise ConfigError("--whiten is for melmask's format; the one of MSM-MAE has no place for a whitening")
        if options.out.exists():
            raise OutputError(f"{options.out} is there already, and would be lost; delete it, or give another name")
    # Writing a checkpoint replaces the whole folder, so it must hold nothing else.
    there = {path.name for path in options.out.iterdir()} if options.out.is_dir() else set()
    if there:
        lost = min(there - {CONFIG, WEIGHTS}, default=None)
        if lost is None:
            try:
                read_card(options.out)
            except CheckpointError:
                # Models of other programs have files of these names, too.
                lost = min(there)
        if lost is not None:
            raise OutputError(f"{options.out} holds {lost}, which would be lost; give a new or an empty folder")
