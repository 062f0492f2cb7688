"""The literal baseline of the speed comparisons: inference and a training step exactly as the published code runs them.

It is written from the method's description, for comparison only. Attention is not fused. In inference, the last unit is
padded with zeros, and each file is decoded, transformed and encoded before the next one. In training, all patches are
embedded before the visible ones are selected, and every patch is predicted. The optimizer is plain AdamW, with float32
on a CPU and with fp16 and a scaled loss on a GPU. Weights and arithmetic are those of melmask's modules, so that the
outputs can be compared.
"""

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F

from melmask.audio.logmel import LogMelSpectrogram
from melmask.embedding.encoder import AudioEncoder


def literal_attention(block, x):
    """Compute softmax(q k^T / sqrt(d)) v with the weights of one of melmask's blocks."""
    attention = block.attn
    # Keys have no bias, because it would not change the softmax.
    bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    qkv = F.linear(x, attention.qkv.weight, bias)
    batch, tokens, _ = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return attention.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))


def literal_block(block, x):
    """Apply a pre-norm block."""
    x = x + literal_attention(block, block.norm1(x))
    return x + block.mlp(block.norm2(x))


@torch.inference_mode()
def literal_embed_file(encoder: AudioEncoder, front_end: LogMelSpectrogram, path) -> np.ndarray:
    """Return the frame vectors (steps, rows * width) of one file, whose last unit is padded with zeros."""
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


def literal_encode(encoder, logmel, noise, visible):
    """Embed all patches of (batch, mels, frames) and encode the `visible` ones with the least noise.

    Returns:
        Their tokens, and for each patch its place in the shuffled order.
    """
    config = encoder.config
    patch = (config.patch_mels, config.patch_frames)
    kernels = encoder.patch_embed.weight.reshape(config.width, 1, *patch)
    x = F.conv2d(logmel[:, None], kernels, encoder.patch_embed.bias, stride=patch).flatten(2).transpose(1, 2)
    x = x + encoder.positions
    shuffled = torch.argsort(noise, dim=1)
    restore = torch.argsort(shuffled, dim=1)
    x = torch.gather(x, 1, shuffled[:, :visible, None].repeat(1, 1, config.width))
    if config.cls_token:
        x = torch.cat([encoder.cls_token.expand(len(x), 1, -1), x], dim=1)
    for block in encoder.blocks:
        x = literal_block(block, x)
    return encoder.norm(x), restore


def literal_decode(decoder, encoded, restore):
    """Predict the values of every patch: append mask tokens to the visible ones, and restore the order of all."""
    first, width = int(decoder.config.cls_token), decoder.config.decoder_width
    x = decoder.embed(encoded)
    batch, patches = restore.shape
    mask_tokens = decoder.mask_token.repeat(batch, patches + first - x.shape[1], 1)
    tokens = torch.cat([x[:, first:], mask_tokens], dim=1)
    tokens = torch.gather(tokens, 1, restore[:, :, None].repeat(1, 1, width))
    x = torch.cat([x[:, :first], tokens], dim=1) + decoder.positions
    for block in decoder.blocks:
        x = literal_block(block, x)
    return decoder.predict(decoder.norm(x))[:, first:]


def literal_loss(model, logmel, noise, visible):
    """Return the reconstruction loss of normalized log-mels, averaged over the hidden patches."""
    config = model.config
    encoded, restore = literal_encode(model.encoder, logmel, noise, visible)
    prediction = literal_decode(model.decoder, encoded, restore)
    patches = logmel.unflatten(2, (-1, config.patch_frames)).unflatten(1, (-1, config.patch_mels))
    target = patches.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    # The published code computes the error of every patch, and then drops those of the visible ones.
    hidden = (restore >= visible).float()
    error = ((prediction - target) ** 2).mean(dim=-1)
    return (error * hidden).sum() / hidden.sum()


class LiteralStep:
    """A training step on the host's normalized float32 crops (batch, mels, frames); each call does one step."""

    def __init__(self, model, crops, visible, device, learning_rate=3e-4):
        self.model, self.crops, self.visible, self.device = model.to(device), crops, visible, device
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), foreach=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def __call__(self):
        """Run forward, backward, the gradient norm and AdamW, and return the loss."""
        logmel = self.crops.to(self.device)
        noise = torch.rand(len(logmel), self.model.encoder.grid.patches, device=self.device)
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            loss = literal_loss(self.model, logmel, noise, self.visible)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        # The published code measures the norm of each parameter in turn, although nothing is clipped.
        self.gradient_norm = torch.stack([p.grad.norm() for p in self.model.parameters()]).norm()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()
