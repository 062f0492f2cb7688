"""Open models behind one interface, the HEAR 2021 API: melmask's models, the baselines, and third-party modules.

runs/tiny, hub:owner/name, a .pth file     a model that `melmask.load` reads
untrained:MODEL                            the same network with fresh random weights
logmel                                     mean and standard deviation of each mel band, without a network
python:MODULE, python:MODULE=WEIGHTS       a module with load_model and the two embedding functions
"""

import ast
import hashlib
import importlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import melmask.adapters.hear as hear
from melmask.audio.logmel import LogMelSpectrogram
from melmask.config import FrontEndConfig
from melmask.config_text import to_dict
from melmask.embedding.encoder import load, untrained
from melmask.errors import CheckpointError, InputError
from melmask.evaluate.options import EvaluateOptions
from melmask.system.hardware import pick_device
from melmask.system.reading import SMALL_FILE_BYTES, read_bytes
from melmask.system.terminal import note

PYTHON, UNTRAINED, LOGMEL = "python:", "untrained:", "logmel"


class Client:
    """A model behind the HEAR API.

    Attributes:
        name: Unique in a report.
        source: The text by which the user named the model.
        settings: Which features of it are judged, in words.
        identity: A digest; two clients with the same one give the same embeddings.
        sample_rate_hz: The rate of the sounds that it takes.
        scene_size: Length of a scene embedding.
        timestamp_size: Length of a timestamp embedding.
    """

    def __init__(
        self,
        name: str,
        source: str,
        identity: str,
        module: Any,
        model: Any,
        device: torch.device,
        settings: str = "",
    ):
        self.name = name
        self.source = source
        self.settings = settings
        self.identity = hashlib.sha256(identity.encode()).hexdigest()
        self._module, self._model, self._device = module, model, device
        self._warned_of_times = False
        try:
            self.sample_rate_hz = int(model.sample_rate)
            self.scene_size = int(model.scene_embedding_size)
            self.timestamp_size = int(model.timestamp_embedding_size)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"the model of {source} does not follow the HEAR API ({error}); it needs the attributes sample_rate, "
                "scene_embedding_size and timestamp_embedding_size"
            ) from error
        if min(self.sample_rate_hz, self.scene_size, self.timestamp_size) < 1:
            raise InputError(
                f"the model of {source} has sample_rate {self.sample_rate_hz}, scene_embedding_size {self.scene_size} "
                f"and timestamp_embedding_size {self.timestamp_size}; expected numbers from 1 up"
            )

    def scenes(self, audio: Float[np.ndarray, "clips samples"]) -> Float[np.ndarray, "clips dims"]:
        """Embed audio in [-1, 1] at the model's rate, one vector per clip.

        Raises:
            InputError: the module did not return (clips, scene_size) finite numbers.
        """
        vectors = self._call("get_scene_embeddings", audio)
        return self._checked(vectors, (len(audio), self.scene_size), "scene embeddings")

    def timestamps(
        self, audio: Float[np.ndarray, "clips samples"]
    ) -> tuple[Float[np.ndarray, "clips steps dims"], Float[np.ndarray, "clips steps"]]:
        """Return a vector for each step, and the times of their centers in ms; raise InputError like `scenes`."""
        answer = self._call("get_timestamp_embeddings", audio)
        if not (isinstance(answer, Sequence) and len(answer) == 2):
            raise InputError(
                f"{self.source} gave timestamp embeddings as {type(answer).__name__}; expected a pair of tensors, "
                "vectors and times in ms"
            )
        vectors, times_ms = answer
        steps = vectors.shape[1] if isinstance(vectors, Tensor) and vectors.ndim == 3 else 1
        vectors = self._checked(vectors, (len(audio), steps, self.timestamp_size), "timestamp embeddings")
        times = self._checked(times_ms, (len(audio), steps), "times", np.float64)
        if not steps or (np.diff(times, axis=1) <= 0).any():
            raise InputError(f"{self.source} gave times that do not increase; expected one or more steps, in ms")
        length_ms = 1000 * audio.shape[1] / self.sample_rate_hz
        # If a model gave seconds or samples, its events would be at wrong times, and yet it would get a score.
        if steps > 1 and not self._warned_of_times and not length_ms / 10 < times.max() < 2 * length_ms:
            self._warned_of_times = True
            note(
                f"{self.source} gave times up to {times.max():g} for clips of {length_ms:g} ms: HEAR's are in ms, and "
                "in another unit the scores of events are wrong"
            )
        return vectors, times

    def _call(self, function: str, audio: np.ndarray) -> Any:
        with torch.no_grad(), _process_kept():
            return getattr(self._module, function)(torch.from_numpy(audio).to(self._device), self._model)

    def _checked(self, answer: Any, shape: tuple[int, ...], what: str, dtype: type = np.float32) -> np.ndarray:
        if not isinstance(answer, Tensor):
            raise InputError(f"{self.source} gave {what} as {type(answer).__name__}; expected a torch.Tensor")
        # The copy is needed, because a module may use the same buffer for each answer.
        wide = torch.float64 if dtype is np.float64 else torch.float32
        array = answer.detach().cpu().to(wide, copy=True).numpy()
        if array.shape != shape or not np.isfinite(array).all():
            kind = "NaN or infinity" if array.shape == shape else f"the shape {array.shape}"
            raise InputError(f"{self.source} gave {what} with {kind}; expected finite numbers of shape {shape}")
        return array


def open_client(source: str, options: EvaluateOptions) -> Client:
    """Open the model that `source` names (see this module's head), with the options' features, device and precision.

    Raises:
        InputError: a module cannot be imported or does not follow the API.
        CheckpointError: the model cannot be loaded.
        ConfigError: the model does not offer the chosen features.
    """
    if source.startswith(PYTHON):
        return _python_client(source, options.device)
    if source == LOGMEL:
        device = pick_device(options.device)
        baseline = _LogMelModel(device)
        return Client("log-mel", LOGMEL, baseline.identity, baseline, baseline, device)
    path = source.removeprefix(UNTRAINED)
    encoder, name = load(path, options.device, options.precision), _short_name(path)
    if source.startswith(UNTRAINED):
        encoder = untrained(encoder.card, 0, str(encoder.device), encoder.precision)
        name = f"untrained {name}"
    choice = options.choice
    if choice.hop_ms is None:
        # The identity has the hop that is used, so that giving the default explicitly makes no other model.
        choice = choice.changed(hop_ms=hear.default_hop_ms(encoder.card))
    card = encoder.card
    choice = choice.of_model(card)
    layers = list(choice.layers)
    model = hear.hear_model(encoder, choice)
    identity = json.dumps([encoder.sha256, encoder.precision, *choice.to_dict().values()])
    which = f"layer {'+'.join(map(str, layers))}" if layers else "last layer"
    settings = f"{which}, {choice.pooling}, {choice.scene}, each {choice.hop_ms:g} ms, {encoder.precision}"
    return Client(name, source, identity, hear, model, encoder.device, settings)


def name_apart(clients: Sequence[Client], known: Mapping[str, str | None]) -> None:
    """Number names in place, so that no two clients share one, nor a client and another model of a report.

    Args:
        clients: In the order in which they are named.
        known: Name -> identity of the models of a report. An unknown identity, None, counts as the same.
    """
    identities = {slug(name): identity for name, identity in known.items()}
    taken: set[str] = set()
    for client in clients:
        # The second client of a name gets "name 2", and so on.
        for number in itertools.count(1):
            name = client.name if number == 1 else f"{client.name} {number}"
            # Names become folders, and two different names may become the same folder.
            if slug(name) not in taken and identities.get(slug(name)) in (None, client.identity):
                break
        client.name = name
        taken.add(slug(name))


def slug(name: str) -> str:
    """Return the name with only those characters that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _short_name(path: str) -> str:
    # The path "." only has a name when it is absolute.
    place = Path(path).absolute() if Path(path).exists() else Path(path.removeprefix("hub:"))
    # "checkpoints" is in the path of every step, so it tells nothing apart.
    parts = [part for part in place.parts if part not in ("/", "checkpoints")]
    # A step of a run needs both names: runs/tiny/checkpoints/step-0004500 -> tiny/step-0004500.
    return "/".join(parts[-2:]) if parts[-1].startswith("step-") else parts[-1]


def _python_client(source: str, device_name: str) -> Client:
    name, _, weights = source.removeprefix(PYTHON).partition("=")
    module = _import(name)
    for function in ("load_model", "get_scene_embeddings", "get_timestamp_embeddings"):
        if not callable(getattr(module, function, None)):
            raise InputError(f"the module {name} has no function {function}; expected the HEAR 2021 API")
    device, wanted = torch.device("cpu"), pick_device(device_name)
    try:
        with _process_kept():
            model = module.load_model(weights) if weights else module.load_model()
            if isinstance(model, torch.nn.Module):
                # Anything else gets sounds on the CPU, as it may not know of other devices.
                device = wanted
                model = model.to(device).eval()
    except (Exception, SystemExit) as error:
        # Third-party code may raise any exception, and its first line says best what is wrong.
        raise CheckpointError(f"load_model of {name} failed: {_first_line(error)}") from error
    identity = json.dumps([name, _code_facts(name), _file_facts(Path(weights)) if weights else []])
    return Client(name, source, identity, module, model, device)


@contextmanager
def _process_kept() -> Iterator[None]:
    """Restore on exit what third-party code may change in the process, so that other models are not affected."""
    folder, dtype, threads = Path.cwd(), torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _import(name: str) -> Any:
    try:
        with _process_kept():
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"the module {name} cannot be imported ({_first_line(error)}); install it, or set PYTHONPATH"
        ) from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _file_facts(path: Path) -> list[Any]:
    """Return what tells versions of a file or of a folder's files apart: a digest, or size and time if it is large."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return [[str(file.relative_to(path)), *_file_facts(file)] for file in files]
    if not path.is_file():
        return [str(path)]
    facts = path.stat()
    # Reading gigabytes of weights on each call would take longer than some tasks take.
    if facts.st_size < 1 << 20:
        return [hashlib.sha256(read_bytes(path)).hexdigest()]
    return [facts.st_size, facts.st_mtime_ns]


def _code_facts(name: str) -> list[Any]:
    """Return what tells versions of a module's code apart: the files of its package, and those it imports beside it.

    Other installed packages do not count.
    """
    first = name.partition(".")[0]
    # A module may have replaced itself in sys.modules by any object.
    top = sys.modules.get(first)
    place = next(iter(getattr(top, "__path__", ())), None) or getattr(top, "__file__", None)
    if not isinstance(place, str):
        return [name]
    # The modules are followed by name from file to file, without importing them: importing may run anything.
    root = Path(place).parent
    found: dict[str, list[Any]] = {}
    waiting = [first]
    while waiting:
        package = waiting.pop()
        if package in found:
            # Modules may import each other in a circle.
            continue
        files = [root / f"{package}.py", *sorted((root / package).rglob("*.py"))]
        found[package] = [[str(f.relative_to(root)), *_file_facts(f)] for f in files if f.is_file()]
        # If a module is not installed, the rest of its project lies beside it.
        if root.name not in ("site-packages", "dist-packages"):
            waiting += [other for file in files if file.is_file() for other in _imports(file)]
    return sorted(found.items())


def _imports(path: Path) -> Iterator[str]:
    """Yield the first part of the name of each module that a file imports."""
    try:
        nodes = list(ast.walk(ast.parse(read_bytes(path, SMALL_FILE_BYTES))))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


class _LogMelModel:
    """Mean and standard deviation of each of 80 mel bands, over the clip or over 160 ms around each step."""

    step_frames, window_frames = 4, 16

    def __init__(self, device: torch.device):
        front_end = FrontEndConfig()
        self.identity = json.dumps(["log-mel mean+std", self.step_frames, self.window_frames, to_dict(front_end)])
        self.logmel = LogMelSpectrogram(front_end).to(device)
        self.sample_rate = front_end.sample_rate_hz
        self.scene_embedding_size = self.timestamp_embedding_size = 2 * front_end.mels
        self._hop_ms = front_end.hop_ms

    def get_scene_embeddings(self, audio: Tensor, _model: Any) -> Tensor:
        logmel = self.logmel(audio)
        return torch.cat([logmel.mean(2), logmel.std(2, correction=0)], dim=1)

    def get_timestamp_embeddings(self, audio: Tensor, _model: Any) -> tuple[Tensor, Tensor]:
        logmel = self.logmel(audio)
        # The windows are centered at frames 0, 4, 8, ... At the ends the outermost frame is repeated.
        half = self.window_frames // 2
        padded = torch.nn.functional.pad(logmel, (half, half - 1), mode="replicate")
        windows = padded.unfold(2, self.window_frames, self.step_frames)
        vectors = torch.cat([windows.mean(3), windows.std(3, correction=0)], dim=1).transpose(1, 2)
        times_ms = torch.arange(vectors.shape[1]) * self.step_frames * self._hop_ms
        return vectors, times_ms.expand(len(audio), -1)
