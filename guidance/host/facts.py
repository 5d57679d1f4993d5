"""What methods may ask of a MODEL when they are attached to it."""
from __future__ import annotations

from .geometry import of_model, output_levels

# side of the square, in pixels, that the host's models of a class were trained at; subclasses count as their base
TRAINED_AT = {"SDXL": 1024, "SDXLRefiner": 1024, "SD15": 512, "SD20": 512, "SD3": 1024, "AuraFlow": 1024, "Flux": 1024, "Chroma": 1024, "Lumina2": 1024,
              "HiDream": 1024, "QwenImage": 1328, "HunyuanImage21": 2048}
# pixels per latent cell on hosts whose latent formats do not say it
CELLS = {"LTXV": 32, "LTXAV": 32, "HunyuanImage21": 32, "HunyuanVideo15": 16, "Wan22": 16, "Flux2": 16, "ChromaRadiance": 1, "SC_Prior": 42, "SC_B": 4}


class Facts:
    """Facts of a MODEL, looked up when they are asked for."""

    def __init__(self, patcher):
        self.patcher = patcher

    @property
    def network(self):
        """The name of the network's class."""
        return type(self.patcher.model.diffusion_model).__name__

    @property
    def geometry(self):
        """guidance.layers.Geometry."""
        return of_model(self.patcher)

    @property
    def pipeline(self):
        """The methods that are on the MODEL already (guidance.engine.Pipeline)."""
        from .attach import pipeline_of
        return pipeline_of(self.patcher)

    @property
    def attention_widths(self):
        """{layer's name: (width of its tokens, width of its text)} of a U-Net, {} of others."""
        from .joint_streams import attention_widths
        return attention_widths(self.patcher.model.diffusion_model, self.geometry)

    @property
    def module_shapes(self):
        """lookup(diffusers' name of a module) -> its shape, of a U-Net of pictures; None for other networks (guidance.host.modules.shapes)."""
        from .modules import shapes
        return shapes(self.patcher.model.diffusion_model, self.geometry)

    def heads(self, width):
        """The number of heads of a U-Net's attention of a width."""
        from .modules import heads
        return heads(self.patcher.model.diffusion_model, width)

    @property
    def levels(self):
        """{output block: number of its resolution, 0 the smallest} of a U-Net, {} of other networks."""
        return output_levels(self.patcher.model.diffusion_model)

    def decoder(self, vae):
        """decode(denoised) -> pictures [n, 3, height, width] in about [0, 1]."""
        from .decode import Decoder
        return Decoder(vae, self.patcher.get_model_object("latent_format"))

    def rough(self, node):
        """The latent format's linear map to colours (guidance.host.decode.RoughPicture); BadInput that names `node` where it has none."""
        from .decode import RoughPicture
        return RoughPicture(self.patcher.get_model_object("latent_format"), node)

    @property
    def inward(self):
        """Brings the graph's latents into the model's space."""
        return self.patcher.get_model_object("latent_format").process_in

    @property
    def channels(self):
        """Channels of the latent, None where an old host's format does not say it."""
        return getattr(self.patcher.get_model_object("latent_format"), "latent_channels", None)

    @property
    def hidden_size(self):
        """Width of a DiT's tokens, None where the network does not say it."""
        return getattr(self.patcher.model.diffusion_model, "hidden_size", None)

    @property
    def dimensions(self):
        """Axes of the latent behind its channels: 1 for sound and shapes, 2 for pictures, 3 for videos."""
        return getattr(getattr(self.patcher.model, "latent_format", None), "latent_dimensions", 2)

    @property
    def cell(self):
        """Side of a latent cell in pixels."""
        latent = getattr(self.patcher.model, "latent_format", None)
        known = getattr(latent, "spacial_downscale_ratio", None)
        return known or next((CELLS[c.__name__] for c in type(latent).__mro__ if c.__name__ in CELLS), 8)

    @property
    def trained_at(self):
        """Side in pixels of the square that the model was trained at, None where it is not known."""
        config = getattr(self.patcher.model, "model_config", None)
        own = getattr(config, "trained_at", None)
        if own is not None:
            return own
        if type(config).__name__ == "SD20" and "V_PREDICTION" in str(getattr(self.patcher.model, "model_type", "")):
            return 768
        return next((TRAINED_AT[c.__name__] for c in type(config).__mro__ if c.__name__ in TRAINED_AT), None)

    @property
    def model_channels(self):
        """Channels of a U-Net's first level, None for other networks."""
        return getattr(self.patcher.model.diffusion_model, "model_channels", None)
