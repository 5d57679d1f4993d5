"""The layers of the host's networks, told by their structure (never by their exact class)."""
from ..layers import Geometry, Layer


def diffusion_model(patcher):
    """The network inside a MODEL."""
    return patcher.model.diffusion_model


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
                layers.append(Layer(stage, index, depth if len(blocks) > 1 else None, tuple(kinds), (stage, index, depth)))

    for i, block in enumerate(net.input_blocks):
        scan("input", i, block)
    scan("middle", 0, net.middle_block or ())
    for i, block in enumerate(net.output_blocks):
        scan("output", i, block)
    return Geometry("unet", tuple(layers))


def _stack(blocks, stage, attentions, key):
    return tuple(Layer(stage, i, None, attentions, (key, i)) for i in range(len(blocks)))


def _patch(net, default):
    size = getattr(net, "patch_size", default)
    if isinstance(size, int):
        return (1, size, size)
    size = tuple(size)
    return size if len(size) == 3 else (1, *size)


def _name(net):
    return type(net).__module__.lower() + "." + type(net).__name__.lower()


def of_network(net):
    """The Geometry of a network of the host; family "unknown" with no layers where its structure is not recognised."""
    if hasattr(net, "input_blocks") and hasattr(net, "output_blocks"):
        return _unet(net)
    if hasattr(net, "double_blocks") and hasattr(net, "single_blocks"):
        layers = _stack(net.double_blocks, "double", ("joint",), "double_block") + _stack(net.single_blocks, "single", ("joint",), "single_block")
        hunyuan = "hunyuan" in _name(net)
        return Geometry("hunyuan" if hunyuan else "flux", layers, _patch(net, 2), text_first=not hunyuan)
    if hasattr(net, "joint_blocks"):
        return Geometry("sd3", _stack(net.joint_blocks, "double", ("joint",), "double_block"), _patch(net, 2))
    if hasattr(net, "transformer_blocks"):
        first = net.transformer_blocks[0]
        if hasattr(first, "attn1") and hasattr(first, "attn2"):
            return Geometry("ltx", _stack(net.transformer_blocks, "block", ("self", "cross"), "double_block"), _patch(net, 1))
        return Geometry("qwen", _stack(net.transformer_blocks, "double", ("joint",), "double_block"), _patch(net, 2))
    if hasattr(net, "double_layers") and hasattr(net, "single_layers"):
        layers = _stack(net.double_layers, "double", ("joint",), "double_block") + _stack(net.single_layers, "single", ("joint",), "single_block")
        return Geometry("aura", layers, _patch(net, 2))
    if hasattr(net, "layers") and hasattr(net, "noise_refiner"):
        return Geometry("lumina", _stack(net.layers, "layer", ("joint",), None), _patch(net, 2))
    if hasattr(net, "blocks") and len(net.blocks):
        first = net.blocks[0] if not hasattr(net.blocks, "values") else next(iter(net.blocks.values()))
        if hasattr(first, "self_attn") and hasattr(first, "cross_attn"):
            key = "double_block" if "wan" in _name(net) else None
            return Geometry("wan" if key else "cosmos", _stack(net.blocks, "block", ("self", "cross"), key), _patch(net, 2))
        return Geometry("blocks", _stack(net.blocks, "block", ("self",), "double_block"), _patch(net, 2))
    return Geometry("unknown", ())


def of_model(patcher):
    """The Geometry of a MODEL."""
    return of_network(diffusion_model(patcher))


def checkpoint_modules(net):
    """The modules whose activations a checkpointed gradient recomputes."""
    if hasattr(net, "input_blocks") and hasattr(net, "output_blocks"):
        sequences = [*net.input_blocks, *([net.middle_block] if net.middle_block is not None else []), *net.output_blocks]
        return [m for s in sequences for m in s if any(True for _ in m.parameters(recurse=True))]
    found = []
    for name in ("double_blocks", "single_blocks", "joint_blocks", "transformer_blocks", "double_layers", "single_layers", "layers", "blocks"):
        blocks = getattr(net, name, None)
        if blocks is not None:
            found += list(blocks.values() if hasattr(blocks, "values") else blocks)
    return found
