"""The bundled models as the host's own objects: MODEL, CLIP and VAE, behaving like any others in ComfyUI.

    model, clip, vae = load_demo_model("unet")     # eps prediction, the host's UNetModel
    model, clip, vae = load_demo_model("dit")      # flow matching, the host's Flux
    model, clip, vae = load_demo_model("video")    # the U-Net with layers over the frames, which are the batch (like SVD)
    model, clip, vae = load_demo_model("degrading")     # the U-Net with a clean picture's latent beside the noisy one (like InstructPix2Pix)

Latents are [batch, 16, h, w]; one 64 px scene is 16 x 16 of them and leaves the VAE as a 128 px picture, so that the
host's factor of 8 between latents and pictures holds. Needs ComfyUI's `comfy` on the path. Keeps nothing between calls.
"""
import importlib.util
import os

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.supported_models_base
import torch

from . import degrading, networks
from .latents import CHANNELS, PATCH
from .loader_clip import make_clip
from .loader_vae import make_vae
from .weights_file import FOLDER, read

KINDS = ("unet", "dit", "video", "degrading")
FLOW_NEEDS = "0.3.64"


class DemoLatents(comfy.latent_formats.LatentFormat):
    """Latents as the autoencoder makes them, unscaled; previews are its exact block averages."""

    scale_factor = 1.0
    latent_channels = CHANNELS

    def __init__(self, code):
        super().__init__()
        basis = code["basis"].view(CHANNELS, 3, PATCH * PATCH).mean(-1) / code["scale"]
        self.latent_rgb_factors = basis.tolist()
        self.latent_rgb_factors_bias = code["mean"].view(3, PATCH * PATCH).mean(-1).tolist()


class _Config(comfy.supported_models_base.BASE):
    """What the host asks of a model's configuration."""

    unet_extra_config = {}
    latent_format = comfy.latent_formats.LatentFormat
    supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]
    memory_usage_factor = 1.0
    scaled_fp8 = None
    trained_at = 128     # pixels; for nodes that ask for the size of the training

    def __init__(self, unet_config, settings, code):
        super().__init__(unet_config)
        self.sampling_settings = dict(settings)
        self.latent_format = DemoLatents(code)

    def inpaint_model(self):
        return False


def _unet(code):
    config = dict(networks.UNET, num_res_blocks=[networks.UNET["num_res_blocks"]] * len(networks.UNET["channel_mult"]),
                  transformer_depth=list(networks.UNET_DEPTH_IN), transformer_depth_output=list(networks.UNET_DEPTH_OUT))
    settings = {"beta_schedule": "linear", "linear_start": 0.00085, "linear_end": 0.012}
    return _Config(config, settings, code), comfy.model_base.BaseModel, comfy.model_base.ModelType.EPS, networks.unet


class DemoVideo(comfy.model_base.BaseModel):
    """The batch is one video, frame after frame."""

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        out["num_video_frames"] = comfy.conds.CONDConstant(kwargs["noise"].shape[0])
        return out


def _video(code):
    config, _, kind, _ = _unet(code)
    shape = {k: v for k, v in config.unet_config.items() if k != "use_linear_in_transformer"}
    return _Config({**networks.VIDEO, **shape}, config.sampling_settings, code), DemoVideo, kind, networks.video


class DemoDegrading(comfy.model_base.IP2P, comfy.model_base.BaseModel):
    """A clean picture's latent ("concat_latent_image" of the prompt) goes into the network beside the noisy one."""

    def process_ip2p_image_in(self, image):
        return image


def _degrading(code):
    config, _, kind, _ = _unet(code)
    return _Config({**config.unet_config, "in_channels": 2 * CHANNELS}, config.sampling_settings, code), DemoDegrading, kind, degrading.wide


def _dit(code):
    if importlib.util.find_spec("comfy.ldm.flux") is None or not hasattr(comfy.model_base, "Flux"):
        raise RuntimeError(f'This ComfyUI is too old for the flow model "dit": it has no Flux network. It needs ComfyUI {FLOW_NEEDS} or newer; '
                           'choose "unet", which runs here.')
    # exp(shift) = 1: the network sees t = sigma
    return _Config(dict(networks.DIT), {"shift": 0.0}, code), comfy.model_base.Flux, comfy.model_base.ModelType.FLUX, networks.dit


def _named_as(wanted, weights):
    """The weights under the names of this host: the scale of an RMS norm is `scale` in some versions and `weight` in others."""
    twin = {"scale": "weight", "weight": "scale"}
    out = {}
    for name, value in weights.items():
        stem, _, last = name.rpartition(".")
        other = f"{stem}.{twin.get(last, last)}"
        out[other if name not in wanted and other in wanted else name] = value
    return out


def _storage_dtype(weights):
    """The dtype the host would choose for a model of this size."""
    count = sum(v.numel() for v in weights.values())
    return management.unet_dtype(model_params=count, supported_dtypes=_Config.supported_inference_dtypes)


def load_demo_patcher(kind, dtype=None, folder=FOLDER, disable_dynamic=False):
    """The ModelPatcher of one generator; see load_demo_model. `disable_dynamic` keeps all weights resident (hosts ask for it)."""
    if kind not in KINDS:
        raise ValueError(f"unknown demo model {kind!r}; there are: {', '.join(KINDS)}")
    code = read("latents", folder)
    config, base, model_type, build = {"unet": _unet, "dit": _dit, "video": _video, "degrading": _degrading}[kind](code)
    weights = read(degrading.NAME if kind == "degrading" else kind, folder)
    if kind == "video":      # its file holds what is added to the U-Net
        weights = {**networks.of_frames(read("unet", folder)), **weights}
    elif kind == "degrading":
        weights = degrading.whole(weights)
    device, offload = management.get_torch_device(), management.unet_offload_device()
    dtype = dtype or _storage_dtype(weights)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))

    def network(*, operations, device=None, **_):
        return build(operations, dtype=dtype, device=device)
    model = base(config, model_type=model_type, device=offload, unet_model=network)
    make = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        make = getattr(comfy.model_patcher, "CoreModelPatcher", make)
    patcher = make(model, load_device=device, offload_device=offload)
    own = model.diffusion_model.state_dict()
    weights = _named_as(own, {k: v.to(dtype) for k, v in weights.items()})
    wrong = [k for k in own if k not in weights or own[k].shape != weights[k].shape] + [k for k in weights if k not in own]
    if wrong:
        path = os.path.join(folder, kind + ".safetensors")
        raise ValueError(f"{path} does not hold the weights of the demo model {kind!r}: {len(wrong)} tensors are missing, of another shape or "
                         f"unknown ({', '.join(wrong[:3])}). Restore the file from the repository.")
    dynamic = bool(getattr(patcher, "is_dynamic", bool)())
    model.diffusion_model.load_state_dict(weights, strict=True, **({"assign": True} if dynamic else {}))
    model.diffusion_model.eval()
    patcher.cached_patcher_init = (load_demo_patcher, (kind, dtype, folder))
    return patcher


def load_demo_model(kind, dtype=None, folder=FOLDER):
    """(ModelPatcher, CLIP, VAE) of one bundled generator, in well under a second.

    kind: "unet" (eps prediction, 1000 steps of Stable Diffusion's schedule), "dit" (flow matching, t = sigma in 0..1) "video" (eps prediction; the batch is one video's frames)
    or "degrading" (eps prediction; degraded pictures of a clean one, which the prompts carry: Degradation Synthesis).
    dtype: in which the network's weights are kept; None lets the host choose. folder: where the weight files are.
    Raises ValueError for an unknown kind or a damaged file, FileNotFoundError for a missing one (both name it), and
    RuntimeError where this host has no network for the kind."""
    model = load_demo_patcher(kind, dtype, folder)
    return model, make_clip(folder), make_vae(folder)
