"""When things happen in a sound, and how loud they are: onsets, rhythms and envelopes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from melmask.synth.draw import Curve, Draw

_MOST_EVENTS = 64


class Events(NamedTuple):
    """Onsets in s, ascending, and a gain for each; the first may be before the sound begins."""

    onsets_s: Float[np.ndarray, " events"]
    gains: Float[np.ndarray, " events"]

    def at(self, draw: Draw) -> Int[np.ndarray, " points"]:
        """Return the number of the newest event at each point of a curve; -1 before the first."""
        return np.searchsorted(self.onsets_s, np.arange(draw.points) * draw.step_s, side="right") - 1


def draw_events(draw: Draw) -> Events:
    """Draw the onsets of a layer: one sound that lasts, a single event, a rhythm, chance, or haste."""
    length_s = draw.samples / draw.rate_hz
    kind = draw.rng.random()
    if kind < 0.13:
        onsets = np.array([-draw.uniform(0.0, length_s)])
    elif kind < 0.3:
        onsets = np.array([draw.uniform(-0.2, 0.9) * length_s])
    elif kind < 0.7:
        onsets = _rhythm(draw, length_s)
    elif kind < 0.9:
        # Gaps between events that do not know of each other are exponentially distributed.
        mean_s = draw.span_s(0.06, 1.0)
        onsets = np.cumsum(draw.rng.exponential(mean_s, _events_in(length_s, mean_s))) - mean_s
    else:
        count = int(draw.rng.integers(4, 24))
        onsets = (np.arange(count) / count) ** draw.log_uniform(0.5, 2.0) * length_s
    count = len(onsets)
    swing_db = draw.uniform(0.0, 12.0)
    return Events(onsets, 10 ** (-swing_db * draw.rng.random(count) / 20))


def _rhythm(draw: Draw, length_s: float) -> np.ndarray:
    """Return onsets at a tempo, some of them left out in every bar, with unevenness like a player's or a speaker's."""
    beat_s = draw.span_s(0.07, 0.9)
    beats = _events_in(length_s, beat_s)
    bar = draw.rng.random(int(draw.rng.integers(1, 9))) < draw.uniform(0.5, 1.0)
    bar[0] = True
    played = np.flatnonzero(np.resize(bar, beats))
    jitter = draw.uniform(0.0, 0.3) * draw.rng.random(len(played)) if draw.chance(0.6) else 0.0
    return (played + jitter - draw.rng.random()) * beat_s


def _events_in(length_s: float, gap_s: float) -> int:
    return min(_MOST_EVENTS, 2 + int(length_s / gap_s))


def envelope(draw: Draw, events: Events) -> Curve:
    """Draw the loudness of a layer over time: each event has an attack, and decays or lasts until near the next one."""
    number = events.at(draw)
    onsets = events.onsets_s[number]
    age_s = np.arange(draw.points) * draw.step_s - onsets
    attack_s = draw.span_s(0.001, 0.2 if draw.chance(0.3) else 0.02)
    shape = np.minimum(age_s / attack_s, 1.0)
    if draw.chance(0.5):
        shape = shape * np.exp(-np.maximum(age_s, 0) / draw.span_s(0.015, 0.8))
    elif len(events.onsets_s) > 1:
        # The note ends before the next one begins. A release of at least 10 ms does not click.
        ends = np.append(events.onsets_s[1:], 2 * events.onsets_s[-1] - events.onsets_s[-2])
        length_s = draw.uniform(0.3, 1.05) * (ends - events.onsets_s)[number]
        shape = shape * np.clip((length_s - age_s) / draw.span_s(0.01, 0.1), 0, 1)
        if draw.chance(0.15):
            # A swell grows until it stops, as a decay that is played backwards.
            shape = shape * np.exp(np.minimum(age_s - length_s, 0) / draw.span_s(0.03, 0.4))
    shape = np.where(number < 0, 0.0, shape * events.gains[number])
    if draw.chance(0.25):
        rate_hz = draw.log_uniform(2.0, 40.0) / draw.slowness
        turns = np.arange(draw.points) * (draw.step_s * rate_hz) + draw.rng.random()
        shape = shape * (1 - draw.uniform(0.2, 1.0) * (0.5 + 0.5 * np.sin(2 * np.pi * turns)))
    if draw.chance(0.4):
        shape = shape * 10 ** (draw.uniform(2.0, 15.0) * draw.walk(draw.span_s(0.05, 1.0)) / 20)
    return shape


def melody(draw: Draw, events: Events, octaves: float) -> Curve:
    """Draw how far the pitch is from its center, in octaves: a note for each event, glides, vibrato and drift."""
    number = events.at(draw)
    notes = octaves * (draw.rng.random(len(events.onsets_s)) - 0.5) if draw.chance(0.6) else events.onsets_s * 0
    if draw.chance(0.4):
        notes = np.rint(12 * notes) / 12
    pitch = notes[number]
    if draw.chance(0.4):
        age_s = np.arange(draw.points) * draw.step_s - events.onsets_s[number]
        glide = np.clip(age_s / draw.span_s(0.03, 0.8), 0, 1)
        pitch = pitch + draw.uniform(-1.0, 1.0) * octaves * (glide if draw.chance(0.5) else np.sqrt(glide))
    if draw.chance(0.3):
        turns = np.arange(draw.points) * (draw.step_s * draw.log_uniform(3.0, 30.0) / draw.slowness)
        pitch = pitch + draw.log_uniform(0.01, 0.3) * np.sin(2 * np.pi * turns)
    if draw.chance(0.7):
        pitch = pitch + draw.log_uniform(0.003, 0.5) * draw.walk(draw.span_s(0.02, 0.8))
    return pitch
