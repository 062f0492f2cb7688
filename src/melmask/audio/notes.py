"""What a user should know of a sound that can be read: noticed while it is read, and counted for a whole job."""

import math
import re
from collections.abc import Iterable

import numpy as np

from melmask.config import MEAN, FrontEndConfig, Reading
from melmask.system.terminal import counted

CANCEL, DEAD = "channels cancel each other", "a channel is silent"
LOUD, HIGH = "samples far above 1", "a rate far above the band"
_CORRELATION_MARGIN = 10.0
"""The mean of N independent channels has an Nth of the power of one. Channels cancel if it has less than a tenth of
that; for two channels of one level, this is a correlation below -0.9."""
_DEAD_SHARE = 1e-8
"""A channel 80 dB below the other one is silent: the noise of a socket without a microphone."""
_LOUD_PEAK = 10.0
"""20 dB above full scale. Decoded MP3s and mastered floats exceed 1 by less, and unscaled integers by more."""
_RATES = re.compile(rf"{re.escape(HIGH)} \((\d+) Hz, for (\d+) Hz(?: at --expand (\d+(?:\.\d+)?(?:e\+\d+)?))?\)")
_HIGH_RATIO = 4
"""44.1 and 48 kHz are three times the 16 kHz of most models, and what they lose is ordinary."""


class Listener:
    """Hears the blocks of one file before its channels are mixed.

    Args:
        reading: How the file is read.
        to_hz: The rate that it is resampled to; without it, rates are not compared. A model of less than 16 kHz was
            made to hear little of a file, so it counts as one of 16 kHz.
    """

    def __init__(self, reading: Reading = Reading(), to_hz: int | None = None):
        self._mixes, self._expand = reading.channel == MEAN, reading.expand
        self._to_hz = to_hz
        self._rate_hz, self._peak = 0, 0.0
        self._powers, self._mean_power = np.zeros(0), 0.0

    def hear(self, block: np.ndarray, peak: float) -> None:
        """Take in a block (samples, channels), whose loudest sample is `peak`."""
        self._peak = max(self._peak, peak)
        channels = block.shape[1]
        if self._mixes and channels > 1:
            if len(self._powers) != channels:
                # Another stretch of the file has other channels, and the last ones count.
                self._powers, self._mean_power = np.zeros(channels), 0.0
            self._powers += np.einsum("sc,sc->c", block, block, dtype=np.float64)
            self._mean_power += float(np.square(block.mean(axis=1), dtype=np.float64).sum())

    def at_rate(self, rate_hz: int) -> None:
        """Take in the sample rate of a stretch of the file."""
        self._rate_hz = max(self._rate_hz, rate_hz)

    @property
    def note(self) -> str | None:
        """What is to be known of the file, in words; None if nothing is."""
        notes = []
        quietest, loudest = self._powers.min(initial=np.inf), self._powers.max(initial=0.0)
        if loudest and self._mean_power * _CORRELATION_MARGIN * len(self._powers) < quietest:
            below_db = 10 * math.log10(quietest / max(self._mean_power, 1e-12 * quietest))
            notes.append(f"{CANCEL} (their mean is {below_db:.0f} dB below each)")
        elif len(self._powers) == 2 and quietest < _DEAD_SHARE * loudest:
            notes.append(f"{DEAD} (number {int(self._powers.argmin()) + 1})")
        if self._peak > _LOUD_PEAK:
            notes.append(f"{LOUD} (up to {self._peak:.5g})")
        heard_hz = max(self._to_hz or math.inf, FrontEndConfig.sample_rate_hz)
        if self._rate_hz >= _HIGH_RATIO * heard_hz:
            slower = "" if self._expand == 1 else f" at --expand {self._expand:g}"
            notes.append(f"{HIGH} ({self._rate_hz} Hz, for {self._to_hz} Hz{slower})")
        return "; ".join(notes) or None


def summary(notes: Iterable[str], where: object, what: str = "file") -> list[str]:
    """Return lines that count what the files of a job have: one about channels and levels, one about rates.

    Args:
        notes: Those of the files that have one.
        where: Where they can be read: "its column note", or a file.
        what: What each note is about, "file" or "segment".
    """
    found = list(notes)
    kinds = {kind: sum(kind in note for note in found) for kind in (CANCEL, DEAD, LOUD)}
    lines = []
    if any(kinds.values()):
        count = sum(any(kind in note for kind in kinds) for note in found)
        counts = ", ".join(f"{kind} in {number}" for kind, number in kinds.items() if number)
        advice = "; --channel N takes one channel instead of the mean" if kinds[CANCEL] or kinds[DEAD] else ""
        lines.append(f"{_with_verb(count, what)} notes ({counts}), see {where}{advice}")
    if rates := [match for text in found if (match := _RATES.search(text))]:
        highest_hz, to_hz = max(int(match[1]) for match in rates), int(rates[0][2])
        # The model's own rate counts, whatever the sound was slowed by this time.
        expand = math.ceil(round(highest_hz * float(rates[0][3] or 1) / to_hz, 6))
        lines.append(
            f"{_with_verb(len(rates), what)} rates of up to {highest_hz} Hz, and all sound above {to_hz / 2:g} Hz is "
            f"cut off; to hear it, give --expand {expand}, or train on a store of melmask prepare --band {highest_hz}"
        )
    return lines


def _with_verb(count: int, what: str) -> str:
    return f"{counted(count, what)} {'has' if count == 1 else 'have'}"
