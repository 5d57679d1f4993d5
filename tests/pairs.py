"""Random weights in UniCon's layout for any U-Net of the host."""
import torch

from ..guidance.attention.joint_lora import PARTS, PLACES, STAGES


def unicon_file(network, geometry, rank=3, seed=0, strength=0.3, own=True, fused=True, mirrored=False, up=True):
    """{key: tensor}. own: with weights for the condition's stream; fused: one projection for both outputs; mirrored: both streams' joint weights are the same; up: False leaves LoRAs without effect."""
    from ..guidance.host.joint_streams import attention_widths
    g, w, numbers = torch.Generator().manual_seed(seed), {}, {}
    widths = attention_widths(network, geometry)
    place_of = {stage: place for place, stage in STAGES.items()}
    assert set(place_of.values()) == set(PLACES)
    for layer in geometry.layers:
        width, text = widths[str(layer)]
        n = numbers.setdefault((layer.stage, layer.index), sum(stage == layer.stage for stage, _ in numbers))
        place = place_of[layer.stage] if layer.stage == "middle" else f"{place_of[layer.stage]}.{n}"
        block = f"{place}.attentions.0.transformer_blocks.{layer.depth or 0}"
        for attention, names in (("attn1n", ("xy", "yx")), *((("attn1", ("y",)), ("attn2", ("y",))) if own else ())):
            for part in PARTS:
                given = text if attention == "attn2" and part in "kv" else width
                for name in names:
                    stem = f"{block}.{attention}.to_{part}{'.0' if part == 'out' else ''}.lora_"
                    w[f"{stem}A.{name}_lora.weight"] = torch.randn(rank, given, generator=g) / given ** 0.5
                    w[f"{stem}B.{name}_lora.weight"] = torch.randn(width, rank, generator=g) * strength * up
                    if mirrored and name == "yx":
                        w |= {f"{stem}{s}.yx_lora.weight": w[f"{stem}{s}.xy_lora.weight"].clone() for s in "AB"}
        if fused:
            a, b = (torch.randn(width, width, generator=g) / (2 * width) ** 0.5 for _ in range(2))
            c, d = (b, a) if mirrored else (torch.randn(width, width, generator=g) / (2 * width) ** 0.5 for _ in range(2))
            w[f"{block}.conv1n.weight"] = torch.cat((torch.cat((a, b), 1), torch.cat((c, d), 1))) * up
        else:
            w[f"{block}.conv1n.weight"] = torch.randn(width, width, generator=g) / width ** 0.5 * up
    return w
