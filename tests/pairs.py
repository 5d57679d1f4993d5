"""Random weights in the layouts of UniCon, of Pixel-Aware Attention and of Block-Wise Semantics for any U-Net of the host."""
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


def pixel_file(network, channels=4, seed=0, encoder=True, strength=0.3):
    """{key: tensor} of pixel-aware attention behind every layer of a U-Net's decoder; with an encoder of latents of so many channels."""
    from ..guidance.attention.module_edits import diffusers_names, host_name
    g, w, table = torch.Generator().manual_seed(seed), {}, diffusers_names(network)
    normal = lambda out, given, *kernel: torch.randn(out, given, *kernel, generator=g) / (given * torch.Size(kernel).numel()) ** 0.5
    places = [(i, j) for i in range(9) for j in range(9) if f"up_blocks.{i}.resnets.{j}" in table]
    before = network.middle_block[-1].out_layers[-1].out_channels
    levels = 1 + max(i for i, _ in places)
    if encoder:
        for i in range(levels):
            name = "enter" if i == 0 else f"down.{i - 1}"
            w[f"pixel_encoder.{name}.weight"], w[f"pixel_encoder.{name}.bias"] = normal(8, channels if i == 0 else 8, 3, 3), torch.zeros(8)
    for n, (i, j) in enumerate(places):
        resnet = network.get_submodule(host_name(table, f"up_blocks.{i}.resnets.{j}"))
        width, seen = resnet.out_layers[-1].out_channels, resnet.in_layers[-1].in_channels - before
        before, at = width, f"up_blocks.{i}.pixel_attentions.{j}"
        for name in ("norm", *(f"transformer_blocks.0.norm{k}" for k in (1, 2, 3))):
            w[f"{at}.{name}.weight"], w[f"{at}.{name}.bias"] = torch.ones(width), torch.zeros(width)
        for name in ("proj_in", "proj_out"):
            w[f"{at}.{name}.weight"], w[f"{at}.{name}.bias"] = normal(width, width) * (strength if name == "proj_out" else 1), torch.zeros(width)
        for attention, given in (("attn1", width), ("attn2", seen)):
            for part in "qkv":
                w[f"{at}.transformer_blocks.0.{attention}.to_{part}.weight"] = normal(width, width if part == "q" else given)
            w[f"{at}.transformer_blocks.0.{attention}.to_out.0.weight"], w[f"{at}.transformer_blocks.0.{attention}.to_out.0.bias"] = normal(width, width), torch.zeros(width)
        for name, out, given in (("0.proj", 8 * width, width), ("2", width, 4 * width)):
            w[f"{at}.transformer_blocks.0.ff.net.{name}.weight"], w[f"{at}.transformer_blocks.0.ff.net.{name}.bias"] = normal(out, given), torch.zeros(out)
        if encoder:
            w[f"pixel_encoder.leave.{n}.weight"], w[f"pixel_encoder.leave.{n}.bias"] = normal(seen, 8, 3, 3), torch.zeros(seen)
    return w


def semantics_file(network, geometry, seed=0, extract=True, strength=0.3):
    """{key: tensor} of block-wise semantics for every attention to the text of a U-Net; with a network that finds the maps, or without."""
    from ..guidance.attention.module_edits import diffusers_names, host_name
    from ..guidance.host.joint_streams import attention_widths
    g, w, table = torch.Generator().manual_seed(seed), {}, diffusers_names(network)

    def conv(name, out, given, scale=1.0):
        w[f"{name}.weight"], w[f"{name}.bias"] = scale * torch.randn(out, given, 3, 3, generator=g) / (9 * given) ** 0.5, 0.1 * torch.randn(out, generator=g)
    widths = {layer: text for layer, (_, text) in attention_widths(network, geometry).items() if text is not None}
    width, before, skips = next(iter(widths.values())), network.middle_block[-1].out_layers[-1].out_channels, []
    for i in range(9):
        for j in range(9):
            if f"up_blocks.{i}.resnets.{j}" in table:
                resnet = network.get_submodule(host_name(table, f"up_blocks.{i}.resnets.{j}"))
                skips.append(resnet.in_layers[-1].in_channels - before)
                before = resnet.out_layers[-1].out_channels
    for part, channels, outs, scale in (("semantics", 192, (width, width), 1.0), ("structure", 256, skips, strength), ("edges", 64, [2 * n for n in skips], strength)):
        conv(f"{part}.enter", 8, channels)
        for i, out in enumerate(outs):
            conv(f"{part}.leave.{i}", out, 8, scale)
        if part == "semantics":
            conv("semantics.down.0", 8, 8)
            w["semantics.norm.weight"], w["semantics.norm.bias"] = torch.ones(width), torch.zeros(width)
    for layer in widths:
        w[f"blocks.{layer}.gate"], w[f"blocks.{layer}.levels"] = torch.full((1,), 2 * strength), torch.randn(2, generator=g)
    if extract:
        conv("extract.enter", 6, 48)
        conv("extract.inner.0", 6, 6)
        conv("extract.leave", 20, 6)
    return w
