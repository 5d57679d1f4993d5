"""The weights of a pair of streams (UniCon): LoRAs of the condition's stream and of the joint cross-attention, and its output projections.

Layout of a file: that of the authors' model.pth, brought to safetensors; BLOCK is diffusers' name of a transformer block (down_blocks.0.attentions.1.transformer_blocks.0):

    BLOCK.attn1n.to_{q,k,v}.lora_{A,B}.{xy,yx}_lora.weight        A [rank, width], B [width, rank]: image looks at condition (xy), condition at image (yx)
    BLOCK.attn1n.to_out.0.lora_{A,B}.{xy,yx}_lora.weight
    BLOCK.attn{1,2}.to_{q,k,v}.lora_{A,B}.y_lora.weight, .to_out.0...     the condition's stream (none in files of loosely coupled pairs)
    BLOCK.conv1n.weight  [2 width, 2 width] (both outputs together, "conv_fuse") or [width, width] (each alone, "conv")

The LoRAs that are published beside it, one folder each, are read too where their folder's name stands in front of their keys: xy_lora.unet.BLOCK.attn1n.to_q.lora.down.weight.
There is no alpha: it equals the rank.
"""
from __future__ import annotations

import re
from typing import Any

from ..frozen import frozen
from ..method import BadInput

PLACES = ("down_blocks", "mid_block", "up_blocks")
STAGES = dict(zip(PLACES, ("input", "middle", "output")))
_BLOCK = r"(?:unet\.)?((?:down_blocks|up_blocks)\.\d+|mid_block)\.attentions\.(\d+)\.transformer_blocks\.(\d+)"
_OWN = re.compile(rf"^{_BLOCK}\.(attn1n|attn1|attn2)\.to_(q|k|v|out)(?:\.0)?\.lora_([AB])\.(?:\w+?_)?(xy|yx|y)_lora\.weight$")
_FOLDER = re.compile(rf"^(xy|yx|y)_lora\.{_BLOCK}\.(attn1n|attn1|attn2)\.to_(q|k|v|out)(?:\.0)?\.(?:lora\.(down|up)|lora_([AB]))\.weight$")
_POST = re.compile(rf"^{_BLOCK}\.(?:conv1n|post1n\.\w+)\.weight$")
PARTS = ("q", "k", "v", "out")
EXAMPLE = "mid_block.attentions.0.transformer_blocks.0.attn1n.to_q.lora_A.xy_lora.weight"


@frozen(eq=False)
class Block:
    """One transformer block. cross: {"xy" or "yx": {part: (down, up)}} of the joint attention; own: {"attn1" or "attn2": {part: (down, up)}} of the condition's stream; post: [2 c, 2 c] or [c, c]."""

    cross: Any
    own: Any
    post: Any

    @property
    def width(self):
        return self.cross["xy"]["out"][1].shape[0]

    @property
    def fused(self):
        """Whether both streams' outputs pass the last projection together."""
        return self.post.shape[0] == 2 * self.width

    def moved(self, move):
        """The block with every tensor through move()."""
        pairs = lambda table: {k: {p: tuple(map(move, pair)) for p, pair in parts.items()} for k, parts in table.items()}
        return Block(pairs(self.cross), pairs(self.own), move(self.post))


@frozen(eq=False)
class JointLora:
    """blocks: {stage: (Block, ...)} in order of execution; name: the file's, for messages. Compared by identity."""

    blocks: Any
    name: str = "UniCon weights"

    def __deepcopy__(self, memo):
        return self

    def fitted(self, geometry, widths, node, network):
        """{layer's name: Block} for a U-Net whose layers have `widths` {layer's name: (width, width of the text)}; BadInput where the file is for another network."""
        if geometry.family != "unet":
            raise BadInput(node, "model", network, "The weights name the transformer blocks of U-Nets (SD1.5, SDXL), whose self-attention and text attention they change; none are published for "
                           "networks with joint attention. Use a U-Net.")
        if geometry.temporal:
            raise BadInput(node, "model", network, "Its batch holds the frames of a video, which cannot be pairs of streams. Use a model of pictures.")
        found = {}
        for stage in STAGES.values():
            layers, blocks = [x for x in geometry.layers if x.stage == stage], self.blocks.get(stage, ())
            if blocks and len(blocks) != len(layers):
                raise BadInput(node, "weights", self.name, f"It has {len(blocks)} transformer blocks in the {stage} part, this model ({network}) has {len(layers)}: it was made for another model.")
            for layer, block in zip(layers, blocks):
                width, text = widths[str(layer)]
                wrong = next((t for parts in block.own.values() for p, t in parts.items() if t[1].shape[0] != width), None)
                if block.width != width or wrong is not None or (block.own and block.own["attn2"]["k"][0].shape[1] != text):
                    raise BadInput(node, "weights", self.name, f"{layer} of this model ({network}) is {width} wide and takes text of width {text}; the file's block is {block.width} wide"
                                   + (f" and takes {block.own['attn2']['k'][0].shape[1]}" if block.own else "") + ": it was made for another model.")
                found[str(layer)] = block
        return found


def parse(weights, node, field, name="UniCon weights"):
    """A JointLora of a file's tensors (as they are, without a copy); BadInput that names the key and what would be right."""
    wrong = lambda what: BadInput(node, field, name, f"{what} Keys like {EXAMPLE} and conv1n.weight for each block are expected.")
    blocks, unknown = {}, []
    for key, value in weights.items():
        own, folder, post = _OWN.match(key), _FOLDER.match(key), _POST.match(key)
        if own:
            place, a, t, attention, part, side, which = own.groups()
        elif folder:
            which, place, a, t, attention, part, side, letter = folder.groups()
            side = letter or {"down": "A", "up": "B"}[side]
        elif post:
            place, a, t = post.groups()
        else:
            unknown.append(key)
            continue
        stage, _, index = place.partition(".")
        at = blocks.setdefault((PLACES.index(stage), int(index or 0), int(a), int(t)), {})
        if post:
            at["post"] = value
        elif (attention == "attn1n") == (which == "y"):
            unknown.append(key)
        else:
            at.setdefault((which, attention), {}).setdefault(part, {})[side] = value
    if not blocks:
        raise wrong(f"It holds no pair of streams; it has {', '.join(unknown[:3]) or 'no keys'}.")
    if unknown:
        raise wrong(f"{len(unknown)} of its keys are not known ({', '.join(sorted(unknown)[:3])}).")
    done = {}
    for key in sorted(blocks):
        done.setdefault(STAGES[PLACES[key[0]]], []).append(_block(blocks[key], f"{PLACES[key[0]]}.{key[1]}.attentions.{key[2]}.transformer_blocks.{key[3]}", wrong))
    made = [bool(b.own) for found in done.values() for b in found]
    if any(made) and not all(made):
        raise wrong("Some of its blocks have weights for the condition's stream (y_lora) and some have none.")
    return JointLora({stage: tuple(found) for stage, found in done.items()}, name)


def _block(found, name, wrong):
    needed = [("xy", "attn1n"), ("yx", "attn1n")]
    if any(which == "y" for which, *_ in (k for k in found if k != "post")):
        needed += [("y", "attn1"), ("y", "attn2")]
    missing = [f"{attention}.to_{part} ({which}_lora, lora_{side})" for which, attention in needed for part in PARTS for side in "AB" if side not in found.get((which, attention), {}).get(part, {})]
    if missing or "post" not in found:
        raise wrong(f"{name} is not complete: {', '.join((missing + ([] if 'post' in found else ['conv1n']))[:3])} missing.")
    pairs = {key: {part: (found[key][part]["A"], found[key][part]["B"]) for part in PARTS} for key in needed}
    for (which, attention), parts in pairs.items():
        for part, (down, up) in parts.items():
            if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0] or not down.is_floating_point():
                raise wrong(f"{attention}.to_{part} of {name} has lora_A {list(down.shape)} and lora_B {list(up.shape)}; [rank, width] and [width, rank] would be right.")
    width = pairs["xy", "attn1n"]["out"][1].shape[0]
    if tuple(found["post"].shape) not in ((width, width), (2 * width, 2 * width)):
        raise wrong(f"conv1n of {name} has {list(found['post'].shape)}; [{2 * width}, {2 * width}] or [{width}, {width}] would be right.")
    return Block({"xy": pairs["xy", "attn1n"], "yx": pairs["yx", "attn1n"]}, {a: pairs["y", a] for a in ("attn1", "attn2") if ("y", a) in pairs}, found["post"])
