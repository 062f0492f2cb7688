"""Sound from a microphone, by way of the library sounddevice and of PortAudio, which it needs."""

import math
from typing import Any

import numpy as np

from melmask.errors import InputError
from melmask.system.extras import require


class Microphone:
    """The system's microphone.

    Attributes: `rate_hz`, the device's own rate, because not every device can record at another.

    Raises:
        InputError: there is none, or it cannot be used.
        MissingExtraError: sounddevice is not installed.
    """

    def __init__(self) -> None:
        self._library = _library()
        try:
            self.rate_hz = round(self._library.query_devices(kind="input")["default_samplerate"])
        except (self._library.PortAudioError, ValueError) as error:
            raise _unusable(error) from error

    def record(self, seconds: int | float) -> np.ndarray:
        """Record so many seconds, and return (samples,) float32 in [-1, 1].

        Raises:
            InputError: the microphone cannot be used.
        """
        count = math.ceil(seconds * self.rate_hz)
        try:
            samples = self._library.rec(count, samplerate=self.rate_hz, channels=1, dtype="float32")
            self._library.wait()
        except (self._library.PortAudioError, ValueError) as error:
            raise _unusable(error) from error
        return samples[:, 0]


def _library() -> Any:
    try:
        import sounddevice
    except OSError as error:
        # The library is there, but not what it calls.
        raise InputError(
            f"a recording needs PortAudio ({error}); on Debian and Ubuntu, apt-get install libportaudio2 brings it"
        ) from error
    except ImportError:
        require("microphone")
        raise
    return sounddevice


def _unusable(error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"there is no microphone that can be used ({reason}); give a sound file, or - for a WAV file on standard input"
    )
