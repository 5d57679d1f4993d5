"""A workflow as a Python value, written in the API's format and in the page's. Needs no host: the pack's nodes are known from their definitions,
those of ComfyUI that the examples use from CORE (a host test compares it with the server)."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

CORE = {
    # class: (title, ((input, type, default), ...), ((output type, name), ...))
    "CLIPTextEncode": ("CLIP Text Encode (Prompt)", (("text", "STRING", ""), ("clip", "CLIP", None)), (("CONDITIONING", "CONDITIONING"),)),
    "EmptyLatentImage": ("Empty Latent Image", (("width", "INT", 512), ("height", "INT", 512), ("batch_size", "INT", 1)), (("LATENT", "LATENT"),)),
    "KSampler": ("KSampler", (("model", "MODEL", None), ("seed", "INT", 0), ("steps", "INT", 20), ("cfg", "FLOAT", 8.0), ("sampler_name", "COMBO", "euler"),
                              ("scheduler", "COMBO", "normal"), ("positive", "CONDITIONING", None), ("negative", "CONDITIONING", None),
                              ("latent_image", "LATENT", None), ("denoise", "FLOAT", 1.0)), (("LATENT", "LATENT"),)),
    "VAEDecode": ("VAE Decode", (("samples", "LATENT", None), ("vae", "VAE", None)), (("IMAGE", "IMAGE"),)),
    "VAEEncode": ("VAE Encode", (("pixels", "IMAGE", None), ("vae", "VAE", None)), (("LATENT", "LATENT"),)),
    "SaveImage": ("Save Image", (("images", "IMAGE", None), ("filename_prefix", "STRING", "ComfyUI")), ()),
    "KSamplerSelect": ("KSamplerSelect", (("sampler_name", "COMBO", "euler"),), (("SAMPLER", "SAMPLER"),)),
    "BasicScheduler": ("BasicScheduler", (("model", "MODEL", None), ("scheduler", "COMBO", "normal"), ("steps", "INT", 20), ("denoise", "FLOAT", 1.0)),
                       (("SIGMAS", "SIGMAS"),)),
    "RandomNoise": ("RandomNoise", (("noise_seed", "INT", 0),), (("NOISE", "NOISE"),)),
    "CFGGuider": ("CFGGuider", (("model", "MODEL", None), ("positive", "CONDITIONING", None), ("negative", "CONDITIONING", None), ("cfg", "FLOAT", 8.0)),
                  (("GUIDER", "GUIDER"),)),
    "SamplerCustomAdvanced": ("SamplerCustomAdvanced", (("noise", "NOISE", None), ("guider", "GUIDER", None), ("sampler", "SAMPLER", None),
                              ("sigmas", "SIGMAS", None), ("latent_image", "LATENT", None)), (("LATENT", "output"), ("LATENT", "denoised_output"))),
    "SolidMask": ("SolidMask", (("value", "FLOAT", 1.0), ("width", "INT", 512), ("height", "INT", 512)), (("MASK", "MASK"),)),
    "MaskComposite": ("MaskComposite", (("destination", "MASK", None), ("source", "MASK", None), ("x", "INT", 0), ("y", "INT", 0), ("operation", "COMBO", "multiply")),
                      (("MASK", "MASK"),)),
    "UNetSelfAttentionMultiply": ("UNetSelfAttentionMultiply", (("model", "MODEL", None), ("q", "FLOAT", 1.0), ("k", "FLOAT", 1.0), ("v", "FLOAT", 1.0),
                                  ("out", "FLOAT", 1.0)), (("MODEL", "MODEL"),)),
}
CORE |= {
    "ControlNetLoader": ("Load ControlNet Model", (("control_net_name", "COMBO", ""),), (("CONTROL_NET", "CONTROL_NET"),)),
    "ControlNetApplyAdvanced": ("Apply ControlNet", (
        ("positive", "CONDITIONING", None), ("negative", "CONDITIONING", None), ("control_net", "CONTROL_NET", None), ("image", "IMAGE", None), ("strength", "FLOAT", 1.0),
        ("start_percent", "FLOAT", 0.0), ("end_percent", "FLOAT", 1.0)), (("CONDITIONING", "positive"), ("CONDITIONING", "negative"))),
    "CheckpointLoaderSimple": ("Load Checkpoint", (("ckpt_name", "COMBO", ""),), (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE"))),
    "SetLatentNoiseMask": ("Set Latent Noise Mask", (("samples", "LATENT", None), ("mask", "MASK", None)), (("LATENT", "LATENT"),)),
    "LoadImage": ("Load Image", (("image", "COMBO", "example.png"),), (("IMAGE", "IMAGE"), ("MASK", "MASK"))),
    "SolidMask": ("SolidMask", (("value", "FLOAT", 1.0), ("width", "INT", 512), ("height", "INT", 512)), (("MASK", "MASK"),)),
    "MaskComposite": ("MaskComposite", (("destination", "MASK", None), ("source", "MASK", None), ("x", "INT", 0), ("y", "INT", 0), ("operation", "COMBO", "multiply")),
                      (("MASK", "MASK"),)),
}
CORE |= {"CLIPVisionEncode": ("CLIP Vision Encode", (("clip_vision", "CLIP_VISION", None), ("image", "IMAGE", None), ("crop", "COMBO", "center")), (("CLIP_VISION_OUTPUT", "CLIP_VISION_OUTPUT"),)),
         "MaskToImage": ("Convert Mask to Image", (("mask", "MASK", None),), (("IMAGE", "IMAGE"),))}
CORE |= {"EmptyImage": ("EmptyImage", (("width", "INT", 512), ("height", "INT", 512), ("batch_size", "INT", 1), ("color", "INT", 0)), (("IMAGE", "IMAGE"),)),
         "ImageCompositeMasked": ("ImageCompositeMasked", (("destination", "IMAGE", None), ("source", "IMAGE", None), ("x", "INT", 0), ("y", "INT", 0), ("resize_source", "BOOLEAN", False)), (("IMAGE", "IMAGE"),))}
CORE |= {"LatentFromBatch": ("Latent From Batch", (("samples", "LATENT", None), ("batch_index", "INT", 0), ("length", "INT", 1)), (("LATENT", "LATENT"),))}
SEEDS = ("seed", "noise_seed")      # the page keeps "control after generate" behind these
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
WIDTH, GAP, ROW = 320, 60, 26


@dataclass(frozen=True)
class Wire:
    """One output of a node."""

    node: int
    slot: int


@dataclass
class Node:
    id: int
    kind: str
    title: str
    inputs: tuple       # ((name, type, default, optional), ...)
    outputs: tuple      # ((type, name), ...)
    values: dict = field(default_factory=dict)

    def __getitem__(self, slot):
        return Wire(self.id, slot)

    def widgets(self):
        return [i for i in self.inputs if i[1] in WIDGETS]

    def sockets(self):
        return [i for i in self.inputs if i[1] not in WIDGETS]


class Graph:
    """add() nodes with their inputs by name: a Wire (`node[0]`) or a value; a widget that is left out has its default."""

    def __init__(self, definitions, note=""):
        self.definitions, self.nodes, self.note = definitions, [], note

    def add(self, kind, title=None, **values):
        if kind in CORE:
            name, inputs, outputs = CORE[kind]
            inputs = tuple((*i, False) for i in inputs)
        else:
            d = self.definitions[kind]
            name, outputs = d.title, tuple((o.type, o.name) for o in d.outputs)
            inputs = tuple((i.name, i.type, i.default, i.optional) for i in d.ordered())
        known = [i[0] for i in inputs]
        unknown = [v for v in values if v not in known]
        missing = [n for n, t, _, optional in inputs if t not in WIDGETS and not optional and n not in values]
        if unknown or missing:
            raise ValueError(f"{kind}: " + "; ".join(filter(None, [f"has no input {', '.join(unknown)}" if unknown else "",
                                                                    f"needs {', '.join(missing)}" if missing else ""])))
        node = Node(len(self.nodes) + 1, kind, title or name, inputs, outputs, values)
        self.nodes.append(node)
        return node

    def api(self):
        """The format of the API: {id: {class_type, inputs, _meta}}."""
        result = {}
        for node in self.nodes:
            inputs = {}
            for name, kind, default, _ in node.inputs:
                value = node.values.get(name, default if kind in WIDGETS else None)
                if isinstance(value, Wire):
                    value = [str(value.node), value.slot]
                if value is not None:
                    inputs[name] = value
            result[str(node.id)] = {"class_type": node.kind, "inputs": inputs, "_meta": {"title": node.title}}
        return result

    def _depths(self):
        depths = {}
        for node in self.nodes:     # inputs come before the nodes that use them
            depths[node.id] = 1 + max((depths[v.node] for v in node.values.values() if isinstance(v, Wire)), default=-1)
        for node in reversed(self.nodes):       # sources stand next to what they feed
            users = [depths[n.id] for n in self.nodes if any(isinstance(v, Wire) and v.node == node.id for v in n.values.values())]
            if users and not any(isinstance(v, Wire) for v in node.values.values()) and node is not self.nodes[0]:
                depths[node.id] = min(users) - 1
        return depths

    def _size(self, node):
        rows = max(len(node.sockets()), len(node.outputs)) + len(node.widgets()) + sum(n in SEEDS for n, *_ in node.widgets())
        extra = 60 if node.kind == "CLIPTextEncode" else 270 if node.kind == "SaveImage" else 0
        return [WIDTH, 40 + ROW * rows + extra]

    def ui(self):
        """The format of the page: nodes laid out from left to right, links, widget values in order."""
        depths, heights, nodes, links = self._depths(), {}, [], []
        out = {(n.id, s): [] for n in self.nodes for s in range(len(n.outputs))}
        entries = {}
        for node in self.nodes:
            entries[node.id] = []
            for slot, (name, kind, _, optional) in enumerate(node.sockets()):
                wire, link = node.values.get(name), None
                if wire is not None:
                    link = len(links) + 1
                    links.append([link, wire.node, wire.slot, node.id, slot, kind])
                    out[wire.node, wire.slot].append(link)
                entries[node.id].append({"name": name, "type": kind, **({"shape": 7} if optional else {}), "link": link})
        top = 160 if self.note else 0
        for order, node in enumerate(self.nodes):
            size, column = self._size(node), depths[node.id]
            y = heights.get(column, top)
            heights[column] = y + size[1] + GAP
            values = []
            for name, _, default, _ in node.widgets():
                values.append(node.values.get(name, default))
                values += ["fixed"] if name in SEEDS else []
            nodes.append({
                "id": node.id, "type": node.kind, "title": node.title, "pos": [column * (WIDTH + GAP), y], "size": size, "flags": {}, "order": order, "mode": 0,
                "inputs": entries[node.id],
                "outputs": [{"name": name, "type": kind, "links": out[node.id, s], "slot_index": s} for s, (kind, name) in enumerate(node.outputs)],
                "properties": {"Node name for S&R": node.kind}, "widgets_values": values})
        if self.note:
            nodes.append({"id": len(self.nodes) + 1, "type": "Note", "pos": [0, 0], "size": [2 * WIDTH + GAP, 110], "flags": {}, "order": len(nodes), "mode": 0,
                          "inputs": [], "outputs": [], "properties": {}, "widgets_values": [self.note]})
        return {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, "lodestar/" + self.note)), "revision": 0, "last_node_id": len(nodes),
                "last_link_id": len(links), "nodes": nodes, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4}
