"""Tiny random networks of the host's own classes, one per family, and one call of the engine around them without a sampler."""
from __future__ import annotations

import inspect
import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Callable

import torch

from .tiny import _fill

SIGMA = 0.5


@dataclass
class Specimen:
    """A network, the shape of its latent (channels, [frames,] height, width), its text, and what its forward wants besides."""

    net: Any
    shape: tuple
    stages: dict
    width: int = 16
    tokens: int = 6
    kinds: tuple = ("joint",)
    extra: Callable = field(default=lambda rows, tokens: {})
    takes_control: bool = True
    flow: bool = True                  # else eps prediction
    rows: int = 1                      # rows of the smallest batch (the frames of a video U-Net)
    streams: tuple = ()                # the shapes of further streams of a packed latent (sound beside a video)
    text: Callable | None = None       # the arguments that hold the text, of its tokens; None: it is `context`
    sized: Callable | None = None      # further arguments, of the text's tokens and the latent, where they depend on its size

    def names(self):
        return [f"{stage}.{i}" for stage, count in self.stages.items() for i in range(count)]

    def forward(self, x, t, c_concat, context, control, options, **kwargs):
        control = {"control": control} if self.takes_control else {}
        return self.net(x, t, context=context, transformer_options=dict(options), **control, **kwargs)


def _operations():
    import comfy.ops
    return dict(dtype=torch.float32, operations=comfy.ops.manual_cast)


def _known(cls, values):
    """Those of the values that this host's dataclass or function knows."""
    names = inspect.signature(cls).parameters
    return {k: v for k, v in values.items() if k in names}


def _finish(net, *args, **kwargs):
    _fill(net, 0)
    return Specimen(net, *args, **kwargs)


def _pooled(rows, tokens):
    return {"y": torch.full((rows, 16), 0.1)}


_FLUX = dict(in_channels=4, out_channels=4, vec_in_dim=16, context_in_dim=16, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=3, depth_single_blocks=2,
             axes_dim=[4, 6, 6], theta=1000, patch_size=2, qkv_bias=True, guidance_embed=False, txt_ids_dims=[])


def flux():
    from comfy.ldm.flux import model
    net = model.Flux(**_known(model.FluxParams, _FLUX), **_operations())
    return _finish(net, (4, 7, 6), {"double": 3, "single": 2}, extra=_pooled)


def chroma():
    from comfy.ldm.chroma import model
    values = {**_FLUX, "in_dim": 64, "out_dim": 32, "hidden_dim": 16, "n_layers": 1, "in_channels": 16, "vec_in_dim": None}
    net = model.Chroma(**_known(model.ChromaParams, values), **_operations())
    return _finish(net, (4, 7, 6), {"double": 3, "single": 2}, extra=lambda rows, tokens: {"guidance": torch.zeros(rows)})


def sd3(second=False):
    from comfy.ldm.modules.diffusionmodules import mmdit
    net = mmdit.OpenAISignatureMMDITWrapper(input_size=None, patch_size=2, in_channels=4, depth=1, num_blocks=3, adm_in_channels=16, pos_embed_max_size=8, num_patches=64,
                                            qk_norm="rms", x_block_self_attn_layers=[0] if second else [],
                                            context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 16, "out_features": 64}}, **_operations())
    net.pos_embed.normal_(generator=torch.Generator().manual_seed(1))
    return _finish(net, (4, 7, 6), {"double": 3}, extra=_pooled)


def sd35():
    return sd3(True)


def aura():
    from comfy.ldm.aura import mmdit
    net = mmdit.MMDiT(in_channels=4, out_channels=4, dim=32, n_layers=4, n_double_layers=2, n_heads=2, global_conddim=32, cond_seq_dim=16, max_seq=64, **_operations())
    return _finish(net, (4, 7, 6), {"double": 2, "single": 2})


def qwen():
    from comfy.ldm.qwen_image import model
    net = model.QwenImageTransformer2DModel(in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
                                            axes_dims_rope=(4, 6, 6), **_operations())
    return _finish(net, (4, 1, 7, 6), {"double": 3})


def lumina(multiple=None):
    from comfy.ldm.lumina import model
    known = inspect.signature(model.NextDiT).parameters
    if multiple and "pad_tokens_multiple" not in known:
        raise ImportError("this host's NextDiT has no padded variant (Z-Image)")
    padded = {"pad_tokens_multiple": multiple} if multiple else {}
    net = model.NextDiT(in_channels=4, dim=32, n_layers=3, n_refiner_layers=2, n_heads=2, n_kv_heads=1, multiple_of=8, qk_norm=True, cap_feat_dim=16,
                        axes_dims=(4, 6, 6), axes_lens=(64, 64, 64), **padded, **_operations())
    return _finish(net, (4, 7, 6), {"layer": 3}, extra=lambda rows, tokens: {"num_tokens": tokens})


def zimage():
    return lumina(8)


def hunyuan():
    from comfy.ldm.hunyuan_video import model
    values = {**_FLUX, "patch_size": [1, 2, 2], "byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}
    net = model.HunyuanVideo(**_known(model.HunyuanVideoParams, values), **_operations())
    return _finish(net, (4, 2, 6, 4), {"double": 3, "single": 2}, extra=_pooled)


def hidream():
    from comfy.ldm.hidream import model
    net = model.HiDreamImageTransformer2DModel(patch_size=2, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
                                               caption_channels=[16, 16], text_emb_dim=16, num_routed_experts=2, num_activated_experts=1, axes_dims_rope=(4, 6, 6),
                                               max_resolution=(16, 16), llama_layers=[0, 1, 2, 3], **_operations())
    extra = lambda rows, tokens: {**_pooled(rows, tokens), "encoder_hidden_states_llama3": torch.linspace(-1, 1, 5 * 16).reshape(1, 1, 5, 16).repeat(rows, 4, 1, 1)}
    return _finish(net, (4, 7, 6), {"double": 2, "single": 2}, extra=extra)


def wan(kind="t2v"):
    from comfy.ldm.wan import model
    net = model.WanModel(model_type=kind, in_dim=4, out_dim=4, dim=24, ffn_dim=32, freq_dim=16, text_dim=16, num_heads=2, num_layers=3, **_operations())
    picture = {"clip_fea": None} if kind == "t2v" else {}
    extra = (lambda rows, tokens: dict(picture)) if kind == "t2v" else (lambda rows, tokens: {"clip_fea": torch.linspace(-1, 1, 257 * 1280).reshape(1, 257, 1280).repeat(rows, 1, 1)})
    return _finish(net, (4, 3, 7, 6), {"block": 3}, kinds=("self", "cross"), extra=extra)


def wan_i2v():
    return wan("i2v")


def ltx():
    from comfy.ldm.lightricks import model
    net = model.LTXVModel(in_channels=4, cross_attention_dim=24, attention_head_dim=12, num_attention_heads=2, caption_channels=16, num_layers=3, **_operations())
    return _finish(net, (4, 3, 3, 5), {"block": 3}, kinds=("self", "cross"), extra=lambda rows, tokens: {"attention_mask": torch.ones(rows, tokens, dtype=torch.int64)})


def cosmos():
    from comfy.ldm.cosmos import predict2
    net = predict2.MiniTrainDIT(max_img_h=16, max_img_w=16, max_frames=8, in_channels=4, out_channels=4, patch_spatial=2, patch_temporal=1, concat_padding_mask=False,
                                model_channels=32, num_blocks=3, num_heads=2, crossattn_emb_channels=16, pos_emb_cls="rope3d", use_adaln_lora=True, adaln_lora_dim=8, **_operations())
    return _finish(net, (4, 2, 6, 6), {"block": 3}, kinds=("self", "cross"))


def cosmos1():
    from comfy.ldm.cosmos import model
    net = model.GeneralDIT(max_img_h=16, max_img_w=16, max_frames=8, in_channels=4, out_channels=4, patch_spatial=2, patch_temporal=1, concat_padding_mask=False,
                           model_channels=32, num_blocks=2, num_heads=2, crossattn_emb_channels=16, block_x_format="THWBD", pos_emb_cls="rope3d", use_adaln_lora=True,
                           adaln_lora_dim=8, affline_emb_norm=True, extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable", block_config="FA-CA-MLP", **_operations())
    return _finish(net, (4, 2, 6, 6), {"block": 2}, kinds=("self", "cross"))


def pixart():
    """A network whose attention is told nothing of the call."""
    from comfy.ldm.pixart import pixartms
    net = pixartms.PixArtMS(input_size=8, hidden_size=48, depth=2, num_heads=2, caption_channels=16, model_max_length=6, micro_condition=False, **_operations())
    return _finish(net, (4, 6, 6), {"block": 2}, kinds=(), takes_control=False)


def svd(frames=3):
    """A video U-Net: every spatial block is followed by one over the frames."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    net = UNetModel(image_size=8, in_channels=4, model_channels=32, out_channels=4, num_res_blocks=1, channel_mult=(1,), num_heads=2, num_head_channels=-1,
                    use_spatial_transformer=True, transformer_depth=[1], transformer_depth_output=[1, 1], transformer_depth_middle=1, context_dim=16, use_linear_in_transformer=True,
                    legacy=False, use_temporal_attention=True, use_temporal_resblock=True, extra_ff_mix_layer=True, use_spatial_context=True, merge_strategy="learned_with_images",
                    merge_factor=0.5, video_kernel_size=[3, 1, 1], **_operations())
    extra = lambda rows, tokens: {"num_video_frames": frames, "image_only_indicator": torch.zeros(rows // frames, frames)}
    return _finish(net, (4, 4, 4), {}, kinds=("self", "cross"), extra=extra, flow=False, rows=frames)


JOINT = {"flux": flux, "chroma": chroma, "sd3": sd3, "sd35": sd35, "aura": aura, "qwen": qwen, "lumina": lumina, "zimage": zimage, "hunyuan": hunyuan, "hidream": hidream}
CROSS = {"wan": wan, "wan_i2v": wan_i2v, "ltx": ltx, "cosmos": cosmos, "cosmos1": cosmos1}
FAMILIES = {**JOINT, **CROSS}
_built = {}


def build(name):
    """A Specimen, built once; ImportError or TypeError where this host's class is missing or another one."""
    if name not in _built:
        specimen = FAMILIES[name]()
        parameters = inspect.signature(specimen.net.forward).parameters
        specimen.takes_control = "control" in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())
        _built[name] = specimen
    return _built[name]


class Lab:
    """Network calls with chunks of given branches, as calc_cond_batch and apply_model make them."""

    def __init__(self, specimen, rows=1):
        self.specimen, self.rows = specimen, rows

    def inputs(self, seed, tokens=None):
        """Latent and text of one chunk."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.rows, *self.specimen.shape, generator=generator)
        return x, torch.randn(1, tokens or self.specimen.tokens, self.specimen.width, generator=generator).expand(self.rows, -1, -1)

    def text(self, seed, tokens=None):
        return torch.randn(1, tokens or self.specimen.tokens, self.specimen.width, generator=torch.Generator().manual_seed(seed))

    def session(self):
        from lodestar.guidance.host.calls import Session
        model = SimpleNamespace(diffusion_model=self.specimen.net)
        run = SimpleNamespace(report=SimpleNamespace(network_calls=0, evaluations=0, by_kind=Counter()), lock=threading.Lock())
        return Session(run, SimpleNamespace(inner_model=model, conds={}, model_options={}, model_patcher=None), {})

    def prompt(self, session, tokens):
        """A Prompt that stands for these tokens."""
        from lodestar.guidance.method import Prompt
        prompt = Prompt(object(), "negative")
        session._prompts[prompt] = [{"model_conds": {"c_crossattn": SimpleNamespace(cond=tokens)}}]
        return prompt

    def run(self, branches, chunks, session=None, plan_edits=(), context=torch.inference_mode, step=None, plan_blocks=None, **extra):
        """The network's output, and the options it saw: chunk i is (latent, text) of branches[i]; step: the Step of the call, for observers."""
        from lodestar.guidance.host import attention_hooks, block_hooks, runs
        from lodestar.guidance.host.calls import OPTION, Call
        session = session or self.session()
        plan = SimpleNamespace(branches=tuple(branches), edits=tuple(plan_edits), blocks=plan_blocks or {})
        call = Call(session, plan, step)
        uuids = [uuid.uuid4() for _ in branches]
        session.roles.update(zip(uuids, branches))
        options = {"transformer_options": {OPTION: call, "cond_or_uncond": list(range(len(branches))), "uuids": uuids, "sigmas": torch.full((1,), SIGMA),
                                           "sample_sigmas": torch.tensor([1.0, SIGMA, 0.0])}}
        attention_hooks.install(call, options)
        block_hooks.install(call, options)
        seen = {}

        def executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
            seen["options"], seen["text"], seen["rows"] = transformer_options, c_crossattn, x.shape[0]
            return self.specimen.forward(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        x, text = torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])
        with context():
            out = runs.apply_model(executor, x, torch.full((x.shape[0],), SIGMA), None, text, None, options["transformer_options"],
                                   **{**self.specimen.extra(x.shape[0], text.shape[1]), **extra})
        attention_hooks.check_fired(call, seen["options"])
        return out, seen

    def plain(self, chunks, **extra):
        """The network alone."""
        x, text = torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])
        with torch.inference_mode():
            return self.specimen.forward(x, torch.full((x.shape[0],), SIGMA), None, text, None, {"sigmas": torch.full((1,), SIGMA), "cond_or_uncond": [0], "uuids": [uuid.uuid4()]},
                                         **{**self.specimen.extra(x.shape[0], text.shape[1]), **extra})
