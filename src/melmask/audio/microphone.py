"""Sound from a microphone, by way of the library sounddevice and of PortAudio, which it needs."""

import math

import numpy as np

from melmask.errors import InputError
from melmask.system.extras import require


def record(seconds: float) -> tuple[np.ndarray, int]:
    """Record from the system's microphone; return (samples,) float32 in [-1, 1] and their rate in Hz.

    The rate is the device's own, so that it need not be able to record at another.

    Raises:
        InputError: there is no microphone, or it cannot be used.
        MissingExtraError: sounddevice is not installed.
    """
    try:
        import sounddevice
    except ImportError:
        require("microphone")
        raise
    except OSError as error:
        # The library is there, but not what it calls.
        raise InputError(
            f"a recording needs PortAudio ({error}); on Debian and Ubuntu, apt-get install libportaudio2 brings it"
        ) from error
    try:
        rate_hz = round(sounddevice.query_devices(kind="input")["default_samplerate"])
        samples = sounddevice.rec(math.ceil(seconds * rate_hz), samplerate=rate_hz, channels=1, dtype="float32")
        sounddevice.wait()
    except (sounddevice.PortAudioError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"there is no microphone that can be used ({reason}); give a sound file, or - for a WAV file on standard "
            "input"
        ) from error
    return samples[:, 0], rate_hz
