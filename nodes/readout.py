"""Readout heads: training, files."""
from __future__ import annotations

from ..guidance.training.readout import TrainReadoutHead
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of
from ._kept import reader, written

READOUT = "LODESTAR_READOUT"
SHAPES = "bundled: shapes of the demo scenes, for the demo U-Net"
BUNDLED = {SHAPES: "readout_shapes", "bundled: matching places of the demo scenes, for the demo U-Net": "readout_places", "bundled: looks of the demo scenes, for the demo U-Net": "readout_looks"}
_OUT = Output(READOUT, "readout", "For Readout Guidance.")


def _train(model, positive, latent, channels, image=None, groups="", flow=None, **values):
    import torch

    from ..guidance.attention.readout_guidance import as_map
    from ..guidance.method import BadInput
    from ..guidance.training.classifier import numbers
    method = TrainReadoutHead(**values).validate()
    count = latent["samples"].shape[0]
    given = [name for name, there in (("image", image is not None), ("groups", bool(groups.strip())), ("flow", flow is not None)) if there]
    if len(given) != 1:
        raise BadInput(method.title, "image", " and ".join(given) or None, "Connect maps for a spatial head, write groups for one of appearance, or connect a flow for one of correspondence: one of the three.")
    maps = own = moves = None
    with torch.inference_mode(False):
        if image is not None:
            if image.shape[0] != count:
                raise BadInput(method.title, "image", f"{image.shape[0]} maps", f"Give one for each of the {count} latents.")
            maps = as_map(image.clone(), 1 if channels == "gray" else 3, tuple(latent["samples"].shape[-2:]), method.title)
        elif flow is not None:
            if count % 2 or flow.vectors.shape[0] != count // 2:
                raise BadInput(method.title, "flow", f"{flow.vectors.shape[0]} flows", f"There are {count} latents: give them in pairs, one behind the other, and a flow for each pair.")
            moves = flow.vectors.clone()
        else:
            own = numbers(groups, count, method.title, "groups")
            if len(own.unique()) < 2:
                raise BadInput(method.title, "groups", groups, "There must be at least two groups.")
    from ..guidance.host.readout import train
    readout, first, last = train(method, model, positive, latent, maps, own, moves)
    text = f"{readout.kind} head on {', '.join(readout.layers)}\nloss: {first:.4g} at first, {last:.4g} at last"
    return Shown((readout, text), text)


def _parse():
    from ..guidance.training.readout import parse
    return parse


_files, _load = reader("Load Readout Head", BUNDLED, _parse)


def _save(readout, prefix):
    return written("Save Readout Head", readout, prefix, "readout head")


NODES = (
    NodeDef(
        **about(TrainReadoutHead),
        inputs=(Input("model", "MODEL", "The model whose features are read."), Input("positive", "CONDITIONING", "The prompt under which they are read; an empty one serves all."),
                Input("latent", "LATENT", "Clean latents: encoded pictures, or sampled ones."),
                Input("image", "IMAGE", "What a spatial head is to read: a map for each latent. Any size; it is averaged to that of the latent.", optional=True),
                Input("groups", "STRING", "For a head of appearance: a number for each latent, separated by commas; those of one number look alike.", "", optional=True),
                Input("flow", "LODESTAR_FLOW", "For a head of correspondence: where what the first latent of each pair shows is in the second. The latents are pairs, one behind the other.", optional=True),
                Input("channels", "COMBO", "Whether maps are gray or of colours.", "gray", choices=("gray", "colour")), *inputs_of(TrainReadoutHead)),
        outputs=(_OUT, Output("STRING", "report", "The loss at first and at last.")), run=_train),
    NodeDef(
        node_id="LodestarLoadReadoutHead", title="Load Readout Head", category=category("training"),
        description="Reads a readout head from a safetensors file in models/lodestar.",
        inputs=(Input("file", "COMBO", "A file of models/lodestar, or the small one that comes with the pack.", SHAPES, choices=_files),),
        outputs=(_OUT,), run=_load, part_of="LodestarReadoutGuidance",
        help="""Files are those of Save Readout Head, moved to models/lodestar. They belong to the network that they were trained on. Keys:

- about: the bytes of "kind|layer layer ...": spatial, appearance or correspondence, and the layers in order
- parts.I.conv1, conv2, conv3, shortcut, norm1, norm2, norm3, norms, time: the bottleneck of layer I
- mixing: the layers' weights before their softmax
- head.0, head.2: 3 x 3 convolutions

The bundled files are for the demo model "unet", on whose features demo/train_readout.py trained them: where the shapes of a scene are (white on black), which places of two scenes match (for drags), and how alike two scenes look.
"""),
    NodeDef(
        node_id="LodestarSaveReadoutHead", title="Save Readout Head", category=category("training"),
        description="Writes a readout head as a safetensors file into the output folder.",
        inputs=(Input("readout", READOUT, "The head, from Train Readout Head."), Input("prefix", "STRING", "Name of the file in the output folder; a number is added.", "lodestar/readout")),
        outputs=(Output("STRING", "path", "Where it was written."),), run=_save, output_node=True, part_of="LodestarReadoutGuidance",
        help="Half precision. Move the file to models/lodestar to load it again.\n"),
)
