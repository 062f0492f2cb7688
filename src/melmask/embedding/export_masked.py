"""One ONNX file that fills hidden patches in, for browsers: log-mel and visible patches in, prediction out.

Inputs  `logmel` (bands, frames) float32 as `AudioEncoder.logmel` gives it: whole patches, at most one unit.
        `visible_ids` (visible,) int64: the patches that the encoder sees, at least one.
Outputs `prediction` (patches, values) and `loss` (1,), those of `AudioEncoder.reconstruct`; the loss is NaN if no patch
        is hidden. `attention` (layers, heads, tokens, tokens) is the encoder's, unless it would be very large.

The graph is built from the weights, node by node: that takes no time, unlike tracing, and leaves nothing in the file
but the model. Weights are stored in half precision, which halves the file, and computed with in single precision.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from melmask.audio.logmel import scales
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.reconstruction import predicts_normalized
from melmask.errors import ConfigError, OutputError
from melmask.geometry import grid_of
from melmask.models.layers import NORM_EPSILON, Block
from melmask.system.extras import require

OPSET = 20
"""The first with GELU, which is the operator of most nodes besides products."""
_LARGEST_ATTENTION_BYTES = 32 << 20
_TO_THE_END = 1 << 30
"""Where a slice ends that goes to the end."""
_LEAST_HALVED = 1024
"""Smaller tensors, such as biases and norms, stay in single precision: halving them would save nothing."""
_LARGEST_DIFFERENCE = 1e-4
"""Of the graph in single precision to PyTorch, in normalized log-mel."""
_LARGEST_HALF_DIFFERENCE = 0.02
"""Of the graph with weights in half precision: 0.02 standard deviations are less than half a dB."""


class MaskedModel(NamedTuple):
    """A graph as bytes, whether it has the output `attention`, and the largest difference to PyTorch's prediction."""

    content: bytes
    attention: bool
    difference: float


def export_masked(encoder: AudioEncoder, half: bool = True) -> MaskedModel:
    """Build the graph of a model with a decoder, and check it in onnxruntime.

    Args:
        encoder: The model.
        half: Whether weights are stored in half precision.

    Raises:
        ConfigError: the model has no decoder.
        MissingExtraError: onnx or onnxruntime is not installed.
        OutputError: the graph predicts something else than PyTorch.
    """
    if not encoder.card.model.has_decoder:
        raise ConfigError(f"{encoder.name or 'the model'} is encoder-only: it embeds but cannot reconstruct")
    require("onnx")
    import onnx
    import onnxruntime

    config = encoder.card.model
    tokens = grid_of(config).patches + int(config.cls_token)
    attention = 4 * config.depth * config.heads * tokens**2 <= _LARGEST_ATTENTION_BYTES
    graph = _Graph(half)
    _build(graph, encoder, attention)
    content = graph.model(encoder, attention).SerializeToString()
    onnx.checker.check_model(content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = _largest_difference(session, encoder)
    if not difference <= (_LARGEST_HALF_DIFFERENCE if half else _LARGEST_DIFFERENCE):
        raise OutputError(f"the exported graph predicts something else (by {difference:.2g}); nothing was written")
    return MaskedModel(content, attention, difference)


class _Graph:
    """Nodes and tensors as they are added; a value of the graph is its name."""

    def __init__(self, half: bool):
        self._half = half
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return it."""
        from onnx.helper import make_node

        output = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, values: Any) -> str:
        """Add a tensor as it is."""
        from onnx.numpy_helper import from_array

        name = f"constant_{len(self._tensors)}"
        self._tensors.append(from_array(np.asarray(values), name))
        return name

    def integers(self, *values: int) -> str:
        """Add a vector of whole numbers."""
        return self.constant(np.array(values, np.int64))

    def weights(self, tensor: Any) -> str:
        """Add a tensor of a network; the product with a matrix of a linear layer takes its transpose."""
        values = tensor.detach().float().cpu().numpy()
        values = np.ascontiguousarray(values.T)
        if not self._half or values.size < _LEAST_HALVED:
            return self.constant(values)
        from onnx import TensorProto

        return self.add("Cast", self.constant(values.astype(np.float16)), to=TensorProto.FLOAT)

    def linear(self, x: str, weight: Any, bias: Any) -> str:
        """Add a linear layer on (tokens, width)."""
        return self.add("Gemm", x, self.weights(weight), self.weights(bias))

    def norm(self, x: str, layer: Any) -> str:
        """Add a layer norm."""
        inputs = (x, self.weights(layer.weight), self.weights(layer.bias))
        return self.add("LayerNormalization", *inputs, axis=-1, epsilon=NORM_EPSILON)

    def reshape(self, x: str, *shape: int) -> str:
        """Add a change of shape; one size may be -1."""
        return self.add("Reshape", x, self.integers(*shape))

    def block(self, x: str, block: Block) -> tuple[str, str]:
        """Add a transformer block on (tokens, width); return its output, and its attention (heads, tokens, tokens)."""
        layer, before = block.attn, x
        count = layer.heads
        size = layer.proj.in_features // count
        normed = self.norm(x, block.norm1)
        query, key, value = layer.qkv.weight.chunk(3)
        # The query is scaled through its weights: one operation less for each block.
        scale = size**-0.5
        heads = [
            self.linear(normed, query * scale, layer.q_bias * scale),
            self.add("MatMul", normed, self.weights(key)),
            self.linear(normed, value, layer.v_bias),
        ]
        q, k, v = (self.reshape(part, -1, count, size) for part in heads)
        scores = self.add("MatMul", self.add("Transpose", q, perm=[1, 0, 2]), self.add("Transpose", k, perm=[1, 2, 0]))
        attention = self.add("Softmax", scores, axis=-1)
        seen = self.add("MatMul", attention, self.add("Transpose", v, perm=[1, 0, 2]))
        seen = self.reshape(self.add("Transpose", seen, perm=[1, 0, 2]), -1, count * size)
        x = self.add("Add", before, self.linear(seen, layer.proj.weight, layer.proj.bias))
        hidden = self.linear(self.norm(x, block.norm2), block.mlp.fc1.weight, block.mlp.fc1.bias)
        hidden = self.linear(self.add("Gelu", hidden), block.mlp.fc2.weight, block.mlp.fc2.bias)
        return self.add("Add", x, hidden), attention

    def model(self, encoder: AudioEncoder, attention: bool) -> Any:
        """Return the finished graph."""
        from onnx import TensorProto, helper

        def value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> Any:
            return helper.make_tensor_value_info(name, kind, shape)

        config = encoder.card.model
        inputs = [value("logmel", (config.bands, "frames")), value("visible_ids", ("visible",), TensorProto.INT64)]
        outputs = [value("prediction", ("patches", config.patch_values)), value("loss", (1,))]
        if attention:
            outputs.append(value("attention", (config.depth, config.heads, "tokens", "tokens")))
        graph = helper.make_graph(self._nodes, "melmask", inputs, outputs, self._tensors)
        # Runtimes of the last two years read this version of the format.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def _build(graph: _Graph, encoder: AudioEncoder, attention: bool) -> None:
    """Add all nodes: normalize, cut into patches, encode the visible ones, decode all, compare the hidden ones."""
    config, network = encoder.card.model, encoder.model
    rows, full = network.encoder.grid
    mean, std = (np.asarray(part, np.float32) for part in scales(encoder.card.statistics, config.mels))
    normalized = graph.add("Div", graph.add("Sub", "logmel", graph.constant(mean)), graph.constant(std))
    # As `patchify`: (resolution, row, mel in patch, column, frame in patch) to a line for each patch.
    cut = graph.reshape(normalized, config.resolutions, rows, config.patch_mels, -1, config.patch_frames)
    patches = graph.reshape(graph.add("Transpose", cut, perm=[1, 3, 0, 2, 4]), -1, config.patch_values)
    # A shorter unit keeps each patch's trained position: the first columns of every row.
    count = graph.add("Shape", patches, end=1)
    columns = graph.add("Div", count, graph.integers(rows))
    ids = graph.add("Range", graph.constant(np.int64(0)), graph.add("Squeeze", count), graph.constant(np.int64(1)))
    row_starts = graph.add("Mul", graph.add("Div", ids, columns), graph.integers(full))
    places = graph.add("Add", row_starts, graph.add("Mod", ids, columns))

    vit = network.encoder
    positions = graph.add("Gather", graph.constant(vit.positions.cpu().numpy()), places)
    x = graph.linear(graph.add("Gather", patches, "visible_ids"), vit.patch_embed.weight, vit.patch_embed.bias)
    x = graph.add("Add", x, graph.add("Gather", positions, "visible_ids"))
    if vit.cls_token is not None:
        x = graph.add("Concat", graph.weights(vit.cls_token[:, None]), x, axis=0)
    maps = []
    for block in vit.blocks:
        assert isinstance(block, Block)
        x, weights = graph.block(x, block)
        maps.append(graph.add("Unsqueeze", weights, graph.integers(0)))
    if attention:
        graph.add("Concat", *maps, axis=0, output="attention")
    _decode(graph, encoder, graph.norm(x, vit.norm), (count, places))
    _compare(graph, encoder, patches)


def _decode(graph: _Graph, encoder: AudioEncoder, encoded: str, where: tuple[str, str]) -> None:
    """Add the decoder, whose output is `prediction`; `where` says how many patches there are, and their places."""
    decoder, first = encoder.model.decoder, int(encoder.card.model.cls_token)
    assert decoder is not None
    count, places = where
    width = decoder.embed.out_features
    x = graph.linear(encoded, decoder.embed.weight, decoder.embed.bias)
    rest = graph.add("Slice", x, graph.integers(first), graph.integers(_TO_THE_END), graph.integers(0))
    # Every place gets the mask token, then the visible tokens overwrite theirs.
    shape = graph.add("Concat", count, graph.integers(width), axis=0)
    tokens = graph.add("Expand", graph.weights(decoder.mask_token[:, None]), shape)
    at = graph.add("Unsqueeze", "visible_ids", graph.integers(1))
    tokens = graph.add("ScatterND", tokens, at, rest)
    table = decoder.positions.cpu().numpy()
    tokens = graph.add("Add", tokens, graph.add("Gather", graph.constant(table[first:]), places))
    if first:
        cls = graph.add("Slice", x, graph.integers(0), graph.integers(1), graph.integers(0))
        tokens = graph.add("Concat", graph.add("Add", cls, graph.constant(table[:1])), tokens, axis=0)
    for block in decoder.blocks:
        assert isinstance(block, Block)
        tokens, _ = graph.block(tokens, block)
    tokens = graph.norm(tokens, decoder.norm)
    tokens = graph.add("Slice", tokens, graph.integers(first), graph.integers(_TO_THE_END), graph.integers(0))
    predict = decoder.predict
    graph.add("Gemm", tokens, graph.weights(predict.weight), graph.weights(predict.bias), output="prediction")


def _compare(graph: _Graph, encoder: AudioEncoder, patches: str) -> None:
    """Add the output `loss`: the mean squared difference of `prediction` to its target, over hidden patches."""
    config, target = encoder.card.model, patches
    if predicts_normalized(encoder.card):
        # As `normalized_patches`: a mean of 0 and a variance of 1, with one degree of freedom less than values.
        values = config.patch_mels * config.patch_frames
        parts = graph.reshape(patches, -1, config.resolutions, values)
        centered = graph.add("Sub", parts, graph.add("ReduceMean", parts, graph.integers(2)))
        squares = graph.add("ReduceSumSquare", centered, graph.integers(2))
        variance = graph.add("Div", squares, graph.constant(np.float32(values - 1)))
        deviation = graph.add("Sqrt", graph.add("Add", variance, graph.constant(np.float32(1e-6))))
        target = graph.reshape(graph.add("Div", centered, deviation), -1, config.patch_values)
    error = graph.add("Sub", "prediction", target)
    error = graph.add("ReduceMean", graph.add("Mul", error, error), graph.integers(1), keepdims=0)
    # Visible patches are predicted, too, but do not count.
    zeros = graph.add("Mul", graph.add("Gather", error, "visible_ids"), graph.constant(np.float32(0)))
    hidden = graph.add("ReduceSum", graph.add("ScatterElements", error, "visible_ids", zeros))
    count = graph.add("Sub", graph.add("Shape", error), graph.add("Shape", "visible_ids"))
    graph.add("Div", hidden, graph.add("Cast", count, to=1), output="loss")


def _largest_difference(session: Any, encoder: AudioEncoder) -> float:
    """Over units and masks of several sizes: the smallest, the full unit at 75 %, and one that hides one patch."""
    config, rng = encoder.card.model, np.random.default_rng(0)
    rows, columns = encoder.model.encoder.grid
    # A unit of one patch has nothing to hide.
    least = 1 if rows > 1 else 2
    half = max(least, columns // 2)
    found = []
    for width, visible in ((least, 1), (columns, rows * columns // 4 or 1), (half, rows * half - 1)):
        logmel = rng.normal(-8, 4, (1, config.bands, width * config.patch_frames)).astype(np.float32)
        ids = np.sort(rng.permutation(rows * width)[:visible])
        masked = np.ones((1, rows * width), bool)
        masked[0, ids] = False
        made = encoder.reconstruct(logmel, masked=masked)
        prediction, loss = session.run(["prediction", "loss"], {"logmel": logmel[0], "visible_ids": ids})
        found += [float(np.abs(prediction - made.prediction[0]).max()), abs(float(loss[0]) - made.loss)]
    # Python's own maximum passes over NaN.
    return float(np.max(found))
