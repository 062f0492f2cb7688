"""Third-party checkpoints: read the files of the original MSM-MAE and its successor, and account for every key.

Reading a file runs none of its code: `torch.load` gets weights_only=True, and may build only the plain
`argparse.Namespace` that the original trainers saved. Patch size, depth, widths and grid follow from the shapes of the
tensors. The number of heads is not in the file; it is width / 64.
"""

import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from melmask.checkpoint.folder import ModelCard
from melmask.checkpoint.weights import check_plain, load_torch_file
from melmask.config import FrontEndConfig, ModelConfig, Statistics
from melmask.errors import CheckpointError, ConfigError, some_of
from melmask.geometry import PatchGrid, grid_of
from melmask.models.layers import grid_positions, line_positions
from melmask.models.network import Network, network_with
from melmask.system.files import atomic_write
from melmask.system.reading import reason_of

# What the training scripts and evaluation wrappers of others put before the names of the weights.
_PREFIXES = ("module.ar.runtime.backbone.", "backbone.", "module.")
_WRAPPERS = ("model", "state_dict")
# All published models have 80 mel bands; the number of rows of patches follows from it.
_MELS = 80
_DIMENSIONS_PER_HEAD = 64
# Wide enough for a table in half precision, whose rounding errors are below 5e-4.
_TABLE_TOLERANCE = 1e-3
# Every key of a file must match one of the next two patterns: `_USED` is read, `_UNNEEDED` is left out.
_BLOCK = (
    r"blocks\.\d+\.(?:norm[12]\.(?:weight|bias)|attn\.(?:qkv\.weight|qkv\.bias|q_bias|v_bias|proj\.(?:weight|bias))"
    r"|mlp\.fc[12]\.(?:weight|bias))"
)
_USED = re.compile(
    rf"(decoder_)?({_BLOCK}|norm\.(?:weight|bias)|(?<=decoder_)(?:embed|pred)\.(?:weight|bias))"
    r"|patch_embed\.proj\.(?:weight|bias)|cls_token|mask_token|pos_embed|decoder_pos_embed|norm_stats"
)
# Parts of the successor's files for its training, a task head or another front end; the encoder needs none.
_UNNEEDED = re.compile(
    r"(?:(?:module|ar|runtime)\.)*(?:target_|momentum_|predictor|projector|heads?\.|head_norm|fc_norm|ema\.|loss_"
    r"|logit_scale|to_spec\.)"
)


class _UnlikeError(Exception):
    """A whole file, which is not damaged, of a model that melmask cannot use."""


def read_foreign(path: Path) -> tuple[Network, ModelCard]:
    """Read a .pth file of MSM-MAE or its successor.

    Raises:
        CheckpointError: it is no such file, is damaged, needs code to unpickle, or has keys of an unknown kind.
    """
    card, weights = convert(_state_dict(path), path)
    return network_with(card.model, weights, path), card


def convert(state: dict[str, Tensor], source: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Turn published tensors into (card, melmask's tensors).

    Every key is used, or known to be unneeded, or an error. A decoder that predicts something else than log-mel values
    (the successor's predicts features) is left out.

    Raises:
        CheckpointError: keys are missing or unknown, or shapes do not fit together.
    """
    state = _without_prefix(state, source)
    missing = [key for key in ("patch_embed.proj.weight", "pos_embed", "norm.weight") if key not in state]
    if missing:
        raise CheckpointError(
            f"{source} has no {', '.join(missing)}, so it is no MSM-MAE checkpoint; see melmask.load for known kinds"
        )
    _refuse_unknown([key for key in state if not _USED.fullmatch(key) and not _UNNEEDED.match(key)], source)
    state = {key: tensor for key, tensor in state.items() if _USED.fullmatch(key)}
    check_plain(state, source)
    try:
        state = _with_usable_decoder(state)
        card = _card(state, source)
        weights: dict[str, Tensor] = {}
        for key, tensor in state.items():
            weights |= _renamed(key, tensor)
    except (ConfigError, LookupError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{source} has weights that do not fit together ({reason_of(error)}); copy the file again"
        ) from error
    except _UnlikeError as error:
        raise CheckpointError(f"{source} is unlike all MSM-MAE models: {error}; melmask cannot read it") from error
    return card, weights


def to_msm_mae(model: Network, card: ModelCard) -> dict[str, Tensor]:
    """Return melmask's weights under the original MSM-MAE's keys, with its position tables and patch embedding.

    `torch.save({"model": to_msm_mae(model, card)}, path)` writes a file in the original's form. That form has no place
    for the number of heads, the front end and the statistics. Its readers assume the original's: heads of 64
    dimensions, 80 mel bands at 16 kHz, mean -7.1 and standard deviation 4.2.

    Returns:
        Float32 tensors on the CPU, sharing no memory with the model.
    """
    config = card.model
    if config.resolutions > 1:
        raise ConfigError(
            f"the model has {config.resolutions} resolutions, and MSM-MAE's format has room for only one; "
            "give a model of recipe msm_mae_208 or tiny_025"
        )
    state = {}
    for name, tensor in model.state_dict().items():
        part, rest = name.split(".", 1)
        if part == "decoder" and rest != "mask_token":
            rest = f"decoder_{rest.replace('predict.', 'pred.')}"
        state[rest.replace("patch_embed.", "patch_embed.proj.")] = tensor
    # The original embeds patches by a convolution, whose kernel has the shape (width, 1, mels, frames).
    kernel = state["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = kernel.reshape(-1, 1, config.patch_mels, config.patch_frames)
    for key in ("cls_token", "mask_token"):
        if key in state:
            state[key] = state[key].reshape(1, 1, -1)
    state["pos_embed"] = grid_positions(config.width, model.encoder.grid, config.cls_token)[None]
    if model.decoder is not None:
        state["decoder_pos_embed"] = model.decoder.positions[None]
    return {key: tensor.detach().cpu().float().clone() for key, tensor in state.items()}


def _refuse_unknown(keys: list[str], source: Path) -> None:
    if keys:
        raise CheckpointError(
            f"{source} has keys of an unknown kind: {some_of(keys)}; it is not one of the known checkpoints"
        )


def _with_usable_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the decoder's keys if it does not predict log-mel values, or if the file has only parts of it."""
    leftovers = {"mask_token", "decoder_pos_embed"}
    decoder = {key for key in state if key.startswith("decoder_") or key in leftovers}
    _, _, patch_mels, patch_frames = state["patch_embed.proj.weight"].shape
    predicts = state.get("decoder_pred.weight")
    other = predicts is not None and predicts.shape[0] != patch_mels * patch_frames
    if other or decoder <= leftovers:
        return {key: tensor for key, tensor in state.items() if key not in decoder}
    return state


def _card(state: dict[str, Tensor], source: Path) -> ModelCard:
    config = _config(state, source)
    # Models whose files have no statistics were trained with AudioSet's, which are constants in the original code.
    mean, std = state.get("norm_stats", torch.tensor([-7.1, 4.2])).flatten().tolist()
    # The original stores the bias of queries and of values as two tensors, its successor one bias for all three.
    kind = "msm-mae" if "blocks.0.attn.q_bias" in state else "msm-mae successor"
    return ModelCard(
        model=config,
        front_end=FrontEndConfig(mels=config.mels),
        statistics=Statistics(mean=round(mean, 6), std=round(std, 6)),
        training={"converted_from": kind},
    )


def _config(state: dict[str, Tensor], source: Path) -> ModelConfig:
    width, channels, patch_mels, patch_frames = state["patch_embed.proj.weight"].shape
    # Tensors without values have been refused, so no size is 0.
    if channels != 1 or _MELS % patch_mels:
        raise _UnlikeError(f"its patches have {channels} channels and {patch_mels} of {_MELS} mel bands")
    cls_token = "cls_token" in state
    rows = _MELS // patch_mels
    grid = PatchGrid(rows, (state["pos_embed"].shape[1] - int(cls_token)) // rows)
    _check_table("pos_embed", state["pos_embed"], [grid_positions], (width, grid, cls_token), source)
    config = ModelConfig(
        mels=_MELS,
        frames=grid.columns * patch_frames,
        patch_mels=patch_mels,
        patch_frames=patch_frames,
        width=width,
        depth=_count(state, "blocks"),
        heads=_heads(width),
        cls_token=cls_token,
        decoder_width=0,
        decoder_depth=0,
    )
    return _with_decoder(config, state, source) if "decoder_embed.weight" in state else config


def _heads(width: int) -> int:
    if width % _DIMENSIONS_PER_HEAD:
        known = f"only known where {_DIMENSIONS_PER_HEAD} divides it"
        raise _UnlikeError(f"its width is {width}, and the number of heads is {known}")
    return width // _DIMENSIONS_PER_HEAD


def _with_decoder(config: ModelConfig, state: dict[str, Tensor], source: Path) -> ModelConfig:
    """Add the decoder that the tensors hold; its position table shows of which kind it is."""
    width = state["decoder_embed.weight"].shape[0]
    makers = [line_positions, grid_positions]
    size = (width, grid_of(config), config.cls_token)
    kind = _check_table("decoder_pos_embed", state["decoder_pos_embed"], makers, size, source)
    return replace(
        config,
        decoder_width=width,
        decoder_depth=_count(state, "decoder_blocks"),
        # ViT-L's decoder, 512 wide, has 16 heads; every other one has 64 dimensions in a head.
        decoder_heads=16 if width == 512 else _heads(width),
        decoder_positions="grid" if kind else "line",
    )


def _check_table(
    key: str,
    stored: Tensor,
    makers: Sequence[Callable[[int, PatchGrid, bool], Tensor]],
    size: tuple[int, PatchGrid, bool],
    source: Path,
) -> int:
    """Return which of `makers` makes the stored positions (1, tokens, width) for a width, a grid and a CLS token.

    Positions are computed, never loaded, so a file with other ones would silently give wrong embeddings.
    """
    width, grid, cls_token = size
    # The stored table has the size of the true one, or that is not made: another tensor decides the width.
    if tuple(stored.shape) == (1, grid.patches + int(cls_token), width):
        for kind, make in enumerate(makers):
            if torch.allclose(stored[0].float(), make(*size), atol=_TABLE_TOLERANCE):
                return kind
    raise CheckpointError(
        f"{source} has {key} {tuple(stored.shape)}, which is not the table of its grid; melmask cannot use it"
    )


def _renamed(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return the tensor under melmask's name, or in parts under several; {} for what the card holds."""
    if key in ("pos_embed", "decoder_pos_embed", "norm_stats"):
        return {}
    if key in ("cls_token", "mask_token"):
        return {("encoder." if key == "cls_token" else "decoder.") + key: tensor.flatten()}
    if key.startswith("patch_embed."):
        return {f"encoder.{key.replace('.proj', '')}": tensor.flatten(1) if tensor.ndim > 1 else tensor}
    part = "decoder" if key.startswith("decoder_") else "encoder"
    name = f"{part}.{key.removeprefix('decoder_').replace('pred.', 'predict.')}"
    if name.endswith("attn.qkv.bias"):
        # The bias of the keys adds the same number to all weights of a query and cancels in the softmax.
        query, _, value = tensor.chunk(3)
        stem = name.removesuffix("qkv.bias")
        return {f"{stem}q_bias": query, f"{stem}v_bias": value}
    return {name: tensor}


def _without_prefix(state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        # The prefix in front of the encoder's weights is the one to remove; keys without it stay as they are.
        if f"{prefix}patch_embed.proj.weight" in state:
            inside = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
            outside = {key: t for key, t in state.items() if not key.startswith(prefix)}
            twice = sorted(inside.keys() & outside.keys())
            if twice:
                raise CheckpointError(f"{source} has {twice[0]} with and without {prefix!r}: two models in one file")
            return inside | outside
    return state


def _count(state: Iterable[str], blocks: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"{blocks}.")})


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        content = load_torch_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({reason_of(error)}); give a .pth file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain weights file (reading it would run code, or it is damaged); "
            "expected a torch.save of tensors"
        ) from error
    except Exception as error:
        # Damaged bytes raise anything: IndexError, struct.error, AssertionError and others.
        raise CheckpointError(f"{path} is cut off or not a torch file; copy it again") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} instead of weights; expected a dictionary of tensors"
        )
    _refuse_unknown([str(key) for key, value in content.items() if not isinstance(value, Tensor)], path)
    return {str(key): tensor for key, tensor in content.items()}


def save_msm_mae(path: Path, model: Network, card: ModelCard) -> None:
    """Write the result of `to_msm_mae` as a .pth file.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_write(path) as file:
        torch.save({"model": to_msm_mae(model, card)}, file)
