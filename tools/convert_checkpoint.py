"""Converts a checkpoint of PyTorch or Paddle to a Keras weights file, and a weights file back to PyTorch's names.

    python tools/convert_checkpoint.py to-keras transx-t.pth.tar transxnet_t.weights.h5 --model TransXNetT
    python tools/convert_checkpoint.py to-keras ten.pth ten.weights.h5 --model DualViTS --classes 10
    python tools/convert_checkpoint.py to-torch transxnet_t.weights.h5 transxnet_t.safetensors --model TransXNetT

Prints where each tensor went. The new file is read again and compared with the model bit for bit before it appears.
"""

import argparse
import ast
import inspect
import os
import sys

import numpy as np

import keras_dualstream
from keras_dualstream.conversion import load_checkpoint
from keras_dualstream.conversion import to_torch_state_dict
from keras_dualstream.conversion.checkpoint import assign
from keras_dualstream.conversion.checkpoint import place_checkpoint
from keras_dualstream.presets.folder import write_file

try:
    from rich.console import Console
    from rich.table import Table
except ImportError:
    sys.exit("error: this tool needs rich: pip install 'keras_dualstream[convert]'")

WIDTH_OF_A_FILE = 200


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("direction", choices=("to-keras", "to-torch"))
    parser.add_argument("source", help="to-keras: any file of read_checkpoint; to-torch: .weights.h5")
    parser.add_argument("output", help="to-keras: .weights.h5; to-torch: .safetensors, .npz, or with PyTorch .pth, .pt")
    parser.add_argument("--model", required=True, help="a builder of keras_dualstream, such as DualViTS")
    parser.add_argument("--classes", type=int, help="classes of the model (1000); a head of others is left new")
    parser.add_argument("--entry", help="the dict in the checkpoint that holds the weights, such as state_dict_ema")
    option_help = "another argument of the builder, such as token_label_head=False; may be repeated"
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=option_help)
    return parser.parse_args(argv)


def make_builder(arguments):
    """The function without arguments that makes the model."""
    functions = {key: value for key, value in vars(keras_dualstream).items() if inspect.isfunction(value)}
    builders = {key: value for key, value in functions.items() if "include_top" in inspect.signature(value).parameters}
    if arguments.model not in builders:
        raise ValueError(f"--model must be one of {', '.join(sorted(builders))}. Received: {arguments.model!r}")
    options = {} if arguments.classes is None else {"classes": arguments.classes}
    for option in arguments.option:
        name, separator, value = option.partition("=")
        if not separator:
            raise ValueError(f"--option must be NAME=VALUE. Received: {option!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return lambda: builders[arguments.model](**options)


def check_paths(source, output, source_suffixes, output_suffixes):
    for which, path, suffixes in (("source", source, source_suffixes), ("output", output, output_suffixes)):
        if not path.endswith(suffixes):
            raise ValueError(f"The {which} must end in {' or '.join(suffixes)}. Received: {path!r}")
    if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
        raise ValueError(f"The output's folder does not exist. Received: {output!r}")


def to_keras(arguments, build):
    """Writes the weights file; returns where the tensors went."""
    check_paths(arguments.source, arguments.output, ("",), (".weights.h5",))
    model = build()
    placements = place_checkpoint(model, arguments.source, arguments.entry)
    if arguments.classes is None and any(placement.array is None for placement in placements):
        raise ValueError("The checkpoint has another number of classes than the model: give the model's by --classes.")
    assign(placements)

    def write(path):
        model.save_weights(path)
        again = build()
        again.load_weights(path)
        compare(again, model)

    write_file(arguments.output, write)
    return placements


def to_torch(arguments, build):
    """Writes the checkpoint; returns where the tensors came from."""
    check_paths(arguments.source, arguments.output, (".weights.h5",), (".safetensors", ".npz", ".pth", ".pt"))
    model = build()
    model.load_weights(arguments.source)
    state_dict = to_torch_state_dict(model)

    def write(path):
        write_state_dict(path, state_dict)
        again = build()
        load_checkpoint(again, path)
        compare(again, model)

    write_file(arguments.output, write)
    return place_checkpoint(model, state_dict)


def write_state_dict(path, state_dict):
    if path.endswith(".safetensors"):
        from safetensors.numpy import save_file

        save_file(state_dict, path)
    elif path.endswith(".npz"):
        np.savez(path, **state_dict)
    else:
        import torch

        torch.save({name: torch.tensor(array) for name, array in state_dict.items()}, path)


def compare(again, model):
    """Raises a `ValueError` unless both hold the same numbers bit for bit."""
    found, expected = to_torch_state_dict(again), to_torch_state_dict(model)
    names = [name for name in expected if found[name].tobytes() != expected[name].tobytes()]
    if names:
        raise ValueError(f"The new file does not read back as it was written: {', '.join(names[:8])}")


def print_table(placements):
    table = Table("checkpoint", "Keras variable", "shape", "adapted")
    for item in placements:
        table.add_row(item.name, item.variable.path, " x ".join(map(str, item.variable.shape)), item.note)
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH_OF_A_FILE)).print(table)


def main(argv=None):
    arguments = parse_arguments(argv)
    try:
        convert = to_keras if arguments.direction == "to-keras" else to_torch
        placements = convert(arguments, make_builder(arguments))
    except (ImportError, OSError, TypeError, ValueError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    print_table(placements)
    print(f"{len(placements)} tensors, read back bit for bit: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
