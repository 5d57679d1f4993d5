"""Networks of the size of SD1.5 and SDXL with random weights: what they draw is noise, what they cost is real."""
from __future__ import annotations

import torch

from . import host

SD15 = dict(image_size=32, in_channels=4, model_channels=320, out_channels=4, num_res_blocks=[2, 2, 2, 2], channel_mult=(1, 2, 4, 4), num_heads=8,
            use_spatial_transformer=True, context_dim=768, transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_middle=1,
            transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], use_linear_in_transformer=False, legacy=False)
SDXL = dict(image_size=32, in_channels=4, model_channels=320, out_channels=4, num_res_blocks=[2, 2, 2], channel_mult=(1, 2, 4), num_head_channels=64,
            use_spatial_transformer=True, context_dim=2048, transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10,
            transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], use_linear_in_transformer=True, legacy=False)


def _patcher(shape):
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.ops
    import comfy.supported_models_base
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    class Config(comfy.supported_models_base.BASE):
        latent_format = comfy.latent_formats.SD15
        memory_usage_factor = 1.0
        sampling_settings = {}

    dtype = torch.float16 if host.on_gpu() else torch.float32
    config = Config({"disable_unet_model_creation": True})
    config.set_inference_dtype(dtype, None)
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS)
    network = UNetModel(**{k: list(v) if isinstance(v, list) else v for k, v in shape.items()}, dtype=dtype, operations=comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5 if p.ndim > 1 else torch.zeros(p.shape))
        for name, p in network.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.fill_(1.0)
    model.diffusion_model = network.eval().requires_grad_(False)
    make = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    import comfy.model_management as management
    return make(model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device())


def _prompt(width):
    def prompt(seed):
        return [[torch.randn(1, 77, width, generator=torch.Generator().manual_seed(seed)), {}]]
    return prompt


def sd15():
    """(MODEL, prompt(seed), latent shape); on the CPU with latents of 32 x 32, on a GPU of 64 x 64."""
    side = 64 if host.on_gpu() else 32
    return _patcher(SD15), _prompt(768), (4, side, side)


def sdxl():
    """(MODEL, prompt(seed), latent shape) at 128 x 128; the network's size and pooled-text conditioning are left out."""
    return _patcher(SDXL), _prompt(2048), (4, 128, 128)
