"""Losses of the picture: a node for each, made from its fields, and the nodes that put losses together."""
from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil

from ..guidance import loss
from ..guidance.loss.picture import PictureLoss
from ._define import Input, NodeDef, Output, category, input_of

TYPE = "LODESTAR_LOSS"
SERVES = "LodestarUniversalGuidance"
_COMMON = {f.name for f in dataclasses.fields(PictureLoss)}


def _classes():
    """The losses in guidance/loss that need nothing but a picture: one node each."""
    for info in sorted(pkgutil.iter_modules(loss.__path__), key=lambda i: i.name):
        module = importlib.import_module(f"{loss.__name__}.{info.name}")
        yield from (c for c in vars(module).values() if isinstance(c, type) and issubclass(c, PictureLoss) and c.__module__ == module.__name__ and c is not PictureLoss and not c.own_node)


def loss_inputs(cls):
    """The loss's own fields first, then those that all have; the menu of spaces without those that it cannot take."""
    fields = [f for f in dataclasses.fields(cls) if f.metadata]
    found = [input_of(f.name, f.metadata, f.default) for f in [f for f in fields if f.name not in _COMMON] + [f for f in fields if f.name in _COMMON]]
    return [dataclasses.replace(i, choices=cls.spaces, default=cls.spaces[0]) if i.name == "space" else i for i in found]


def decoder_of(cls, model, vae, space):
    """What makes pictures of the estimate in the space of a loss: the VAE, the latent format's linear map, or nothing."""
    from ..guidance.host.decode import Decoder, RoughPicture
    from ..guidance.method import BadInput
    latents = model.get_model_object("latent_format")
    if space == "rgb" and vae is None:
        raise BadInput(cls.title, "vae", None, "Pictures are decoded with the model's VAE: connect it, or choose another space.")
    return Decoder(vae, latents) if space == "rgb" else RoughPicture(latents, cls.title) if space == "small" else None


def ordinary(values):
    """Values whose tensors can take part in gradients: nodes run in inference mode, whose tensors can't."""
    import torch
    with torch.inference_mode(False):
        return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}


def _target(cls, model, vae, space, image):
    """The target [n, channels, h, w] in the space of the loss."""
    from ..guidance.method import BadInput
    if space != "latent":
        return image[..., :3].movedim(-1, 1)
    if vae is None:
        raise BadInput(cls.title, "vae", None, "A target in latent space needs the model's VAE.")
    found = model.get_model_object("latent_format").process_in(vae.encode(image[..., :3]))
    return found.movedim(2, 1).flatten(0, 1) if found.ndim == 5 else found


def _run(cls):
    def run(model, vae=None, **values):
        space = values.get("space", cls.spaces[0])
        decoder = decoder_of(cls, model, vae, space)
        target = _target(cls, model, vae, space, values["image"]) if values.get("image") is not None else None
        if "image" in values:
            values["image"] = None      # `target` is what is compared
        return (cls(**ordinary({**values, "target": target}), decoder=decoder).check(),)
    return run


def _node(cls, part_of=SERVES):
    """The node of a loss of pictures: its fields, the model, the VAE."""
    text = inspect.cleandoc(cls.__doc__)
    summary, _, rest = text.partition("\n\n")
    return NodeDef(
        node_id="Lodestar" + cls.title.replace(" ", ""),
        title=cls.title,
        category=category("loss"),
        description=" ".join(summary.split()),
        inputs=(Input("model", "MODEL", "The model that will be guided: its latents are what is decoded."), *loss_inputs(cls),
                Input("vae", "VAE", "The model's VAE: decodes the estimate (space rgb), or encodes the target (space latent).", optional=True)),
        outputs=(Output(TYPE, "loss", "For Universal Guidance and other nodes that take a loss." if cls.differentiable else "Values only: for the particle samplers."),),
        run=_run(cls),
        part_of=part_of,
        help=(rest or summary) + "\n\nu: the clean estimate at each step; one value per picture of the batch. A mask chooses what counts, and is brought to the size of what is compared.\n")


def _together(a, b, how, weight_a, weight_b):
    from ..guidance.loss.base import LossMax, scaled
    parts = [scaled(part, w) for part, w in ((a, weight_a), (b, weight_b))]
    return (parts[0] + parts[1] if how == "sum" else LossMax(tuple(parts)),)


NODES = (*map(_node, _classes()), NodeDef(
    node_id="LodestarCombineLosses",
    title="Combine Losses",
    category=category("loss"),
    description="Two losses as one: their sum, or for each picture the larger of the two.",
    inputs=(Input("a", TYPE, "The first loss."), Input("b", TYPE, "The second loss."),
            Input("how", "COMBO", "sum: both count. largest: only the worse one is worked on, for each picture.", "sum", choices=("sum", "largest")),
            Input("weight_a", "FLOAT", "Factor of the first.", 1.0, -1e6, 1e6, 0.01), Input("weight_b", "FLOAT", "Factor of the second.", 1.0, -1e6, 1e6, 0.01)),
    outputs=(Output(TYPE, "loss", "Both as one."),),
    run=_together,
    part_of=SERVES,
    aliases=("add losses", "max loss"),
    help="""    sum:      weight_a a + weight_b b
    largest:  max(weight_a a, weight_b b), for each picture of the batch

Chain it for more than two. A loss keeps its own window and schedule. Losses of pictures are decoded once a step, whatever their number.
"""))
