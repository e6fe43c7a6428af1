"""What a backbone is made of."""

from keras_dualstream.layers.nested_call import NestedCall


class Block(NestedCall):
    """Base of the layers that a backbone has many of.

    Models of this package make a program of each on JAX, which alike blocks share:
    `keras_dualstream.models.block_programs`.
    """
