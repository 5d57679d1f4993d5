"""The weights of a condition branch (EasyControl): a LoRA that acts on the condition's tokens alone.

Layout of a file, as the authors publish it; N is the number of the condition in the file (0 in files of one):

    transformer_blocks.I.attn.processor.{q,k,v,proj}_loras.N.{down,up}.weight          double block I
    single_transformer_blocks.I.attn.processor.{q,k,v}_loras.N.{down,up}.weight        single block I

down is [rank, width], up [width, rank]. There is no alpha: it equals the rank, so that the LoRA adds up(down(x)).
"""
from __future__ import annotations

import re
from typing import Any

from ..frozen import frozen
from ..method import BadInput

_KEY = re.compile(r"^(?:transformer\.)?(single_)?transformer_blocks\.(\d+)\.attn\.processor\.(q|k|v|proj)_loras\.(\d+)\.(down|up)\.weight$")
PARTS = {"double": ("q", "k", "v", "proj"), "single": ("q", "k", "v")}
EXAMPLE = "transformer_blocks.0.attn.processor.q_loras.0.down.weight"


@frozen(eq=False)
class ConditionLora:
    """pairs: {(stage, block): {part: (down [rank, width], up [width, rank])}}; name: the file's, for messages. Compared by identity."""

    pairs: Any
    width: int
    name: str = "condition LoRA"

    def __deepcopy__(self, memo):
        return self

    def blocks(self, stage):
        return sorted(index for found, index in self.pairs if found == stage)

    def check(self, node, field, blocks, width, network):
        """BadInput where the file was made for another network than one of so many {stage: blocks} of a width."""
        own = {stage: self.blocks(stage) for stage in PARTS}
        if self.width != width or any(own[stage] != list(range(blocks.get(stage, 0))) for stage in PARTS):
            raise BadInput(node, field, self.name, f"It is for blocks of width {self.width}, {_counted(own['double'])} double and {_counted(own['single'])} single; this model "
                           f"({network}) has width {width}, {blocks.get('double', 0)} double and {blocks.get('single', 0)} single. Choose a file that was trained for this model.")


def _counted(numbers):
    return str(len(numbers)) if numbers == list(range(len(numbers))) else f"{len(numbers)} (with gaps)"


def parse(weights, node, field, name="condition LoRA", number=0):
    """A ConditionLora of a file's tensors; BadInput that names the key and what would be right."""
    pairs, numbers, unknown, width = {}, set(), [], None
    for key, value in weights.items():
        found = _KEY.match(key)
        if found is None:
            unknown.append(key)
            continue
        single, block, part, n, side = found.groups()
        numbers.add(int(n))
        if int(n) == number:
            pairs.setdefault(("single" if single else "double", int(block)), {}).setdefault(part, {})[side] = value
    if not numbers:
        raise BadInput(node, field, name, f"It holds no condition LoRA: keys like {EXAMPLE} are expected, it has {', '.join(unknown[:3]) or 'none'}.")
    if unknown:
        raise BadInput(node, field, name, f"{len(unknown)} of its keys are not those of a condition LoRA ({', '.join(unknown[:3])}); keys like {EXAMPLE} are expected.")
    if number not in numbers:
        raise BadInput(node, "number", number, f"{name} holds the conditions {', '.join(map(str, sorted(numbers)))}.")
    done = {}
    for (stage, block), parts in sorted(pairs.items()):
        wanted = PARTS[stage]
        missing = [f"{p}_loras.{number}.{s}.weight" for p in wanted for s in ("down", "up") if s not in parts.get(p, {})]
        if missing or set(parts) - set(wanted):
            wrong = f"{', '.join(missing)} missing" if missing else f"{', '.join(sorted(set(parts) - set(wanted)))} unexpected"
            raise BadInput(node, field, name, f"{stage} block {block} is not complete: {wrong}. A {stage} block needs {', '.join(wanted)}, each with down and up.")
        for part in wanted:
            down, up = parts[part]["down"], parts[part]["up"]
            width = width or up.shape[0]
            if down.ndim != 2 or up.ndim != 2 or down.shape != (up.shape[1], width) or up.shape[0] != width or not down.is_floating_point():
                raise BadInput(node, field, name, f"{part} of {stage} block {block} has down {list(down.shape)} and up {list(up.shape)}; [rank, {width}] and [{width}, rank] would be right.")
        done[stage, block] = {p: (parts[p]["down"], parts[p]["up"]) for p in wanted}
    return ConditionLora(done, width, name)
