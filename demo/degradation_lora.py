"""The bundled degradation-guided LoRA (S3Diff) for the bundled U-Net, and the bundled estimator of degradation."""
import torch

from ..guidance.attention.module_edits import diffusers_names, host_name

NAME, ESTIMATOR = "degradation_lora", "degradation_estimator"
RANK = 8
BANDS, HIDDEN, BLOCK = 16, 64, 16
CHANNELS = (8, 16)      # of the estimator, before and behind the halving
LAYERS = ("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out", "proj_in", "proj_out", "ff.net.2", "ff.net.0.proj")      # the authors'


def targets(network):
    """{diffusers' name: module} of the layers that have a LoRA."""
    modules, found = dict(network.named_modules()), {}
    for block in diffusers_names(network):
        inner = {"": block} | {f".{n}": f"{block}.{n}" for n in ("conv1", "conv2", "conv_shortcut", "proj_in", "proj_out")}
        path = host_name(diffusers_names(network), block)
        for name in modules:
            if name.startswith(f"{path}.transformer_blocks."):
                inner[name] = block + name[len(path):]
        for name in inner.values():
            module = modules.get(host_name(diffusers_names(network), name))
            if module is not None and hasattr(module, "weight") and module.weight.ndim in (2, 4) and any(name == e or name.endswith("." + e) for e in LAYERS):
                found[name] = module
    return found


def fresh(network, rank=RANK, seed=0):
    """Weights before training {key: tensor} in the authors' layout: B is zero, the middle matrices are the identity."""
    g, w = torch.Generator().manual_seed(seed), {}
    for name, module in targets(network).items():
        out, given, *kernel = module.weight.shape
        w[f"state_dict_unet.{name}.lora_A.default.weight"] = torch.randn(rank, given, *kernel, generator=g) / (given * (kernel[0] * kernel[1] if kernel else 1)) ** 0.5
        w[f"state_dict_unet.{name}.lora_B.default.weight"] = torch.zeros(out, rank, *([1, 1] if kernel else []))
    levels = sum(n.startswith("up_blocks") and ".resnets.0" in n for n in diffusers_names(network))
    w["w"] = torch.randn(BANDS, generator=g)
    w["state_embeddings.state_dict_unet_block.weight"] = torch.randn(2 * levels + 2, BLOCK, generator=g)
    for name, given, out in (("de_mlp.0", 4 * BANDS, HIDDEN), ("block_mlp.0", BLOCK, BLOCK), ("fuse_mlp", HIDDEN + BLOCK, rank * rank)):
        small = 0.1 if name == "fuse_mlp" else 1.0
        w[f"state_dict_unet_{name}.weight"] = torch.randn(out, given, generator=g) * small / given ** 0.5
        w[f"state_dict_unet_{name}.bias"] = torch.eye(rank).flatten() if name == "fuse_mlp" else torch.zeros(out)
    return w


def fresh_estimator(seed=0):
    """Weights of an untrained estimator {key: tensor}: a block, a halving, a block for each kind of degradation."""
    g, w, (c, d) = torch.Generator().manual_seed(seed), {}, CHANNELS
    for i in range(2):
        made = {f"conv_first.{i}": (c, 3, 3, 3), f"body.{i}.0.conv1": (c, c, 3, 3), f"body.{i}.0.conv2": (c, c, 3, 3), f"body.{i}.1": (d, c, 3, 3), f"body.{i}.2.conv1": (d, d, 3, 3),
                f"body.{i}.2.conv2": (d, d, 3, 3), f"fc_degree.{i}.0": (32, d), f"fc_degree.{i}.2": (1, 32)}
        for name, shape in made.items():
            w[f"{name}.weight"] = torch.randn(*shape, generator=g) * (2 / torch.Size(shape[1:]).numel()) ** 0.5 * (0.3 if name.endswith("conv2") else 1.0)
            w[f"{name}.bias"] = torch.zeros(shape[0])
    return w
