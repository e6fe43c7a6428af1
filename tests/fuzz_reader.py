"""Thousands of damaged checkpoints: each is read or refused, and none crashes, hangs, eats memory or runs anything.

Alone, for as long as one likes: `python tests/fuzz_reader.py --mutations 20000 --seed 1`.
"""

import argparse
import collections
import io
import os
import pickle
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import zipfile

import numpy as np

from keras_dualstream.conversion import read_checkpoint

SECONDS_PER_FILE = 5
# Past what the process has after its imports.
MEMORY = 512 * 2**20
# What Python reports when something is run, started, imported or sent.
RUNNING = ("exec", "import", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "subprocess.Popen")
RUNNING += ("socket.connect", "pty.spawn", "ctypes.dlopen", "pickle.find_class", "os.remove", "shutil.rmtree")


class TooSlow(BaseException):
    """Past every `except Exception`."""


def seeds():
    """Sound files of every format, by suffix, as PyTorch and the others write them."""
    import torch
    from safetensors.numpy import save

    weight = torch.arange(24.0).reshape(4, 6)
    tensors = collections.OrderedDict(a=weight, b=weight.T[1:], c=weight.bfloat16(), d=weight[0, 0].half())
    tree = {"state_dict": tensors, "args": argparse.Namespace(lr=0.1, path="x"), "epoch": np.int64(3)}
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    found = []
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(tree, buffer, _use_new_zipfile_serialization=new)
        found.append((".pth", buffer.getvalue()))
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **arrays)
        found.append((".npz", buffer.getvalue()))
    found += [(".pdparams", pickle.dumps(arrays, protocol)) for protocol in (2, 4, 5)]
    return [*found, (".safetensors", save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))]


def flip(rng, data):
    """Some bits are others."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(rng, data):
    """The end, the beginning or a piece is missing."""
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice((data[:start], data[stop:], data[:start] + data[stop:]))


def splice(rng, data):
    """A piece is repeated elsewhere."""
    start, stop, place = (rng.randrange(len(data) + 1) for _ in range(3))
    return data[:place] + data[min(start, stop) : max(start, stop)] + data[place:]


def edit_number(rng, data):
    """Some bytes are a number that lengths, offsets and counts should not be."""
    value = rng.choice((0, 1, 0x7F, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
    number = struct.pack(rng.choice("<>") + "Q", value)[: rng.choice((1, 2, 4, 8))]
    place = rng.randrange(len(data))
    return data[:place] + number + data[place + len(number) :]


def edit_opcodes(rng, pickled):
    """Opcodes are left out, doubled, exchanged, or others are put in."""
    positions = [position for _, _, position in pickletools.genops(pickled)] + [len(pickled)]
    parts = [pickled[start:stop] for start, stop in zip(positions, positions[1:], strict=False)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        place, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        hostile = rng.choice(
            (
                b"cos\nsystem\n(X\x04\x00\x00\x00truetR",
                b"c__builtin__\neval\n(X\x05\x00\x00\x001 + 1tR",
                b"cnumpy\nload\n(X\x01\x00\x00\x00xtR",
                b"2\x86" * 30,
                b"(" * 30,
                b"(i" + b"os\nsystem\n",
                b"\x82\x01",
                b"\x96" + struct.pack("<Q", 2**40),
                b"\x8b" + struct.pack("<i", 2**31 - 1),
                b"r" + struct.pack("<I", 2**32 - 1),
                bytes([rng.randrange(256)]),
            )
        )
        edits = (
            lambda place, other, hostile: parts.pop(place) if len(parts) > 1 else None,
            lambda place, other, hostile: parts.insert(place, parts[other]),
            lambda place, other, hostile: parts.__setitem__(place, parts[other]),
            lambda place, other, hostile: parts.insert(place, hostile),
        )
        rng.choice(edits)(place % len(parts), other % len(parts), hostile)
    return b"".join(parts)


def edit_one_pickle(rng, data):
    """One of the pickles that follow each other at the start of the file is edited."""
    file, ends = io.BytesIO(data), [0]
    while data[ends[-1] : ends[-1] + 1] == b"\x80" and len(ends) < 6:
        collections.deque(pickletools.genops(file), maxlen=0)
        ends.append(file.tell())
    chosen = rng.randrange(1, len(ends))
    start, stop = ends[chosen - 1], ends[chosen]
    return data[:start] + edit_opcodes(rng, data[start:stop]) + data[stop:]


def inside(rng, suffix, data):
    """The damage is behind the checksums: in an entry of the archive, or in one of the pickles."""
    if not data.startswith(b"PK"):
        return edit_number(rng, data) if suffix == ".safetensors" else edit_one_pickle(rng, data)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        chosen = rng.choice(old.namelist()) if rng.random() < 0.3 or suffix == ".npz" else "archive/data.pkl"
        for name in old.namelist():
            content = old.read(name)
            if name == chosen and content:
                edits = (flip, cut, splice, edit_number) + (edit_opcodes,) * 6 * name.endswith(".pkl")
                content = rng.choice(edits)(rng, content)
            new.writestr(name, content, compress_type=rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return buffer.getvalue()


def mutated(rng, suffix, data):
    """The file with one kind of damage."""
    if rng.random() < 0.5:
        return inside(rng, suffix, data)
    return rng.choice((flip, cut, splice, edit_number))(rng, data)


def run(mutations, seed):
    """Reads so many damaged files.

    Args:
        mutations: int.
        seed: int.

    Returns:
        How many were tried, refused and read, and how often something was run.
    """
    rng, files, counts = random.Random(seed), seeds(), collections.Counter(tried=0, refused=0, read=0, executed=0)
    watching = False

    def watch(event, _):
        if watching and event in RUNNING:
            counts["executed"] += 1

    def stop(*_):
        raise TooSlow

    with tempfile.TemporaryDirectory() as folder:
        for index, (suffix, data) in enumerate(files):
            path = os.path.join(folder, f"sound{index}{suffix}")
            with open(path, "wb") as file:
                file.write(data)
            assert len(read_checkpoint(path)) == 4, path
        # Python imports it when it first meets the opcode.
        b"x".decode("raw_unicode_escape")
        sys.addaudithook(watch)
        watching = True
        pickle.loads(b"cos\nsystem\n(X\x04\x00\x00\x00truetR.")
        watching = False
        assert counts.pop("executed"), "the watch sees nothing"
        counts["executed"] = 0
        signal.signal(signal.SIGALRM, stop)
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        for _ in range(mutations):
            suffix, data = rng.choice(files)
            path = os.path.join(folder, f"damaged{suffix}")
            with open(path, "wb") as file:
                file.write(mutated(rng, suffix, data))
            signal.alarm(SECONDS_PER_FILE)
            watching = True
            try:
                arrays = read_checkpoint(path)
                assert all(array.tobytes() is not None for array in arrays.values())
                counts["read"] += 1
            except ValueError:
                counts["refused"] += 1
            finally:
                watching = False
                signal.alarm(0)
            counts["tried"] += 1
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(" ".join(f"{name}={count}" for name, count in run(options.mutations, options.seed).items()))
    with open("/proc/self/status", encoding="ascii") as file:
        print(next(line for line in file if line.startswith("VmHWM")).strip())
