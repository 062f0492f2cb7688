"""The axis words of this package and the tensor shapes made of them.

batch    crops or clips computed together      samples  samples of a waveform
mels     mel bands, 0 the lowest               frames   frames of a log-mel, one for each hop
patches  tokens of a unit, frequency-major     visible  patches that the encoder sees in training
values   numbers in a patch (mel, frame)       dim      width of a token

In all code, `masked` is Bool, and True means hidden. Tests check the shapes; outside of tests they cost nothing.
"""

from jaxtyping import Bool, Float
from torch import Tensor

Waveform = Float[Tensor, "batch samples"]
LogMel = Float[Tensor, "batch mels frames"]
Patches = Float[Tensor, "batch patches values"]
Tokens = Float[Tensor, "batch tokens dim"]
Masked = Bool[Tensor, "batch patches"]
