"""Small networks of the host with random weights, as MODELs."""
import torch


def _config(host_format, unet_config, sampling):
    import comfy.latent_formats
    import comfy.supported_models_base

    class Config(comfy.supported_models_base.BASE):
        latent_format = host_format
        memory_usage_factor = 0.1
        sampling_settings = sampling

    config = Config({**unet_config})
    config.unet_config = {**unet_config, "disable_unet_model_creation": True}
    config.set_inference_dtype(torch.float32, None) if hasattr(config, "set_inference_dtype") else None
    config.manual_cast_dtype = None
    return config


def _fill(network, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim >= 2:
                p.copy_(torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
            else:
                p.copy_(torch.ones_like(p) if name.endswith(("norm.weight", "scale")) or ("norm" in name and name.endswith("weight")) else torch.randn(p.shape, generator=generator) * 0.02)
    network.eval()


def _patcher(model):
    import comfy.model_patcher
    cls = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    device = torch.device("cpu")
    return cls(model, load_device=device, offload_device=device)


def unet(seed=0, channels=32, dtype=torch.float32):
    """A U-Net with attention on both levels, eps prediction; 4 latent channels, context width 16."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    config = _config(comfy.latent_formats.SD15, {}, {})
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS)
    model.diffusion_model = UNetModel(image_size=8, in_channels=4, model_channels=channels, out_channels=4, num_res_blocks=1, channel_mult=(1, 2),
                                      num_heads=2, use_spatial_transformer=True, transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1],
                                      transformer_depth_middle=2, context_dim=16, use_linear_in_transformer=True, legacy=False,
                                      dtype=torch.float32, operations=comfy.ops.manual_cast)
    _fill(model.diffusion_model, seed)
    model.diffusion_model.to(dtype)
    model.diffusion_model.dtype = dtype
    return _patcher(model)


def flux(seed=0):
    """A Flux-type DiT with two double and two single blocks; 4 latent channels, context width 16."""
    import inspect

    import comfy.latent_formats
    import comfy.model_base
    import comfy.ops
    from comfy.ldm.flux import model as flux_model
    config = _config(comfy.latent_formats.SD15, {"guidance_embed": False}, {"shift": 1.0})
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.FLUX)
    shape = dict(in_channels=4, out_channels=4, vec_in_dim=16, context_in_dim=16, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=2,
                 axes_dim=[4, 6, 6], theta=1000, patch_size=2, qkv_bias=True, guidance_embed=False, txt_ids_dims=[])
    known = inspect.signature(flux_model.FluxParams).parameters
    model.diffusion_model = flux_model.Flux(**{k: v for k, v in shape.items() if k in known}, dtype=torch.float32, operations=comfy.ops.manual_cast)
    _fill(model.diffusion_model, seed)
    model.extra_conds = _flux_conds(model)
    return _patcher(model)


def _flux_conds(model):
    import comfy.conds

    def extra_conds(**kwargs):
        out = {}
        if kwargs.get("cross_attn") is not None:
            out["c_crossattn"] = comfy.conds.CONDRegular(kwargs["cross_attn"])
        pooled = kwargs.get("pooled_output")
        out["y"] = comfy.conds.CONDRegular(pooled if pooled is not None else torch.zeros(1, 16))
        return out
    return extra_conds


def prompt(seed, tokens=6, width=16):
    """A random conditioning of the graph: [[tokens, {"pooled_output"}]]."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, tokens, width, generator=generator), {"pooled_output": torch.randn(1, width, generator=generator)}]]


def sample(patcher, positive, negative, cfg=4.0, steps=4, sampler="euler", scheduler="normal", batch=1, size=8, seed=0, noise=None, latent=None, denoise_mask=None, channels=4):
    """Latents [batch, channels, size, size] of a KSampler run."""
    import comfy.sample
    latent = torch.zeros(batch, channels, size, size) if latent is None else latent
    if noise is None:
        noise = torch.cat([torch.randn(1, *latent.shape[1:], generator=torch.Generator().manual_seed(seed + i)) for i in range(latent.shape[0])])
    return comfy.sample.sample(patcher, noise, steps, cfg, sampler, scheduler, positive, negative, latent, disable_pbar=True, seed=seed, noise_mask=denoise_mask)
