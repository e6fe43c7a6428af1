"""Stochastic depth."""

import contextlib
import threading

import keras
import numpy as np
from keras import ops

from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.ops.jax_random import uniform_of_each

# What layers give in place of draws of their own, by thread and layer.
GIVEN = {}


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DropPath(NestedCall, keras.layers.Layer):
    """Stochastic depth: drops a residual branch for whole samples in training.

    Each sample's branch is kept with probability `1 - rate` and then scaled by
    `1 / (1 - rate)`, or replaced by zero: `y = x · b / (1 - rate)`,
    `b ~ Bernoulli(1 - rate)` per sample. At inference `y = x`.

    Args:
        rate: float in `[0, 1)`. Probability of dropping a sample's branch.
            Defaults to `0.0`.
        seed: int. Seed of the draws. Defaults to `None` (a random seed).
        branches: int. For how many branches `draw` draws at once. Defaults to `1`.

    Call arguments:
        x: float tensor `(batch, ...)`.
        training: bool. Whether to drop.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if `rate` is not in `[0, 1)`, or `branches` below 1.

    Example:

    >>> branch = keras.ops.ones((4, 8, 8, 16))
    >>> y = DropPath(0.5, seed=1)(branch, training=True)
    >>> tuple(y.shape)
    (4, 8, 8, 16)

    Reference:
        Huang et al., "Deep Networks with Stochastic Depth", eq. 2 (2016).
    """

    def __init__(self, rate=0.0, seed=None, branches=1, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate}")
        if branches < 1:
            raise ValueError(f"`branches` must be at least 1. Received: branches={branches}")
        self.rate = rate
        self.seed = seed
        self.branches = branches
        self.seed_generator = keras.random.SeedGenerator(seed) if rate > 0 else None
        self.supports_masking = True
        self.built = True

    def call(self, x, training=None):
        return self.drop(x, self.draw(x, training=training)[0])

    def draw(self, x, training=None):
        """The factors of each sample for every branch.

        Drawing is apart from dropping so that a rematerialised block can draw
        outside of what is computed twice, and a block once for all its branches: on a
        CPU JAX draws in a loop of 84 operations, a tenth of those of TransXNet-S'
        training step when each branch had its own.

        Args:
            x: tensor `(batch, ...)`.
            training: bool. Whether to drop.

        Returns:
            List of one tensor `(batch,)`, or `None` where nothing is dropped, per branch.
        """
        if self.is_given:
            return GIVEN[threading.get_ident(), id(self)]
        if not training or self.rate == 0:
            return [None] * self.branches
        # float32 whatever the policy: bfloat16 has only 128 numbers in [0.5, 1).
        noise = keras.random.uniform((self.branches, ops.shape(x)[0]), dtype="float32", seed=self.seed_generator)
        return list(ops.unstack(ops.where(noise < self.rate, 0.0, 1.0 / (1.0 - self.rate)), self.branches))

    @property
    def is_given(self):
        """Whether `draw` gives what was drawn elsewhere, in this thread."""
        return bool(GIVEN) and (threading.get_ident(), id(self)) in GIVEN

    @contextlib.contextmanager
    def giving(self, factors):
        """Has `draw` give what was drawn elsewhere, for programs that layers of several rates share.

        Args:
            factors: list, as `draw` gives it.
        """
        key = threading.get_ident(), id(self)
        GIVEN[key] = factors
        try:
            yield
        finally:
            del GIVEN[key]

    @staticmethod
    def drop(x, factor):
        """`x` times each sample's factor; `x` itself where the factor is `None`."""
        if factor is None:
            return x
        factor = ops.reshape(ops.cast(factor, x.dtype), (-1,) + (1,) * (len(x.shape) - 1))
        return x * factor

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed, "branches": self.branches}


def draw_at_once(drop_paths, batch):
    """What `DropPath.draw` of each of several layers gives in training, drawn at once on JAX.

    Of the code that XLA makes of TransXNet-T's training step the draws of its blocks were a thirteenth. A layer that
    drops nothing, as that of a model's first block, gives ones where another drops, so that alike blocks can share
    a program.

    Args:
        drop_paths: list of distinct `DropPath`, none of which is given what to draw.
        batch: int. How many samples each is given.

    Returns:
        List of lists of factors, one per branch.
    """
    dropping = [layer for layer in drop_paths if layer.rate > 0]
    drawn = {}
    for branches in sorted({layer.branches for layer in dropping}):
        layers = [layer for layer in dropping if layer.branches == branches]
        noise = uniform_of_each([layer.seed_generator.next() for layer in layers], (branches, batch))
        rates = np.reshape([layer.rate for layer in layers], (-1, 1, 1))
        factors = ops.unstack(ops.where(noise < rates.astype("float32"), 0.0, 1.0 / (1.0 - rates)))
        drawn.update({id(layer): list(ops.unstack(of)) for layer, of in zip(layers, factors, strict=True)})
    of_others = ops.ones_like(drawn[id(dropping[0])][0]) if dropping else None
    return [drawn.get(id(layer), [of_others] * layer.branches) for layer in drop_paths]


def drop_path_rates(rate, depths):
    """Rates rising linearly from 0 at the first block to `rate` at the last.

    Args:
        rate: float. Rate of the last block.
        depths: tuple of int. Blocks per stage.

    Returns:
        One tuple of floats per stage.

    Raises:
        ValueError: if `rate` is not in `[0, 1)`.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"`drop_path_rate` must be in [0, 1). Received: drop_path_rate={rate}")
    last = max(sum(depths) - 1, 1)
    rates = iter([rate * block / last for block in range(sum(depths))])
    return [tuple(next(rates) for _ in range(depth)) for depth in depths]
