"""Converts a checkpoint of PyTorch or Paddle to a Keras weights file, and a weights file back to PyTorch's names.

    python tools/convert_checkpoint.py to-keras transx-t.pth.tar transxnet_t.weights.h5 --model TransXNetT
    python tools/convert_checkpoint.py to-keras ten.pth ten.weights.h5 --model DualViTS --classes 10
    python tools/convert_checkpoint.py to-torch transxnet_t.weights.h5 transxnet_t.safetensors --model TransXNetT
    python tools/convert_checkpoint.py to-keras transx-t.pth.tar mirror/ --publish transxnet_t_224

Prints where each tensor went. The new file is read again and compared with the model bit for bit before it appears.
--publish writes the preset's folder into a mirror, which KERAS_DUALSTREAM_MIRROR may name as a folder or by HTTP.
"""

import argparse
import ast
import inspect
import os
import sys

import keras
import numpy as np

import keras_dualstream
from keras_dualstream.conversion import load_checkpoint
from keras_dualstream.conversion import to_torch_state_dict
from keras_dualstream.conversion.checkpoint import assign
from keras_dualstream.conversion.checkpoint import place_checkpoint
from keras_dualstream.presets.catalogue import PRESETS
from keras_dualstream.presets.checksums import sha256_of
from keras_dualstream.presets.folder import PresetInfo
from keras_dualstream.presets.folder import write_file
from keras_dualstream.presets.folder import write_preset

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
    output_help = "to-keras: .weights.h5, or a mirror's folder; to-torch: .safetensors, .npz, or with PyTorch .pth, .pt"
    parser.add_argument("output", help=output_help)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="a builder of keras_dualstream, such as DualViTS")
    what.add_argument("--publish", metavar="PRESET", help="to-keras: the published preset whose checkpoint it is")
    parser.add_argument("--classes", type=int, help="classes of the model (1000); a head of others is left new")
    parser.add_argument("--entry", help="the dict in the checkpoint that holds the weights, such as state_dict_ema")
    option_help = "another argument of the builder, such as token_label_head=False; may be repeated"
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=option_help)
    return parser.parse_args(argv)


def make_builder(arguments):
    """The function without arguments that makes the model."""
    if arguments.publish:
        return published_builder(arguments)
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


def published_builder(arguments):
    """The same for a preset that may be passed on; of images of any size, as `from_preset` makes it."""
    if arguments.publish not in PRESETS:
        raise ValueError(f"--publish must be one of {', '.join(PRESETS)}. Received: {arguments.publish!r}")
    row = PRESETS[arguments.publish]
    if row.licence is None:
        raise ValueError(f"{arguments.publish} cannot be published: its authors grant no licence to pass it on.")
    if arguments.direction == "to-torch" or arguments.classes is not None or arguments.option:
        raise ValueError("--publish goes with to-keras, and with neither --classes nor --option.")
    return lambda: getattr(keras_dualstream, row.variant)(input_shape=(None, None, 3), **row.options)


def check_paths(source, output, source_suffixes, output_suffixes):
    for which, path, suffixes in (("source", source, source_suffixes), ("output", output, output_suffixes)):
        if not path.endswith(suffixes):
            raise ValueError(f"The {which} must end in {' or '.join(suffixes)}. Received: {path!r}")
    if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
        raise ValueError(f"The output's folder does not exist. Received: {output!r}")


def to_keras(arguments, build):
    """Writes the weights file; returns where the tensors went."""
    check_paths(arguments.source, arguments.output, ("",), ("",) if arguments.publish else (".weights.h5",))
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

    if arguments.publish:
        publish(arguments, model.backbone, write)
    else:
        write_file(arguments.output, write)
    return placements


def publish(arguments, backbone, write):
    """Writes the preset's folder."""
    row, name = PRESETS[arguments.publish], os.path.basename(arguments.source)
    source = f"{row.url or row.page} ({name}, SHA-256 {sha256_of(arguments.source)})"
    provenance = f"{source}, converted by keras_dualstream {keras_dualstream.__version__}"
    info = PresetInfo(row.preprocessing, provenance=provenance, licence=row.licence)
    arguments.output = os.path.join(arguments.output, arguments.publish)
    write_preset(arguments.output, keras.saving.serialize_keras_object(backbone), write, info)


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

        torch.save({name: to_tensor(array) for name, array in state_dict.items()}, path)


def to_tensor(array):
    """PyTorch reads every dtype of NumPy but bfloat16, which goes through float32 without loss."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.tensor(array.astype("float32")).to(torch.bfloat16)
    return torch.tensor(array)


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
