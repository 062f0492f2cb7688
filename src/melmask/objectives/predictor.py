"""What objectives have in common that predict something else than log-mels of the hidden patches.

They mask, encode and decode as the masked autoencoder does; only the decoder's last layer is another one. Such a
decoder cannot reconstruct, so the objective takes it out of the network, and checkpoints hold the encoder alone. If the
objective reconstructs as well, the decoder stays in the network, and its tokens go to both layers.
"""

from dataclasses import replace
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from melmask.axes import LogMel
from melmask.config import PretrainConfig
from melmask.geometry import grid_of
from melmask.models.layers import initialize
from melmask.models.network import Network, gather_tokens, seeded
from melmask.objectives import mae
from melmask.objectives.masking import visible_and_hidden_ids


class HiddenPatches(NamedTuple):
    """The hidden patches of some views of crops, and what the decoder makes of them.

    `patches` has all patches of the normalized log-mels, `ids` says which are hidden, `values` are theirs, and `tokens`
    are the decoder's.
    """

    patches: Float[Tensor, "views patches values"]
    ids: Int[Tensor, "views hidden"]
    values: Float[Tensor, "views hidden values"]
    tokens: Float[Tensor, "views hidden narrow"]


class Predictor:
    """Hides patches of crops, and predicts `outputs` numbers of each from the others: an objective without its loss.

    Attributes:
        head: The last layer, from a decoder's token to the numbers.
        modules: The network, and what the prediction needs besides, by name.
    """

    def __init__(self, config: PretrainConfig, network: Network, outputs: int, reconstructs: bool = False):
        # The masked autoencoder of the same network says how many views a crop has, and draws their masks.
        self._masks = mae.build(config, network)
        self.views_per_crop, self.encoded_patches = self._masks.views_per_crop, self._masks.encoded_patches
        self.network, self._config = network, config
        decoder = network.decoder
        assert decoder is not None, "PretrainConfig refuses these objectives without a decoder"
        self._decoder = decoder
        with seeded(config.run.seed):
            self.head = nn.Linear(config.model.decoder_width, outputs)
            initialize(self.head)
        self.modules: dict[str, nn.Module] = {"network": network, "head": self.head}
        if not reconstructs:
            network.decoder, network.config = None, replace(network.config, decoder_width=0, decoder_depth=0)
            # The layer for log-mels goes: every weight that is trained must take part in the loss.
            decoder.predict = self.head
            self.modules = {"network": network, "decoder": decoder}

    def draw(self, batch: int, rank: int, processes: int) -> Bool[Tensor, "views patches"]:
        """Draw the masks of this process' crops, as the masked autoencoder does."""
        return self._masks.draw(batch, rank, processes)

    def hide(self, logmel: LogMel, drawn: Bool[Tensor, "views patches"]) -> HiddenPatches:
        """Encode what is visible of all views of the crops, and decode the hidden patches up to the last layer."""
        encoder = self.network.encoder
        patches = encoder.patches_of(logmel).repeat_interleave(self.views_per_crop, dim=0)
        visible_ids, hidden_ids = visible_and_hidden_ids(drawn, self.encoded_patches)
        encoded = encoder.encode_visible(patches, visible_ids)
        grid = grid_of(self._config.model, logmel.shape[2])
        tokens = self._decoder.tokens(encoded, visible_ids, hidden_ids, grid)
        return HiddenPatches(patches, hidden_ids, gather_tokens(patches, hidden_ids), tokens)

    def targets(self, hidden: HiddenPatches) -> Float[Tensor, "views hidden values"]:
        """Return the values of the hidden patches, normalized if the settings of the masked autoencoder say so."""
        if not self._config.masking.normalize_target:
            return hidden.values
        return mae.normalized_patches(hidden.values, self._config.model.resolutions)

    def reconstruction_error(self, hidden: HiddenPatches) -> Float[Tensor, ""]:
        """Return the masked autoencoder's loss; the decoder must have stayed in the network."""
        return (self._decoder.predict(hidden.tokens).float() - self.targets(hidden)).square().mean()
