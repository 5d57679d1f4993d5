"""The layers of the host's networks, told by their structure (never by their exact class)."""
import inspect
from functools import cache

from ..layers import Geometry, Layer


def diffusion_model(patcher):
    """The network inside a MODEL."""
    return patcher.model.diffusion_model


@cache
def _over_frames(cls):
    """Whether a transformer with blocks over the frames tells them about the call: hosts of 2024 run them without options, so that no edit can find them."""
    try:
        return inspect.getsource(cls.forward).count("transformer_options=transformer_options") > 1
    except OSError:      # no source beside it: a host that is newer than that
        return True


def _unet(net):
    layers = []

    def scan(stage, index, sequence):
        for module in sequence:
            blocks = getattr(module, "transformer_blocks", None)
            if blocks is None:
                continue
            for depth, block in enumerate(blocks):
                kinds = ["cross" if getattr(block, "disable_self_attn", False) else "self"]
                if getattr(block, "attn2", None) is not None:
                    kinds.append("cross")
                if hasattr(module, "time_stack") and _over_frames(type(module)):
                    kinds.append("temporal")
                layers.append(Layer(stage, index, depth if len(blocks) > 1 else None, tuple(kinds), (stage, index, depth)))

    for i, block in enumerate(net.input_blocks):
        scan("input", i, block)
    scan("middle", 0, net.middle_block or ())
    for i, block in enumerate(net.output_blocks):
        scan("output", i, block)
    sequences = [*net.input_blocks, net.middle_block or (), *net.output_blocks]
    return Geometry("unet", tuple(layers), temporal=any(hasattr(module, "time_stack") for sequence in sequences for module in sequence))


def _stack(blocks, stage, attentions, key):
    return tuple(Layer(stage, i, None, attentions, (key, i)) for i in range(len(blocks)))


def _patch(net, default):
    """(frame, height, width) of a token in latent cells."""
    if hasattr(net, "patch_spatial"):
        return (net.patch_temporal, net.patch_spatial, net.patch_spatial)
    size = getattr(net, "patch_size", default)
    if isinstance(size, int):
        return (1, size, size)
    size = tuple(size)
    return size if len(size) == 3 else (1, *size)


def _two_streams(net):
    """Flux, Chroma, Hunyuan Video: blocks of two streams, then of one."""
    layers = _stack(net.double_blocks, "double", ("joint",), "double_block") + _stack(net.single_blocks, "single", ("joint",), "single_block")
    if hasattr(net, "latent_in"):      # Hunyuan 3D: a token for each place of the sequence
        return Geometry("flux", layers)
    refiner = getattr(getattr(net, "txt_in", None), "individual_token_refiner", None)
    family = "hunyuan" if refiner is not None else "flux"
    flipped = len(net.double_blocks) and getattr(net.double_blocks[0], "flipped_img_txt", False)
    return Geometry(family, layers, _patch(net, 2), text_first=not flipped, image_last=family == "hunyuan",
                    prelude=("text",) * len(refiner.blocks) if refiner is not None else ())


def _lumina(net):
    """Lumina 2, Z-Image: refiners of text and image, then joint blocks, which the host's block replacements do not reach."""
    prelude = ("text",) * len(net.context_refiner) + ("image",) * (len(getattr(net, "siglip_refiner", None) or ()) + len(net.noise_refiner))
    return Geometry("lumina", _stack(net.layers, "layer", ("joint",), None), _patch(net, 2), image_last=True,
                    multiple=getattr(net, "pad_tokens_multiple", None) or 1, prelude=prelude)


def _transformer_blocks(net):
    """LTX (self and cross attention), Qwen-Image (joint attention), and others of this name."""
    first = net.transformer_blocks[0]
    if hasattr(first, "audio_attn1"):
        return Geometry("blocks", _stack(net.transformer_blocks, "block", (), "double_block"), _patch(net, 1))
    if hasattr(first, "attn1") and hasattr(first, "attn2") and hasattr(net, "patchify_proj"):
        return Geometry("ltx", _stack(net.transformer_blocks, "block", ("self", "cross"), "double_block"), _patch(net, 1))
    if hasattr(getattr(first, "attn", None), "add_q_proj") and hasattr(net, "txt_norm"):
        return Geometry("qwen", _stack(net.transformer_blocks, "double", ("joint",), "double_block"), _patch(net, 2))
    if hasattr(getattr(first, "attn", None), "img_qkv"):
        return Geometry("lens", _stack(net.transformer_blocks, "double", ("joint",), "double_block"), text_first=False)
    return Geometry("blocks", _stack(net.transformer_blocks, "block", (), "double_block"), _patch(net, 2))


def _single_stream(net):
    """Ideogram 4 and Ernie: one stream; the host tells Ernie's attention nothing of the call."""
    if hasattr(net, "llm_cond_proj"):
        return Geometry("ideogram", _stack(net.layers, "layer", ("joint",), None))
    return Geometry("blocks", _stack(net.layers, "layer", (), None), _patch(net, 1))


def _blocks(net):
    """Wan, Cosmos, and others with one list (or dictionary) of blocks."""
    blocks = list(net.blocks.values()) if hasattr(net.blocks, "values") else list(net.blocks)
    first = blocks[0]
    if hasattr(net, "txtfusion"):      # Krea 2: the layers of its text encoder are joined by attention first
        fusion = net.txtfusion
        return Geometry("krea", _stack(blocks, "block", ("joint",), None), (1, net.patch, net.patch), prelude=("text",) * (len(fusion.layerwise_blocks) + len(fusion.refiner_blocks)))
    if hasattr(first, "attn_out") and hasattr(first, "ff_proj"):      # CogVideoX
        return Geometry("cogvideo", _stack(blocks, "block", ("joint",), None), (getattr(net, "patch_size_t", None) or 1, net.patch_size, net.patch_size))
    if hasattr(getattr(first, "attn", None), "qkv_y"):
        return Geometry("mochi", _stack(blocks, "block", ("joint",), "double_block"), _patch(net, 2), text_first=False)
    if hasattr(first, "self_attn") and hasattr(first, "cross_attn"):
        if not hasattr(first.self_attn, "q"):
            return Geometry("cosmos", _stack(blocks, "block", ("self", "cross"), None), _patch(net, 2))
        kinds = ("self", "image", "cross") if hasattr(first.cross_attn, "k_img") else ("self", "cross")
        return Geometry("wan", _stack(blocks, "block", kinds, "double_block"), _patch(net, 2))
    parts = [getattr(part, "block_type", "") for part in getattr(first, "blocks", ())]
    kinds = tuple({"full_attn": "self", "fa": "self", "cross_attn": "cross", "ca": "cross"}[p] for p in parts if p in ("full_attn", "fa", "cross_attn", "ca"))
    if kinds:
        return Geometry("cosmos", _stack(blocks, "block", kinds, None), _patch(net, 2))
    return Geometry("blocks", _stack(blocks, "block", (), "double_block"), _patch(net, 2))


def of_network(net):
    """The Geometry of a network of the host; family "unknown" with no layers where its structure is not recognised."""
    if hasattr(net, "input_blocks") and hasattr(net, "output_blocks"):
        return _unet(net)
    if hasattr(net, "double_blocks") and hasattr(net, "single_blocks"):
        return _two_streams(net)
    if hasattr(net, "double_blocks") and hasattr(net, "condition_embedder"):
        return Geometry("joy", _stack(net.double_blocks, "double", ("joint",), "double_block"), _patch(net, 2), text_first=False)
    if hasattr(net, "visual_transformer_blocks"):
        return Geometry("kandinsky", _stack(net.visual_transformer_blocks, "block", ("self", "cross"), None), _patch(net, 2), prelude=("text",) * len(net.text_transformer_blocks))
    if hasattr(net, "joint_blocks"):
        return Geometry("sd3", _stack(net.joint_blocks, "double", ("joint",), "double_block"), _patch(net, 2))
    if hasattr(net, "double_stream_blocks") and hasattr(net, "single_stream_blocks"):
        layers = _stack(net.double_stream_blocks, "double", ("joint",), None) + _stack(net.single_stream_blocks, "single", ("joint",), None)
        return Geometry("hidream", layers, _patch(net, 2), text_first=False)
    if hasattr(net, "double_layers") and hasattr(net, "single_layers"):
        layers = _stack(net.double_layers, "double", ("joint",), "double_block") + _stack(net.single_layers, "single", ("joint",), "single_block")
        return Geometry("aura", layers, _patch(net, 2))
    if hasattr(net, "layers") and hasattr(net, "context_refiner"):
        return _lumina(net)
    if len(getattr(net, "layers", ())) and (hasattr(net, "llm_cond_proj") or hasattr(net, "text_proj")):
        return _single_stream(net)
    if len(getattr(net, "transformer_blocks", ())):
        return _transformer_blocks(net)
    if len(getattr(net, "blocks", ())):
        return _blocks(net)
    return Geometry("unknown", ())


def pairs_only(net):
    """Whether a network takes every batch for its negative and its positive half (SeedVR2), so that further predictions need calls of their own."""
    return hasattr(net, "_swap_pos_neg_halves")


def output_levels(net):
    """{output block: number of its resolution, 0 the smallest} of a U-Net, {} of other networks."""
    found, level = {}, 0
    for i, block in enumerate(getattr(net, "output_blocks", ())):
        found[i] = level
        level += any(type(module).__name__ == "Upsample" for module in block)
    return found


def of_model(patcher):
    """The Geometry of a MODEL."""
    return of_network(diffusion_model(patcher))


def checkpoint_modules(net):
    """The modules whose activations a checkpointed gradient recomputes."""
    if hasattr(net, "input_blocks") and hasattr(net, "output_blocks"):
        sequences = [*net.input_blocks, *([net.middle_block] if net.middle_block is not None else []), *net.output_blocks]
        return [m for s in sequences for m in s if any(True for _ in m.parameters(recurse=True))]
    found = []
    for name in ("double_blocks", "single_blocks", "joint_blocks", "transformer_blocks", "double_layers", "single_layers",
                 "double_stream_blocks", "single_stream_blocks", "visual_transformer_blocks", "layers", "blocks"):
        blocks = getattr(net, name, None)
        if blocks is not None:
            found += list(blocks.values() if hasattr(blocks, "values") else blocks)
    return found


_STACKS = {"double": ("double_blocks", "joint_blocks", "double_layers", "double_stream_blocks", "transformer_blocks"),
           "single": ("single_blocks", "single_layers", "single_stream_blocks"), "layer": ("layers",), "block": ("transformer_blocks", "visual_transformer_blocks", "blocks")}


def block_modules(net, layer):
    """{part: module} of a layer: "space" its transformer block, "time" the block over the frames behind it, where there is one (SVD)."""
    if layer.stage in ("input", "middle", "output") and hasattr(net, "input_blocks"):
        sequence = net.middle_block if layer.stage == "middle" else getattr(net, f"{layer.stage}_blocks")[layer.index]
        holder = next(module for module in sequence if getattr(module, "transformer_blocks", None) is not None)
        found = {"space": holder.transformer_blocks[layer.depth or 0]}
        if hasattr(holder, "time_stack"):
            found["time"] = holder.time_stack[layer.depth or 0]
        return found
    for name in _STACKS[layer.stage]:
        blocks = getattr(net, name, None)
        if blocks is not None and len(blocks) > layer.index:
            return {"space": list(blocks.values() if hasattr(blocks, "values") else blocks)[layer.index]}
    raise LookupError(f"{type(net).__name__} has no module for {layer}")
