"""Others' checkpoints: the original MSM-MAE's and its successor's files, read and accounted for key by key.

Nothing in the file is executed: torch.load with weights_only=True, plus the plain `argparse.Namespace` that the
original trainers saved. Patch size, depth, widths and grid come from tensor shapes; heads are width / 64.
"""

import argparse
import math
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from melmask.checkpoint.folder import ModelCard, load_weights
from melmask.config import FrontEndConfig, ModelConfig, Statistics
from melmask.errors import CheckpointError, ConfigError
from melmask.geometry import PatchGrid
from melmask.models.mae import MaskedAutoencoder
from melmask.models.positions import grid_positions, line_positions

_PREFIXES = ("module.ar.runtime.backbone.", "backbone.", "module.")
_WRAPPERS = ("model", "state_dict")
_DIMENSIONS_PER_HEAD = 64
_TABLE_TOLERANCE = 1e-3
# Parts of the successor that serve its own training objective or a task head, not the encoder.
_UNNEEDED = re.compile(
    r"^(target_|momentum_|predictor|projector|head\.|head_norm|heads?\.|fc_norm|ema\.|loss_|logit_scale)"
)


def read_foreign(path: Path) -> tuple[MaskedAutoencoder, ModelCard]:
    """Read a .pth file of MSM-MAE or its successor.

    Raises:
        CheckpointError: not such a file, damaged, needing code to unpickle, or with keys that are not understood.
    """
    state = _state_dict(path)
    card, weights = convert(state, path)
    model = MaskedAutoencoder(card.model)
    load_weights(model, weights, path)
    return model, card


def convert(state: dict[str, Tensor], source: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Published tensors to (card, melmask tensors); every key is used, known to be unneeded, or an error."""
    state = _without_prefix(state)
    missing = [key for key in ("patch_embed.proj.weight", "pos_embed", "norm.weight") if key not in state]
    if missing:
        raise CheckpointError(
            f"{source} has no {', '.join(missing)}: not an MSM-MAE checkpoint; see melmask.load for known kinds"
        )
    weights: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        renamed = _renamed(key, tensor)
        if renamed is None:
            unknown.append(key)
        weights |= renamed or {}
    if unknown:
        listed = ", ".join(unknown[:6]) + (f" and {len(unknown) - 6} more" if len(unknown) > 6 else "")
        raise CheckpointError(f"{source} has keys of an unknown kind: {listed}; it is not one of the known checkpoints")
    card = _card(state, source)
    return card, weights


def _card(state: dict[str, Tensor], source: Path) -> ModelCard:
    try:
        config = _config(state, source)
        mean, std = state.get("norm_stats", torch.tensor([-7.1, 4.2])).flatten().tolist()
        front_end = FrontEndConfig(mels=config.mels)
        kind = "msm-mae" if "blocks.0.attn.q_bias" in state else "msm-mae successor"
        statistics = Statistics(mean=round(mean, 6), std=round(std, 6))
        return ModelCard(model=config, front_end=front_end, statistics=statistics, training={"converted_from": kind})
    except (ConfigError, KeyError, ValueError) as error:
        raise CheckpointError(f"{source} has shapes that do not fit together ({error}); is the file whole?") from error


def _config(state: dict[str, Tensor], source: Path, mels: int = 80) -> ModelConfig:
    width, _, patch_mels, patch_frames = state["patch_embed.proj.weight"].shape
    cls_token = "cls_token" in state
    patches = state["pos_embed"].shape[1] - int(cls_token)
    rows = mels // patch_mels
    config = ModelConfig(
        mels=mels,
        frames=patches // rows * patch_frames,
        patch_mels=patch_mels,
        patch_frames=patch_frames,
        width=width,
        depth=_count(state, "blocks"),
        heads=width // _DIMENSIONS_PER_HEAD,
        cls_token=cls_token,
        **_decoder_fields(state, PatchGrid(rows, patches // rows), cls_token, source),
    )
    expected = grid_positions(width, PatchGrid(rows, patches // rows), cls_token)
    _check_table("pos_embed", state["pos_embed"], [expected], source)
    return config


def _decoder_fields(state: dict[str, Tensor], grid: PatchGrid, cls_token: bool, source: Path) -> dict[str, Any]:
    if "decoder_embed.weight" not in state:
        return {"decoder_width": 0, "decoder_depth": 0}
    width = state["decoder_embed.weight"].shape[0]
    tables = [make(width, grid, cls_token) for make in (line_positions, grid_positions)]
    kind = _check_table("decoder_pos_embed", state["decoder_pos_embed"], tables, source)
    return {
        "decoder_width": width,
        "decoder_depth": _count(state, "decoder_blocks"),
        # ViT-L's decoder, 512 wide, has 16 heads; all others have 64 dimensions a head.
        "decoder_heads": 16 if width == 512 else width // _DIMENSIONS_PER_HEAD,
        "decoder_positions": ("line", "grid")[kind],
    }


def _check_table(key: str, stored: Tensor, tables: list[Tensor], source: Path) -> int:
    """Which of `tables` the stored positions are; they are recomputed, never loaded."""
    for kind, table in enumerate(tables):
        if stored[0].shape == table.shape and torch.allclose(stored[0].float(), table, atol=_TABLE_TOLERANCE):
            return kind
    raise CheckpointError(f"{source}: {key} {tuple(stored.shape)} is not the table of its grid; melmask cannot use it")


def _renamed(key: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """Melmask's name(s) for a published key; {} if it is known to be unneeded, None if it is unknown."""
    if key in ("pos_embed", "decoder_pos_embed", "norm_stats") or _UNNEEDED.match(key):
        return {}
    fixed = {
        "patch_embed.proj.weight": ("encoder.patch_embed.weight", tensor.flatten(1)),
        "patch_embed.proj.bias": ("encoder.patch_embed.bias", tensor),
        "cls_token": ("encoder.cls_token", tensor.flatten()),
        "mask_token": ("decoder.mask_token", tensor.flatten()),
    }
    if key in fixed:
        return dict([fixed[key]])
    match = re.match(
        r"^(decoder_)?(blocks\.\d+\..+|norm\.(?:weight|bias)|embed\.(?:weight|bias)|pred\.(?:weight|bias))$",
        key,
    )
    if not match:
        return None
    part = "decoder" if match[1] else "encoder"
    name = match[2].replace("pred.", "predict.") if match[1] else match[2]
    if name.endswith("attn.qkv.bias"):
        # The key's share of the bias cancels in the softmax.
        query, _, value = tensor.chunk(3)
        stem = f"{part}.{name.removesuffix('qkv.bias')}"
        return {f"{stem}q_bias": query, f"{stem}v_bias": value}
    return {f"{part}.{name}": tensor}


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if f"{prefix}patch_embed.proj.weight" in state:
            inside = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
            outside = {key: t for key, t in state.items() if not key.startswith(prefix)}
            return inside | {key: t for key, t in outside.items() if key not in inside}
    return state


def _count(state: Iterable[str], blocks: str) -> int:
    return 1 + max((int(key.split(".")[1]) for key in state if key.startswith(f"{blocks}.")), default=-1)


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no plain weights file (unpickling it would run code, or it is damaged); "
            "expected a torch.save of tensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is cut off or not a torch file; copy it again") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}; expected a dictionary of tensors")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors or not math.isfinite(float(next(iter(tensors.values())).float().sum())):
        raise CheckpointError(f"{path} holds no usable tensors; expected an MSM-MAE checkpoint")
    return tensors
