"""What the host tests of our samplers share: small networks, prompts, nodes by their id, and a run of a SAMPLER."""
import pytest
import torch

from . import tiny


class SamplerLab:
    """Made inside a real ComfyUI. models: a U-Net, and a Flux where the host has it."""

    def __init__(self):
        import comfy.samplers

        from .. import nodes
        from ..guidance.host import features
        self.modern, self.samplers, self.definitions = features.wrappers(), comfy.samplers, nodes.definitions()
        with torch.inference_mode():
            self.models = {"unet": tiny.unet()} | ({"flux": tiny.flux()} if self.modern else {})
            self.positive, self.negative = tiny.prompt(1), tiny.prompt(2)

    def node(self, node_id, **given):
        """The outputs of a node, with its own defaults for what is not given."""
        d = self.definitions[node_id]
        return d.call({**{i.name: i.default for i in d.inputs if i.widget or i.optional}, **given})[0]

    def sample(self, sampler, kind="unet", batch=1, model=None, first=0, mask=None, latent=None, steps=3):
        if kind not in self.models:
            pytest.skip("this host has no Flux")
        model = model or self.models[kind]
        guider = self.samplers.CFGGuider(model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(3.0)
        sigmas = self.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
        noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(first + i)) for i in range(batch)])
        latent = torch.zeros_like(noise) if latent is None else latent
        with torch.inference_mode():
            return guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=0)
