"""Weights in files: the menu, the loader and the writer that their nodes share."""
from __future__ import annotations

from functools import partial

from ._define import Shown


def files_of(bundled, folder="lodestar"):
    """What is in a menu of files: that or those that come with the pack, then a model folder's."""
    def files():
        from ..guidance.host.weight_files import names
        return [*((bundled,) if isinstance(bundled, str) else bundled), *names(folder)]
    return files


def tensors_of(node, file, bundled, name, folder="lodestar"):
    """{key: tensor} of a model folder's file, or of the weight file `name` that comes with the pack where the menu says `bundled`."""
    if file == bundled:
        from ..demo.weights_file import read
        return read(name)
    from ..guidance.host.weight_files import load
    return load(node, "file", file, folder)


def _read(title, bundled, parse, file):
    from ..guidance.method import BadInput
    tensors = tensors_of(title, file, file if file in bundled else None, bundled.get(file))
    try:
        return (parse()(tensors),)
    except ValueError as error:
        raise error if isinstance(error, BadInput) else BadInput(title, "file", file, str(error)) from error


def reader(title, bundled, parse):
    """(what is in the menu, the run) of a loader. bundled: {what the menu says: name of the weight file that comes with the pack}; parse() -> the function that makes a network of {key: tensor}, imported when
    it is wanted, whose ValueError says what is wrong with a file."""
    return files_of(bundled), partial(_read, title, bundled, parse)


def written(title, network, prefix, format):
    """The run of a node that writes network.tensors() with a mark of their format."""
    from ..guidance.host.weight_files import save
    path = save(title, "prefix", prefix, network.tensors(), {"format": f"lodestar {format} 1"})
    return Shown((path,), path)
