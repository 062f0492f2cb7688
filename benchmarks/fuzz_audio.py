"""Read sound files that were damaged at random: none may end in a traceback, a crash, a hang or without memory.

    python benchmarks/fuzz_audio.py [--files 10000] [--seed 0] [--sounds FOLDER] [--keep FOLDER]

Good files of every format that soundfile writes (and those of FOLDER) are mutated: bits and bytes changed, numbers in
the header made large or small, parts cut out, repeated or exchanged. Child processes read them with bounds on memory
and time. Each file must give finite samples or an AudioFileError. The last line counts what came out, and the exit
status is 1 if anything else did; such files are kept in FOLDER.
"""

import argparse
import collections
import io
import random
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from bounded_worker import BoundedWorker

RATE_HZ = 16000
MEMORY_BYTES = 4 << 30
LIMIT_S = 60.0
"""For one file; the unmutated ones take milliseconds."""
WRITTEN = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAV", "ULAW"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"),
    ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("CAF", "ALAC_16"),
    ("NIST", "PCM_16"), ("VOC", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"), ("IRCAM", "PCM_16"), ("PAF", "PCM_16"), ("SVX", "PCM_16"), ("MAT5", "PCM_16"),
]  # fmt: skip


def good_files(folder: Path | None) -> dict[str, bytes]:
    """Name to content of small files of every format."""
    time_s = np.arange(RATE_HZ) / RATE_HZ
    noise = np.random.default_rng(0).normal(size=(RATE_HZ, 2))
    waveform = 0.3 * np.sin(2 * np.pi * 440 * time_s)[:, None] + 0.05 * noise
    files = {}
    for kind, subtype in WRITTEN:
        for channels in (1, 2):
            buffer = io.BytesIO()
            try:
                soundfile.write(buffer, waveform[:, :channels], RATE_HZ, format=kind, subtype=subtype)
            except soundfile.LibsndfileError:
                # Some formats hold one channel only.
                continue
            files[f"{kind}-{subtype}-{channels}"] = buffer.getvalue()
    mp3 = files["MP3-MPEG_LAYER_III-1"]
    files["MP3-without-tag"] = mp3[mp3.index(mp3[:2], 4) :]
    files["MP3-joined"] = mp3 + b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + files["MP3-MPEG_LAYER_III-2"]
    files["OGG-chained"] = files["OGG-OPUS-1"] + files["OGG-VORBIS-1"]
    for path in sorted(folder.iterdir()) if folder else ():
        if path.is_file() and path.stat().st_size < 1 << 22:
            files[path.name] = path.read_bytes()
    return files


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Damage a file in one to five ways."""
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        # Most harm is done in the header.
        end = len(damaged) if chance.random() < 0.4 else min(len(damaged), 200)
        at = chance.randrange(max(1, end))
        match chance.randrange(8):
            case 0:
                damaged[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                damaged[at : at + 1] = bytes([(damaged[at : at + 1] or b"\0")[0] ^ 1 << chance.randrange(8)])
            case 2:
                number = chance.choice((0, 1, 2, 3, 0x7FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000000))
                damaged[at : at + 4] = struct.pack(chance.choice(("<I", ">I")), number)
            case 3:
                damaged = damaged[: chance.randrange(len(damaged) + 1)]
            case 4:
                del damaged[at : at + chance.randrange(1, 2000)]
            case 5:
                damaged[at:at] = damaged[at : at + chance.randrange(1, 5000)]
            case 6:
                size = chance.randrange(1, 300)
                damaged[at : at + size] = chance.randbytes(size)
            case 7:
                number = chance.choice((0, 1, 2, 0x7FFF, 0xFFFF))
                damaged[at : at + 2] = struct.pack(chance.choice(("<H", ">H")), number)
    return bytes(damaged)


def outcome_of(path: Path) -> str:
    """Read a file: 'read', 'refused', or what should not be."""
    from melmask.audio.files import read_audio_blocks
    from melmask.errors import AudioFileError

    try:
        if not all(np.isfinite(block).all() for block in read_audio_blocks(path, RATE_HZ)):
            return "not finite"
    except AudioFileError as error:
        return "refused" if "\n" not in str(error) else "refused in several lines"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "read"


def main() -> int:
    """Mutate, read, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sounds", type=Path, help="a folder of more good files")
    parser.add_argument("--keep", type=Path, help="where files that are not read as they should be are kept")
    options = parser.parse_args()
    chance, files, worker = (
        random.Random(options.seed),
        good_files(options.sounds),
        BoundedWorker(outcome_of, MEMORY_BYTES, LIMIT_S),
    )
    outcomes: collections.Counter[str] = collections.Counter()
    slowest_s, slowest = 0.0, ""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.files):
            name = chance.choice(sorted(files))
            path = Path(folder) / f"{number:05d}-{name}"
            path.write_bytes(mutated(files[name], chance))
            start_s = time.monotonic()
            outcome = worker.outcome(path)
            if time.monotonic() - start_s > slowest_s and number:
                slowest_s, slowest = time.monotonic() - start_s, path.name
            outcomes[outcome if outcome in ("read", "refused") else "bad"] += 1
            if outcome not in ("read", "refused"):
                print(f"{path.name}: {outcome}", flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    path.replace(options.keep / path.name)
            path.unlink(missing_ok=True)
    worker.end()
    print(f"{dict(outcomes)}; the slowest, {slowest}, took {slowest_s:.2f} s")
    return int(outcomes["bad"] > 0)


if __name__ == "__main__":
    sys.exit(main())
