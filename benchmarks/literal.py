"""The literal baseline of the speed comparisons: inference and a training step exactly as the published code runs them.

Written from the method's description, for comparison only. Unfused attention, all patches embedded before the visible
ones are selected, every patch predicted, a zero-padded last unit, one file at a time: decode, then transform, then
forward. Same weights and arithmetic as melmask's modules, so the outputs can be compared.
"""

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F

from melmask.audio.logmel import LogMelSpectrogram
from melmask.encoder import AudioEncoder


def literal_attention(block, x):
    """softmax(q k^T / sqrt(d)) v with the weights of one of melmask's blocks."""
    attention = block.attn
    bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    qkv = F.linear(x, attention.qkv.weight, bias)
    batch, tokens, _ = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return attention.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))


def literal_block(block, x):
    """A pre-norm block."""
    x = x + literal_attention(block, block.norm1(x))
    return x + block.mlp(block.norm2(x))


@torch.inference_mode()
def literal_embed_file(encoder: AudioEncoder, front_end: LogMelSpectrogram, path) -> np.ndarray:
    """Frame vectors (steps, rows * width) of one file; the last unit zero-padded to the full length."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = soxr.resample(samples.mean(axis=1), rate, encoder.sample_rate_hz)
    logmel = front_end(torch.from_numpy(np.ascontiguousarray(waveform, np.float32))[None])
    config, statistics = encoder.card.model, encoder.card.statistics
    x = (logmel - statistics.mean) / statistics.std
    frames = x.shape[2]
    x = F.pad(x, (0, -frames % config.frames))
    units = []
    for start in range(0, x.shape[2], config.frames):
        tokens = encoder.model.encoder.embed_all(x[:, :, start : start + config.frames])
        for block in encoder.model.encoder.blocks:
            tokens = literal_block(block, tokens)
        tokens = encoder.model.encoder.norm(tokens)[:, int(config.cls_token) :]
        units.append(tokens.unflatten(1, (encoder.model.encoder.grid.rows, -1)).transpose(1, 2).flatten(2))
    steps = -(-frames // config.patch_frames)
    return torch.cat(units, dim=1)[0, :steps].numpy()
