"""Named sizes: (width, depth, heads) of encoder and decoder."""

from melmask.config import ModelConfig
from melmask.config_text import from_dict
from melmask.errors import unknown_name

# Encoder sizes: ViT (arXiv 2010.11929) and DeiT (2012.12877). Decoders: the paper's for base, the image MAE's
# (2111.06377) for large. The two small sizes have decoders of about half the encoder's width, as base has.
_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3, "decoder_width": 128, "decoder_depth": 2, "decoder_heads": 4},
    "small": {"width": 384, "depth": 12, "heads": 6, "decoder_width": 192, "decoder_depth": 4, "decoder_heads": 3},
    "base": {"width": 768, "depth": 12, "heads": 12, "decoder_width": 384, "decoder_depth": 4, "decoder_heads": 6},
    "large": {"width": 1024, "depth": 24, "heads": 16, "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16},
}

PRESETS = tuple(_SIZES)


def preset(name: str, **changes: int | bool | str) -> ModelConfig:
    """Return the `ModelConfig` of a named size, with some fields changed, as in `preset("tiny", frames=512)`.

    Raises:
        ConfigError: the name is not in `PRESETS`, or the model refuses a change.
    """
    if name not in _SIZES:
        raise unknown_name("model size", name, PRESETS)
    return from_dict(ModelConfig, {**_SIZES[name], **changes}, "model.")
