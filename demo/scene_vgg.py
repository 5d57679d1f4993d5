"""A small classifier of the demo scenes in torchvision's VGG layout: 28 kinds of one object ("red circle"), and for every cell of a 16 x 16 grid its colour or the background."""
import json

from .scenes import COLOURS, SHAPES, SIZE
from .weights_file import read

NAME = "scene_vgg"
CHANNELS = (16, 32, 48)      # of the stages: two convolutions each, halved in between
CLASSES = tuple(f"{c} {s}" for c in COLOURS for s in SHAPES)
LABELS = ("background", *COLOURS)


def layout():
    """{key: (in, out)} of the convolutions; numbers as torchvision counts them: two between a convolution and the next, three where a pooling lies between."""
    found, number, before = {}, 0, 3
    for stage, width in enumerate(CHANNELS):
        for i in range(2):
            found[f"features.{number}"] = before, width
            number, before = number + (2 if i == 0 else 3), width
    return found


def metadata():
    """What the file says beside its tensors."""
    return {"classes": json.dumps(CLASSES), "labels": json.dumps(LABELS), "mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "size": str(SIZE)}


def tensors():
    """(tensors, metadata) of the bundled file."""
    return read(NAME), metadata()
