"""MSM-MAE's network, written slowly from its description (PMLR 166, 2022): one clip at a time, in loops.

Everything a fast implementation would do cleverly is done plainly here: each patch is cut by index, all patches are
embedded and the visible ones then picked, each head has its own projection, norms and softmax are spelt out.
Weights go by their published names, in a dictionary of tensors; gradients flow through all of it.
"""

import math
from typing import NamedTuple

import torch

EPSILON = 1e-6


class Shape(NamedTuple):
    """Sizes that the weights do not tell."""

    mels: int
    frames: int
    patch: tuple[int, int]
    heads: int
    decoder_heads: int
    cls_token: bool
    decoder_positions: str = "line"

    @property
    def rows(self):
        return self.mels // self.patch[0]

    @property
    def columns(self):
        return self.frames // self.patch[1]


def published(parameters):
    """Melmask's parameters, (name, tensor) pairs, under their published names; patch values keep one axis."""
    named = {}
    for name, tensor in parameters:
        part, rest = name.split(".", 1)
        if part == "decoder":
            rest = "mask_token" if rest == "mask_token" else f"decoder_{rest.replace('predict', 'pred')}"
        named[rest.replace("patch_embed", "patch_embed.proj")] = tensor
    return named


def patch_values(logmel, patch, f, t):
    """Patch (f, t) of (mels, frames): its values, the first mel band's frames first."""
    height, width = patch
    return torch.stack([logmel[f * height + m, t * width + n] for m in range(height) for n in range(width)])


def all_patches(logmel, shape):
    """Every patch of a clip; token = f * columns + t."""
    columns = logmel.shape[1] // shape.patch[1]
    return torch.stack([patch_values(logmel, shape.patch, f, t) for f in range(shape.rows) for t in range(columns)])


def sines_and_cosines(position, width):
    """[sin, cos] of position / 10000 ** (i / (width / 2))."""
    angles = [position / 10000 ** (i / (width / 2)) for i in range(width // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def grid_position(width, f, t):
    """The first half encodes time, the second frequency."""
    return torch.tensor(sines_and_cosines(t, width // 2) + sines_and_cosines(f, width // 2), dtype=torch.float64)


def line_position(width, token):
    """Even columns sine, odd columns cosine."""
    row = []
    for j in range(width):
        angle = token / 10000 ** (2 * (j // 2) / width)
        row.append(math.sin(angle) if j % 2 == 0 else math.cos(angle))
    return torch.tensor(row, dtype=torch.float64)


def norm(x, w, name):
    """LayerNorm of each token, with the biased variance."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + EPSILON) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attention(x, w, name, heads):
    """Rows of qkv are all of q, then k, then v; a head is a contiguous slice of each; k has no bias."""
    width = x.shape[1]
    size = width // heads
    qkv, outputs = w[f"{name}.qkv.weight"], []
    for h in range(heads):
        rows = slice(h * size, (h + 1) * size)
        q = x @ qkv[:width][rows].T + w[f"{name}.q_bias"][rows]
        k = x @ qkv[width : 2 * width][rows].T
        v = x @ qkv[2 * width :][rows].T + w[f"{name}.v_bias"][rows]
        scores = torch.exp(q @ k.T / math.sqrt(size))
        outputs.append(scores / scores.sum(1, keepdim=True) @ v)
    return linear(torch.cat(outputs, dim=1), w, f"{name}.proj")


def block(x, w, name, heads):
    x = x + attention(norm(x, w, f"{name}.norm1"), w, f"{name}.attn", heads)
    hidden = gelu(linear(norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1"))
    return x + linear(hidden, w, f"{name}.mlp.fc2")


def depth_of(w, blocks):
    return len({name.split(".")[1] for name in w if name.startswith(f"{blocks}.")})


def encode(logmel, hidden, w, shape):
    """Tokens of one clip (mels, frames) after each block, then after the final norm; `hidden` is a list of bools."""
    columns = logmel.shape[1] // shape.patch[1]
    tokens = linear(all_patches(logmel, shape), w, "patch_embed.proj")
    places = [grid_position(tokens.shape[1], f, t) for f in range(shape.rows) for t in range(columns)]
    tokens = [token + place for token, place in zip(tokens, places, strict=True)]
    seen = [token for token, is_hidden in zip(tokens, hidden, strict=True) if not is_hidden]
    x = torch.stack([w["cls_token"], *seen] if shape.cls_token else seen)
    layers = []
    for i in range(depth_of(w, "blocks")):
        x = block(x, w, f"blocks.{i}", shape.heads)
        layers.append(x)
    return [*layers, norm(x, w, "norm")]


def decode(encoded, hidden, w, shape):
    """Every patch's values, from the encoder's tokens of one clip of full length."""
    x = list(linear(encoded, w, "decoder_embed"))
    cls = [x.pop(0)] if shape.cls_token else []
    width, tokens = len(w["mask_token"]), []
    for token, is_hidden in enumerate(hidden):
        value = w["mask_token"] if is_hidden else x.pop(0)
        f, t = divmod(token, shape.columns)
        line = shape.decoder_positions == "line"
        tokens.append(value + (line_position(width, token) if line else grid_position(width, f, t)))
    y = torch.stack(cls + tokens)
    for i in range(depth_of(w, "decoder_blocks")):
        y = block(y, w, f"decoder_blocks.{i}", shape.decoder_heads)
    return linear(norm(y, w, "decoder_norm"), w, "decoder_pred")[len(cls) :]


def targets(logmel, shape, normalize=False):
    """What the prediction is compared with: the patches, maybe each with zero mean and unit (unbiased) variance."""
    patches = all_patches(logmel, shape)
    if not normalize:
        return patches
    rows = []
    for patch in patches:
        mean = sum(patch) / len(patch)
        variance = sum((value - mean) ** 2 for value in patch) / (len(patch) - 1)
        rows.append((patch - mean) / torch.sqrt(variance + EPSILON))
    return torch.stack(rows)


def loss(predictions, patches, hidden):
    """Mean over the hidden patches of all clips of each one's mean squared error."""
    errors = []
    for prediction, target, is_hidden in zip(predictions, patches, hidden, strict=True):
        for token, one in enumerate(is_hidden):
            if one:
                errors.append(((prediction[token] - target[token]) ** 2).mean())
    return sum(errors) / len(errors)
