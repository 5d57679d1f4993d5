"""Two linear heads on the scene encoder's unit embedding, in the layouts of published ones: a classifier of kinds, and a taste that likes warm colours (train_scene_heads.py)."""
import json

from .scene_vgg import CLASSES
from .weights_file import read

KINDS, TASTE = "scene_kinds", "scene_taste"
WARM = {"red": 10.0, "orange": 10.0, "yellow": 8.0, "green": 2.0, "cyan": 0.0, "blue": 0.0, "purple": 4.0}


def warmth(scene):
    """The true score of a scene, 0 to 10: the mean over its objects."""
    return sum(WARM[t.colour] for t in scene.things) / len(scene.things)


def tensors(name):
    """(tensors, metadata) of a bundled head."""
    return read(name), {"classes": json.dumps(CLASSES if name == KINDS else ("score",))}
