"""Small trained networks in files: the menu, the loader and the writer that their nodes share."""
from __future__ import annotations

from functools import partial

from ._define import Shown


def _names(bundled):
    from ..guidance.host.weight_files import names
    return [*bundled, *names()]


def _read(title, bundled, parse, file):
    from ..guidance.host.weight_files import load
    from ..guidance.method import BadInput
    if file in bundled:
        from ..demo.weights_file import read
        return (parse()(read(bundled[file])),)
    try:
        return (parse()(load(title, "file", file)),)
    except ValueError as error:
        raise error if isinstance(error, BadInput) else BadInput(title, "file", file, str(error)) from error


def reader(title, bundled, parse):
    """(what is in the menu, the run) of a loader. bundled: {what the menu says: name of the weight file that comes with the pack}; parse() -> the function that makes a network of {key: tensor}, imported when
    it is wanted, whose ValueError says what is wrong with a file."""
    return partial(_names, bundled), partial(_read, title, bundled, parse)


def written(title, network, prefix, format):
    """The run of a node that writes network.tensors() with a mark of their format."""
    from ..guidance.host.weight_files import save
    path = save(title, "prefix", prefix, network.tensors(), {"format": f"lodestar {format} 1"})
    return Shown((path,), path)
