"""Dual-ViT's Dual block: a pixel pathway guided by a semantic pathway."""

import functools

import keras

from keras_dualstream.layers.attention import Attention
from keras_dualstream.layers.attention import SelfAttention
from keras_dualstream.layers.block import Block
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.feed_forward import FeedForward
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.layer_scale import LayerScale
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.ops.tokens import map_to_tokens
from keras_dualstream.ops.tokens import tokens_to_map

SEMANTIC_STEPS = ("self_attention", "cross_attention", "feed_forward")


@keras.saving.register_keras_serializable(package="keras_dualstream")
class SemanticPathway(NestedCall, keras.layers.Layer):
    """Refines the semantic tokens by themselves and by the pixels.

    Residual steps, each scaled by its own γ (LayerScale) and dropped per sample:

    - `z += γ₁ · SelfAttention(LN(z))`, no output projection;
    - `z += γ₂ · Attention(q = LN(z), k, v = n)`, no output projection;
    - `z += γ₃ · Linear(ReLU(Linear(LN(z))))`, ratio 4.

    Args:
        num_heads: int. Heads of both attentions; divides the channels.
        drop_path_rate: float. Rate of stochastic depth. Defaults to `0.0`.
        layer_scale_init_value: float. Starting value of every γ. Defaults to `1e-6`.
        steps: tuple of str. Which steps, and in which order: each of
            `"self_attention"`, `"cross_attention"`, `"feed_forward"` at most
            once (the paper's Fig. 3 leaves some out or swaps them). Defaults to
            all three in this order.
        epsilon: float. Epsilon of the layer normalisations. Defaults to `1e-5`.

    Call arguments:
        z: float tensor `(batch, tokens, channels)`: semantic tokens.
        n: float tensor `(batch, pixels, channels)`: normalised pixel tokens.
        training: bool. Whether stochastic depth drops.
        drop_factors: list of one factor per step as `DropPath.draw` gives it;
            drawn here when left out.

    Returns:
        Tensor of the shape of `z`.

    Raises:
        ValueError: if `steps` names an unknown step or one twice.

    Example:

    >>> z, n = keras.ops.ones((2, 4, 32)), keras.ops.ones((2, 49, 32))
    >>> tuple(SemanticPathway(num_heads=2)(z, n).shape)
    (2, 4, 32)

    Reference:
        Yao et al., "Dual Vision Transformer", eq. 3-5 (2023).
    """

    def __init__(
        self,
        num_heads,
        drop_path_rate=0.0,
        layer_scale_init_value=1e-6,
        steps=SEMANTIC_STEPS,
        epsilon=1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if len(set(steps)) != len(steps) or not set(steps) <= set(SEMANTIC_STEPS):
            raise ValueError(f"`steps` must name each of {SEMANTIC_STEPS} at most once. Received: steps={steps}")
        self.num_heads = num_heads
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init_value = layer_scale_init_value
        self.steps = tuple(steps)
        self.epsilon = epsilon
        options = {"dtype": self.dtype_policy}
        makers = {
            "self_attention": lambda: SelfAttention(num_heads, False, name="self_attention", **options),
            "cross_attention": lambda: Attention(num_heads, False, name="cross_attention", **options),
            "feed_forward": lambda: FeedForward(4.0, activation="relu", name="feed_forward", **options),
        }
        for step in self.steps:
            setattr(self, step, makers[step]())
            norm = LayerNormalization(epsilon=epsilon, name=f"{step}_norm", **options)
            setattr(self, f"{step}_norm", norm)
            setattr(self, f"{step}_scale", LayerScale(layer_scale_init_value, name=f"{step}_scale", **options))
        self.drop_path = DropPath(drop_path_rate, branches=max(len(self.steps), 1), name="drop_path", **options)

    def build(self, z_shape, n_shape):
        for step in self.steps:
            getattr(self, f"{step}_norm").build(z_shape)
            getattr(self, f"{step}_scale").build(z_shape)
            shapes = (z_shape, n_shape) if step == "cross_attention" else (z_shape,)
            getattr(self, step).build(*shapes)
        keep_frozen(self)

    def call(self, z, n, training=None, drop_factors=None):
        if drop_factors is None:
            drop_factors = self.draw(z, training=training)
        for step, factor in zip(self.steps, drop_factors, strict=True):
            inputs = [getattr(self, f"{step}_norm")(z)]
            if step == "cross_attention":
                inputs.append(n)
            branch = getattr(self, f"{step}_scale")(getattr(self, step)(*inputs))
            z = z + self.drop_path.drop(branch, factor)
        return z

    def draw(self, z, training=None):
        """One factor of stochastic depth per step."""
        return self.drop_path.draw(z, training=training)[: len(self.steps)]

    def compute_output_shape(self, z_shape, n_shape):
        return z_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "drop_path_rate": self.drop_path_rate,
            "layer_scale_init_value": self.layer_scale_init_value,
            "steps": self.steps,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DualBlock(Block, keras.layers.Layer):
    """Dual block: semantic tokens gather from the pixels, pixels read from them.

    With `n = LN(x)`:

    1. `z = SemanticPathway(z, n)`;
    2. `x += γ₁ · Linear(Attention(q = n, k, v = LN(z)))`;
    3. `x += γ₂ · FeedForward(LN(x))`, with a 3×3 depthwise convolution.

    Both γ are LayerScales, and every branch is dropped per sample in training.
    The cost is linear in the number of pixels: no pixel attends to a pixel.

    Args:
        num_heads: int. Heads of every attention; divides the channels.
        mlp_ratio: float. Ratio of the pixels' feed-forward network. Defaults to `8.0`.
        drop_path_rate: float. Rate of stochastic depth. Defaults to `0.0`.
        layer_scale_init_value: float. Starting value of every γ. Defaults to `1e-6`.
        semantic_steps: tuple of str. `steps` of the `SemanticPathway`. Defaults
            to `("self_attention", "cross_attention", "feed_forward")`.
        remat: bool. Whether training recomputes the block in the backward pass
            (`keras.remat`) instead of keeping its activations. Defaults to `False`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`: the feature map.
        z: float tensor `(batch, tokens, channels)`: the semantic tokens.
        training: bool. Whether stochastic depth drops.

    Returns:
        The pair `(x, z)`, of the shapes that came in.

    Raises:
        ValueError: if `num_heads` does not divide the channels.

    Example:

    >>> x, z = keras.ops.ones((1, 14, 21, 32)), keras.ops.ones((1, 6, 32))
    >>> x, z = DualBlock(num_heads=2)(x, z)
    >>> tuple(x.shape), tuple(z.shape)
    ((1, 14, 21, 32), (1, 6, 32))

    Reference:
        Yao et al., "Dual Vision Transformer", eq. 3-7 (2023).
    """

    def __init__(
        self,
        num_heads,
        mlp_ratio=8.0,
        drop_path_rate=0.0,
        layer_scale_init_value=1e-6,
        semantic_steps=SEMANTIC_STEPS,
        remat=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init_value = layer_scale_init_value
        self.semantic_steps = tuple(semantic_steps)
        self.remat = remat
        options = {"dtype": self.dtype_policy}
        self.semantic_pathway = SemanticPathway(
            num_heads, drop_path_rate, layer_scale_init_value, semantic_steps, name="semantic_pathway", **options
        )
        self.norm1 = LayerNormalization(epsilon=1e-6, name="norm1", **options)
        self.semantic_norm = LayerNormalization(epsilon=1e-5, name="semantic_norm", **options)
        self.attention = Attention(num_heads, name="attention", **options)
        self.scale1 = LayerScale(layer_scale_init_value, name="scale1", **options)
        self.norm2 = LayerNormalization(epsilon=1e-6, name="norm2", **options)
        self.feed_forward = FeedForward(mlp_ratio, kernel_size=3, name="feed_forward", **options)
        self.scale2 = LayerScale(layer_scale_init_value, name="scale2", **options)
        self.drop_path = DropPath(drop_path_rate, branches=2, name="drop_path", **options)

    def build(self, x_shape, z_shape):
        pixels_shape = (x_shape[0], None, x_shape[-1])
        self.semantic_pathway.build(z_shape, pixels_shape)
        self.attention.build(pixels_shape, z_shape)
        self.semantic_norm.build(z_shape)
        for layer in (self.norm1, self.scale1, self.norm2, self.feed_forward, self.scale2):
            layer.build(x_shape)
        keep_frozen(self)

    def call(self, x, z, training=None):
        # Drawn outside of what `remat` computes twice: the second time must drop the same samples.
        semantic_factors = self.semantic_pathway.draw(z, training=training)
        factors = self.drop_path.draw(x, training=training)
        # Bound, not passed: TensorFlow's recomputation takes no `None`.
        forward = functools.partial(self._forward, semantic_factors=semantic_factors, factors=factors)
        return (keras.remat(forward) if self.remat and training else forward)(x, z)

    def _forward(self, x, z, semantic_factors, factors):
        n = map_to_tokens(self.norm1(x))
        z = self.semantic_pathway(z, n, drop_factors=semantic_factors)
        branch = tokens_to_map(self.attention(n, self.semantic_norm(z)), like=x)
        x = x + self.drop_path.drop(self.scale1(branch), factors[0])
        branch = self.feed_forward(self.norm2(x))
        return x + self.drop_path.drop(self.scale2(branch), factors[1]), z

    def compute_output_shape(self, x_shape, z_shape):
        return x_shape, z_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "drop_path_rate": self.drop_path_rate,
            "layer_scale_init_value": self.layer_scale_init_value,
            "semantic_steps": self.semantic_steps,
            "remat": self.remat,
        }
