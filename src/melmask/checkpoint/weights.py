"""Read tensors from files that may be damaged or crafted, before the memory is made that they claim to need.

A safetensors file says the names, types and shapes of its tensors in a header of some kilobytes. A file of PyTorch is
an archive, whose pickle may describe more values than the archive holds, and tensors of kinds that no model has.
"""

import argparse
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from melmask.errors import CheckpointError, some_of
from melmask.system.reading import DamagedFileError, check_regular, open_file, reason_of

_HEADER_BYTES = 16 << 20
"""A network of 1,000 blocks has a header of 2 MB."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def shapes_in(path: Path, whole_numbers: str = "") -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a safetensors file; only its header is read.

    The tensor named `whole_numbers`, if there is one, may be of whole numbers of 8 bits.

    The library checks that the tensors fill the file without gaps, so a shape never promises more than there is.

    Raises:
        OSError: the file cannot be opened.
        CheckpointError: it is damaged, or a tensor is not of floating-point numbers of 16 to 64 bits.
    """
    with open_file(path) as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _HEADER_BYTES:
        raise CheckpointError(f"{path} says that its header has {size} bytes; it is damaged, copy it again")
    try:
        with safe_open(path, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - it is no dictionary
            kinds = {name: str(one.get_dtype()) for name, one in slices.items()}
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut off or damaged ({reason_of(error)}); copy it again") from error
    if kinds.get(whole_numbers) == "I8":
        del kinds[whole_numbers]
    if wrong := [f"{name} ({kind})" for name, kind in kinds.items() if kind not in _FLOATS]:
        raise CheckpointError(
            f"{path} has tensors that are no floats of 16 to 64 bits: {some_of(wrong)}; use another checkpoint"
        )
    return shapes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file whose shapes `shapes_in` has given, and somebody has checked.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is cut off or damaged ({reason_of(error)}); copy it again") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], like: Path) -> None:
    """Write a safetensors file with the rights of the file `like`, and put it on the disk.

    Raises:
        OSError: it cannot be written.
    """
    plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    # safetensors makes its file readable for its owner alone.
    shutil.copymode(like, path)
    # The power may fail, and what is written next may replace or vouch for what was there. Windows only puts files on
    # the disk that are open for writing.
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def load_torch_file(path: Path, device: str | torch.device = "cpu") -> Any:
    """Return what a file of `torch.save` holds; reading it runs none of its code.

    Raises:
        OSError: it cannot be opened.
        DamagedFileError: it unpacks to more than it is.
        pickle.UnpicklingError: it is not of tensors and plain values, or damaged.
        Exception: it is damaged; PyTorch raises nearly any class then.
    """
    check_regular(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        # torch.save compresses nothing, so a file that grows when it is read is not PyTorch's.
        if unpacked > path.stat().st_size:
            raise DamagedFileError(f"it unpacks to {unpacked} bytes")
    # The original trainers saved their options beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location=device, weights_only=True)


def check_plain(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Check that tensors of a PyTorch file are plain floats, of which each value lies in the file.

    Raises:
        CheckpointError: one is empty, expanded, sparse, quantized, complex, of integers or 8 bits, or without data.
    """
    for name, tensor in tensors.items():
        if what := _peculiar(tensor):
            raise CheckpointError(f"{source} has {name} as {what} tensor; expected plain floats of 16 to 64 bits")


def _peculiar(tensor: Tensor) -> str:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        return "a sparse, quantized or otherwise special"
    if tensor.is_meta or tensor.dtype not in _FLOAT_TYPES:
        return f"a {tensor.device} {str(tensor.dtype).removeprefix('torch.')}"
    if not tensor.numel():
        return f"an empty {tuple(tensor.shape)}"
    # A stride of 0 lets one stored number stand for any number of values.
    expanded = tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    return "an expanded" if expanded else ""
