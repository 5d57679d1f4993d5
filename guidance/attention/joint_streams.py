"""Two streams in one batch, image and condition, and the attention that joins them (UniCon): what becomes of a block's projections. Pure tensors."""
from __future__ import annotations

import torch


class Rows:
    """Which rows of a network call are which. image, condition: rows of the two streams, pair by pair, of the chunks (prompts) whose streams see each other; own: rows of all condition streams."""

    def __init__(self, chunks, size, joined, device=None):
        """chunks: number of prompts in the call, `size` rows each, the first half images; joined: for each chunk whether its streams see each other, None where its rows are no streams."""
        table = torch.arange(chunks * size, device=device).view(chunks, 2, size // 2)
        seen, streams = (torch.tensor(found, dtype=torch.bool, device=device) for found in ([bool(j) for j in joined], [j is not None for j in joined]))
        self.own = table[streams, 1].flatten()
        self.image, self.condition = table[seen, 0].flatten(), table[seen, 1].flatten()

    def __len__(self):
        return len(self.image)


def low_rank(pair, t):
    """up(down(t)) of a LoRA."""
    down, up = pair
    return t.to(down.dtype) @ down.T @ up.T


def adapted(out, given, pair, rows, amount):
    """A projection's result with the LoRA added in some rows; the other rows' bits stay."""
    return torch.index_add(out, 0, rows, (low_rank(pair, given[rows]) * amount).to(out.dtype))


class Joined:
    """The self-attention of one block in a call: its projections, with the condition's LoRA in its rows, and behind them what the streams see of each other.

        o_x = (O + xy) attn((Q + xy) n_x, (K + xy) n_y, (V + xy) n_y),   o_y = (O + yx) attn((Q + yx) n_y, (K + yx) n_x, (V + yx) n_x)
        out = own attention + scale * P [o_x, o_y]

    block: joint_lora.Block; attend(q, k, v): attention of [rows, tokens, width]; scale: (of the image, of the condition); amount: factor on the LoRAs.
    """

    def __init__(self, block, rows, attend, scale=(1.0, 1.0), amount=1.0):
        self.block, self.rows, self.attend, self.scale, self.amount = block, rows, attend, scale, amount
        self.base = {}

    def enter(self, part, inner):
        """The forward of to_q, to_k or to_v in place of `inner`."""
        def run(given):
            out = inner(given)
            if len(self.rows) and any(self.scale):
                self.base[part] = out, given
            return self._own(part, out, given)
        return run

    def _own(self, part, out, given):
        own = self.block.own.get("attn1")
        return out if own is None or self.amount == 0 else adapted(out, given, own[part], self.rows.own, self.amount)

    def leave(self, inner):
        """The forward of to_out in place of `inner`."""
        def run(given):
            out = self._own("out", inner(given), given)
            if not self.base:
                return out
            x, y = self.rows.image, self.rows.condition
            q, k, v = self._sides("q", (x, y)), self._sides("k", (y, x)), self._sides("v", (y, x))
            self.base.clear()
            seen = self.attend(q, k, v)
            both = inner(seen)
            parts = [b + low_rank(self.block.cross[w]["out"], s).to(b.dtype) * self.amount for w, b, s in zip(("xy", "yx"), both.chunk(2), seen.chunk(2))]
            post = self.block.post.T
            parts = (torch.cat(parts, -1).to(post.dtype) @ post).chunk(2, -1) if self.block.fused else [p.to(post.dtype) @ post for p in parts]
            for rows, part, scale in zip((x, y), parts, self.scale):
                if scale:
                    out = torch.index_add(out, 0, rows, (part * scale).to(out.dtype))
            return out
        return run

    def _sides(self, part, rows):
        """Both directions' queries, keys or values, one behind the other."""
        base, given = self.base[part]
        return torch.cat([base[r] + low_rank(self.block.cross[w][part], given[r]).to(base.dtype) * self.amount for w, r in zip(("xy", "yx"), rows)])


def text_attention(block, part, rows, amount, inner):
    """The forward of a projection of the text's attention, with the condition's LoRA in its rows, in place of `inner`."""
    own = block.own.get("attn2")

    def run(given):
        out = inner(given)
        return out if own is None or amount == 0 else adapted(out, given, own[part], rows.own, amount)
    return run


def placed_in(module, block, rows, attend, scale=(1.0, 1.0), amount=1.0):
    """[(module, make(earlier forward))] of one transformer block: what is to be exchanged for a call."""
    joined = Joined(block, rows, attend, scale, amount)
    made = [(getattr(module.attn1, f"to_{p}"), lambda inner, p=p: joined.enter(p, inner)) for p in "qkv"]
    made.append((module.attn1.to_out, joined.leave))
    if block.own and module.attn2 is not None:
        made += [(getattr(module.attn2, f"to_{p}"), lambda inner, p=p: text_attention(block, p, rows, amount, inner)) for p in ("q", "k", "v", "out")]
    return made
