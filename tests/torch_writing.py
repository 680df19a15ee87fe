"""Writes files as ``torch.save`` does, without PyTorch; also ones that it would not write."""

import pickle
import struct
import zipfile

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)  # LONG1


def numbers(values):
    return b"(" + b"".join(number(int(value)) for value in values) + b"t"


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def tensor(key, dtype, size, shape, strides, offset=0):
    """The instructions that leave one tensor on the stack; ``size`` is the storage's, in elements."""
    storage = b"(" + text("storage") + named("torch", STORAGES[dtype]) + text(key) + text("cpu") + number(size) + b"tQ"
    hooks = named("collections", "OrderedDict") + b")R"
    return (named("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + number(offset) + numbers(shape)
            + numbers(strides) + b"\x89" + hooks + b"tR")  # fmt: skip


def dictionary(items):
    """A whole pickle of a state_dict: name -> instructions of its value."""
    body = b"".join(text(name) + value for name, value in items.items())
    return b"\x80\x02" + named("collections", "OrderedDict") + b")R(" + body + b"u."


def write(file, program, storages, *, compression=zipfile.ZIP_STORED):
    """The archive: the pickle, and the bytes of each storage by its key."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{file.stem}/data.pkl", program)
        archive.writestr(f"{file.stem}/byteorder", "little")
        for key, raw in storages.items():
            archive.writestr(f"{file.stem}/data/{key}", raw)


def save(tensors, file):
    """``torch.save(tensors, file)`` of numpy arrays by name."""
    items, storages = {}, {}
    for key, (name, array) in enumerate(tensors.items()):
        array = np.asarray(array, order="C")
        strides = [step // array.itemsize for step in array.strides]
        items[name] = tensor(str(key), array.dtype.name, array.size, array.shape, strides)
        storages[str(key)] = array.tobytes()
    write(file, dictionary(items), storages)


class Runs:
    """Pickles to a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def malicious(function, *arguments):
    """A pickle that runs ``function`` when Python unpickles it."""
    return pickle.dumps({"a.weight": Runs(function, *arguments)}, protocol=2)
