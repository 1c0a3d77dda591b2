"""The CLIP text transformer: tokens -> context."""

import keras
import numpy as np
from keras import layers, ops

from tfsd.models import kernels
from tfsd.models.layers import Block, Dense, LayerNorm, Network, activation, initializer, split_heads
from tfsd.specs import CLIPSpec


class TextAttention(Block):
    """Multi-head self-attention with biases. Call: x [B, L, W], mask [L, L] -> [B, L, W]."""

    def __init__(self, width: int, heads: int, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.query = Dense(width, width, name="query")
        self.key = Dense(width, width, name="key")
        self.value = Dense(width, width, name="value")
        self.out = Dense(width, width, name="out")

    def call(self, x, mask):  # noqa: D102
        q, k, v = (split_heads(dense(x), self.heads) for dense in (self.query, self.key, self.value))
        return self.out(kernels.attend(q, k, v, mask))


class TextBlock(Block):
    """A pre-norm transformer block. Call: x [B, L, W], mask [L, L] -> [B, L, W]."""

    def __init__(self, spec: CLIPSpec, **kwargs):
        super().__init__(**kwargs)
        self.activation = activation(spec.activation)
        self.norm1 = LayerNorm(spec.width, spec.epsilon, name="norm1")
        self.attention = TextAttention(spec.width, spec.heads, name="attention")
        self.norm2 = LayerNorm(spec.width, spec.epsilon, name="norm2")
        self.dense1 = Dense(spec.width, spec.mlp_width, name="dense1")
        self.dense2 = Dense(spec.mlp_width, spec.width, name="dense2")

    def call(self, x, mask):  # noqa: D102
        x = x + self.attention(self.norm1(x), mask)
        return x + self.dense2(self.activation(self.dense1(self.norm2(x))))


class Embeddings(layers.Layer):
    """Adds the embeddings of tokens and of their positions. Call: tokens [B, L] int32 -> [B, L, W]."""

    def __init__(self, spec: CLIPSpec, **kwargs):
        super().__init__(**kwargs)
        self.spec = spec
        self.row_of_token = None
        if spec.kept_tokens:  # a small vocabulary behind the full one's numbers: every other token is row 0
            self.row_of_token = np.zeros(spec.vocabulary, "int32")
            self.row_of_token[list(spec.kept_tokens)] = np.arange(1, spec.rows)

    def build(self, shape=None):  # noqa: D102
        self.tokens = self._table("tokens", self.spec.rows, 0.02)
        self.positions = self._table("positions", self.spec.length, 0.01)

    def _table(self, name: str, rows: int, deviation: float) -> keras.Variable:
        start = initializer(keras.initializers.RandomNormal(stddev=deviation))
        return self.add_weight(shape=(rows, self.spec.width), initializer=start, name=name)

    def call(self, tokens):  # noqa: D102
        if self.row_of_token is not None:
            tokens = ops.take(self.row_of_token, tokens, axis=0)
        embedded = ops.take(self.tokens, tokens, axis=0) + self.positions[: tokens.shape[1]]
        return ops.cast(embedded, self.compute_dtype)


class TextEncoder(Network):
    """Reads tokens and returns one vector per token, each seeing only those before it.

    Call: tokens [B, L] int32 -> context [B, L, W], after the final layer norm.
    Source: Radford et al. 2021; `CLIPTextModel` of transformers.
    """

    def __init__(self, spec: CLIPSpec, **kwargs):
        super().__init__(name="text_encoder", **kwargs)
        self.spec = spec
        self.embeddings = Embeddings(spec, name="embeddings")
        for i in range(spec.layers):
            self.attach(TextBlock(spec, name=f"block{i}"))
        self.norm = LayerNorm(spec.width, spec.epsilon, name="norm")
        self.mask = np.triu(np.full((spec.length, spec.length), kernels.MASKED, "float32"), 1)

    def states(self, tokens) -> list:
        """Returns the embeddings and the output of every block, [B, L, W] each, before the final norm."""
        states = [self.embeddings(tokens)]
        for block in self.series("block"):
            states.append(block(states[-1], self.mask))
        return states

    def call(self, tokens):  # noqa: D102
        return self.norm(self.states(tokens)[-1])
