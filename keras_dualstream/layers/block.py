"""What a backbone is made of."""

from keras_dualstream.layers.nested_call import NestedCall


class Block(NestedCall):
    """Base of the layers that a backbone has many of.

    Where JAX compiles a model of this package for a CPU, or TensorFlow predicts on one,
    alike blocks share a program: `keras_dualstream.models.block_programs`. It returns what
    `call` returns, what it assigns to the block's variables and what it adds to the losses;
    whatever else `call` does, it does once for all of them, and may not depend on the block's
    name. Its DropPaths draw outside of the program, each once for all its branches and as
    many samples as the first argument has.
    """
