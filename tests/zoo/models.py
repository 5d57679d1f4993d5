"""A MODEL of any specimen, which the host itself samples: its latent format, its way of noising, and the conditionings that its forward wants."""
import contextlib
import logging

import torch

from ..tiny import _config, _patcher

STEPS = 2


def _format(shape):
    import comfy.latent_formats

    class Plain(comfy.latent_formats.LatentFormat):
        latent_channels, latent_dimensions = shape[0], len(shape) - 1

    return Plain


def _conds(specimen):
    import comfy.conds

    def wrapped(value):
        return (comfy.conds.CONDRegular if isinstance(value, torch.Tensor) else comfy.conds.CONDConstant)(value)

    def extra_conds(**kwargs):
        tokens = kwargs["cross_attn"]
        found = specimen.text(tokens) if specimen.text is not None else {"c_crossattn": tokens}
        found = {**found, **specimen.extra(1, tokens.shape[1])}
        if specimen.sized is not None:
            high, wide = (kwargs.get("area") or kwargs["noise"].shape[-2:])[:2]      # of the part that the prompt is for
            found.update(specimen.sized(tokens, kwargs["noise"][..., :high, :wide]))
        if specimen.streams:
            found["latent_shapes"] = kwargs.get("latent_shapes")
        return {k: wrapped(v) for k, v in found.items() if v is not None}
    return extra_conds


def model_of(specimen):
    """The specimen as a ModelPatcher: flow matching for transformers, eps prediction where the specimen says so."""
    import comfy.model_base
    kinds = comfy.model_base.ModelType
    config = _config(_format(specimen.shape), {}, {"shift": 1.0} if specimen.flow else {})
    model = comfy.model_base.BaseModel(config, kinds.FLOW if specimen.flow else kinds.EPS)
    model.diffusion_model = specimen.net
    if not hasattr(specimen.net, "dtype"):
        specimen.net.dtype = torch.float32
    model.extra_conds = _conds(specimen)
    return _patcher(model)


def tokens_of(specimen, seed, tokens=None):
    """A random CONDITIONING of the specimen's width."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens or specimen.tokens, specimen.width, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, 16, generator=generator)}]]


def latent_of(specimen, seed):
    """A LATENT of normally distributed values, of several streams where the specimen has them."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(specimen.rows, *shape, generator=generator) for shape in (specimen.shape, *specimen.streams)]
    if len(parts) == 1:
        return {"samples": parts[0]}
    from comfy.nested_tensor import NestedTensor
    return {"samples": NestedTensor(parts)}


@contextlib.contextmanager
def quiet():
    """The host says much about every model that it loads."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)


def sample(specimen, patcher, positive=None, latent=None, seed=0, negative=None):
    """The latents of a KSampler run of two steps at scale 4; those of all streams one after the other, flat."""
    import comfy.sample
    noise = latent_of(specimen, seed)["samples"]
    if latent is not None:      # a node's own latent: pairs of pictures with the same noise
        noise = noise[:1].expand_as(latent["samples"]).contiguous()
    with torch.inference_mode(), quiet():
        out = comfy.sample.sample(patcher, noise, STEPS, 4.0, "euler", "simple", tokens_of(specimen, 1) if positive is None else positive, tokens_of(specimen, 2) if negative is None else negative, noise * 0,
                                  disable_pbar=True, seed=seed)
    return torch.cat([t.flatten() for t in out.unbind()]) if specimen.streams else out
