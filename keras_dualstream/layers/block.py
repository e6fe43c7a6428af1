"""What a backbone is made of."""

import keras

from keras_dualstream.layers.nested_call import NestedCall


class Block(NestedCall):
    """Base of the layers that a backbone has many of.

    Where JAX compiles a model of this package for a CPU, or TensorFlow predicts on one,
    alike blocks share a program: `keras_dualstream.models.block_programs`. It returns what
    `call` returns, what it assigns to the block's variables and what it adds to the losses;
    whatever else `call` does, it does once for all of them, and may depend neither on the
    block's name nor on the rate of its stochastic depth. Its DropPaths draw outside of the
    program, each once for all its branches and as many samples as the first argument has.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # Keras warns of `jit_compile=True` and goes on without. PyTorch 2.13 compiles such models in parts, and ends
        # the first training step of every family with an error, about sizes that it made symbols of. Told to make none
        # it takes 109 s for DFvT-T's, whose steps then take 232 instead of 200 ms. What is exported it compiles whole.
        self.supports_jit = keras.config.backend() != "torch"
