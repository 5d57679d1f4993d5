"""Edits of single modules of a U-Net (linear layers, convolutions, whole blocks), named as diffusers names them. Pure tensors; guidance.host.modules puts them in place for a network call."""
from __future__ import annotations

from typing import Any

from ..frozen import frozen
from .edits import AttentionEdit

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}


@frozen
class ModuleSite:
    """What a module edit knows of the rows that it is shown. entry: [rows], the number of each row's picture in the batch; keep(key, make): a tensor (or several) made once a run, on the
    network's device in its dtype; step: guidance.method.Step; control: what the call's ControlNets give, {"output": [residuals of the skip connections, the last first used], ...}, {} where they give nothing
    now, None where no prompt has any; rows: the numbers of the rows of the network call that it is shown, None for all."""

    entry: Any
    keep: Any
    step: Any = None
    control: Any = None
    rows: Any = None


@frozen
class ModuleEdit(AttentionEdit):
    """An edit of what modules give. It acts on all rows of the network unless a subclass says otherwise."""

    kinds = ()
    everywhere = True

    def default_layers(self, geometry):
        return "all"

    def names(self):
        """diffusers' names of the modules."""
        raise NotImplementedError

    def enter(self, site, name, module, given):
        """What a module is given in place of `given`, its first argument."""
        return given

    def result(self, site, name, module, out, given):
        """What takes the place of `out`, the module's own result of `given` (its first argument); neither may be changed in place."""
        raise NotImplementedError


def diffusers_names(network):
    """{diffusers' name: the host's} of the blocks of a U-Net that hold modules, by its structure: residual blocks, transformers, downsamplers, upsamplers and the ends."""
    found = dict(ENDS)
    level = number = 0
    for i, block in enumerate(list(network.input_blocks)[1:], 1):
        if hasattr(block[0], "in_layers"):
            _pair(found, f"down_blocks.{level}", number, f"input_blocks.{i}", block)
            number += 1
        else:
            found[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{i}.0.op"
            level, number = level + 1, 0
    if network.middle_block is not None:
        counts = {"resnets": 0, "attentions": 0}
        for i, module in enumerate(network.middle_block):
            kind = "resnets" if hasattr(module, "in_layers") else "attentions"
            found[f"mid_block.{kind}.{counts[kind]}"] = f"middle_block.{i}"
            counts[kind] += 1
    level = number = 0
    for i, block in enumerate(network.output_blocks):
        _pair(found, f"up_blocks.{level}", number, f"output_blocks.{i}", block)
        number += 1
        last = len(block) - 1
        if last and not hasattr(block[last], "in_layers") and not hasattr(block[last], "transformer_blocks"):
            found[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{i}.{last}.conv"
            level, number = level + 1, 0
    return found


def _pair(found, place, number, own, block):
    found[f"{place}.resnets.{number}"] = f"{own}.0"
    for k, module in enumerate(block):
        if hasattr(module, "transformer_blocks"):
            found[f"{place}.attentions.{number}"] = f"{own}.{k}"


def host_name(table, name):
    """The host's name of a module that diffusers calls `name`, by a table of diffusers_names; None where the network has no such place."""
    if name in table:
        return table[name]
    head = name
    while "." in head:
        head, _, _ = head.rpartition(".")
        if head in table:
            rest = name[len(head) + 1:]
            return f"{table[head]}.{RESNET.get(rest, rest)}"
    return None
