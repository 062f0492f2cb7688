"""A contrast between the masks of a crop: their encodings come near to each other, and away from those of other crops.

Reconstruction alone does not care where the vectors of two sounds lie, but k-NN does. CAN (arXiv 2210.16870) trains the
encodings of two masked views with both losses. Here the views differ by their masks alone, and what is compared is the
mean of a view's tokens, which inference takes for a clip (pooling 'mean'), without a projection that is thrown away.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from melmask.axes import Tokens
from melmask.config import ContrastConfig


def contrast(tokens: Tokens, views_per_crop: int, config: ContrastConfig) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of finding the other views of a crop among all views of its group of crops.

    It is that of SimCLR (arXiv 2002.05709, equation 1) for two views, and that of SupCon (arXiv 2004.11362, equation 2)
    for more: logits are cosine similarities divided by the temperature.

    Args:
        tokens: What the encoder makes of the visible patches of each view, without the CLS token. The views of a crop
            are neighbors, and so are the crops of a group; there are whole groups.
        views_per_crop: 2 or more.
        config: The temperature, and how many crops form a group.
    """
    # bfloat16 would be too coarse for similarities that differ by little.
    with torch.autocast(tokens.device.type, enabled=False):
        vectors = F.normalize(tokens.float().mean(1), dim=-1)
        groups = vectors.unflatten(0, (-1, config.crops * views_per_crop))
        logits = groups @ groups.transpose(1, 2) / config.temperature
    view = torch.arange(logits.shape[1], device=logits.device)
    same_view = view[:, None] == view
    same_crop = (view[:, None] // views_per_crop == view // views_per_crop) & ~same_view
    # A view is not compared with itself.
    gains = logits.masked_fill(same_view, -torch.inf).log_softmax(-1)
    return -gains.masked_fill(~same_crop, 0).sum(-1).mean() / (views_per_crop - 1)
