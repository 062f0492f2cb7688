"""The axis words of this package and the tensor shapes made of them.

batch    crops or clips computed together      samples  samples of a waveform
mels     bands, 0 the lowest (see below)       frames   frames of a log-mel, one for each hop
patches  tokens of a unit, frequency-major     visible  patches that the encoder sees in training
values   numbers in a patch (mel, frame)       dim      width of a token

Where a front end has several resolutions, `mels` are the bands of all of them, those of the first one first, and the
values of a patch are ordered (resolution, mel, frame).

In all code, `masked` is Bool, and True means hidden. Tests check the shapes; outside of tests they cost nothing.
"""

from jaxtyping import Bool, Float
from torch import Tensor

Waveform = Float[Tensor, "batch samples"]
LogMel = Float[Tensor, "batch mels frames"]
Patches = Float[Tensor, "batch patches values"]
Tokens = Float[Tensor, "batch tokens dim"]
Masked = Bool[Tensor, "batch patches"]
