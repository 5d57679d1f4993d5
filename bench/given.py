"""What the losses through encoders are given when they are measured: texts, pictures and classes of each case, by the bundled encoder and networks."""
from __future__ import annotations

import functools
import random

import torch

from ..demo.scenes import random_scene
from . import references

SEED = 50_001      # of the examples; no seed of the training


@functools.lru_cache(None)
def vision():
    """The bundled scene encoder."""
    from ..demo.vision import SceneVision
    return SceneVision()


@functools.lru_cache(None)
def network(file):
    """A bundled network or head."""
    from ..demo import scene_heads, scene_vgg
    from ..guidance.loss.networks import parse
    return parse(*(scene_vgg.tensors() if file == "vgg" else scene_heads.tensors(scene_heads.TASTE)), file)


def texts(subject, batch):
    """The captions' embeddings [n, d], with their colours, one for each picture."""
    from ..guidance.host.vision import text_embeddings
    return text_embeddings(subject.clip, [c.scene.caption for c in batch], vision(), "bench")


def _pictures(subject, scenes):
    from torch.nn import functional as F
    return F.interpolate(subject.pictures(subject.rendered(scenes)).clamp(0, 1), scale_factor=2)      # as large as the decoder's


def scenes_of(subject, batch):
    """The pictures of the captions' scenes, one for each."""
    return _pictures(subject, [c.scene for c in batch])


def examples(subject, batch, bad):
    """Six scenes with the colour that a batch is not to have, or without."""
    rng, colour, found = random.Random(SEED), batch[0].forbidden or "red", []
    while len(found) < 6:
        scene = random_scene(rng, 2)
        if bad == any(t.colour == colour for t in scene.things):
            found.append(scene)
    return _pictures(subject, found)


def styles(subject, batch):
    """The references' pictures, one for each."""
    return _pictures(subject, [references.reference_of(c) for c in batch])


def kinds(subject, batch):
    """The first object's kind, a line for each picture."""
    return "\n".join(f"{c.scene.things[0].colour} {c.scene.things[0].shape}" for c in batch)


def colours(subject, batch):
    """The first object's colour, a line for each picture."""
    return "\n".join(c.scene.things[0].colour for c in batch)


def shape_maps(subject, batch):
    """Where the references' shapes are [n, SIZE, SIZE, 3]: white on black, one for each."""
    return torch.stack([references.covered(references.reference_of(c)) for c in batch])[..., None].expand(-1, -1, -1, 3)


def readout(what):
    """A bundled readout head: of shapes, places or looks."""
    from ..demo.weights_file import read
    from ..guidance.training.readout import parse
    return parse(read(f"readout_{what}"))


def warmth(readings):
    """How warm the colours of the objects seen are, 0 to 10; 5 where there are none."""
    from ..demo.scene_heads import WARM
    return torch.tensor([sum(WARM[t.colour] for t in r.things) / len(r.things) if r.things else 5.0 for r in readings])


VALUES = {"$vision": lambda s, b: vision(), "$texts": texts, "$scenes": scenes_of, "$good": lambda s, b: examples(s, b, False), "$bad": lambda s, b: examples(s, b, True), "$styles": styles, "$kinds": kinds,
          "$colours": colours, "$vgg": lambda s, b: network("vgg"), "$taste": lambda s, b: network("taste"), "$shape_maps": shape_maps, "$shapes_head": lambda s, b: readout("shapes"), "$places_head": lambda s, b: readout("places"), "$looks_head": lambda s, b: readout("looks")}
METRICS = {"warmth": warmth}
