"""Further network classes of the host, tiny and with random weights, beside those of tests/architectures.py."""
import torch

from .. import architectures
from ..architectures import _finish, _known, _operations, _pooled

_OPEN = dict(use_spatial_transformer=True, context_dim=16, use_linear_in_transformer=True, legacy=False, image_size=8, in_channels=4, out_channels=4, model_channels=32, num_heads=2)


def _unet(**values):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    return UNetModel(**{**_OPEN, **values}, **_operations())


def _vector(rows, value=0.1, width=16):
    return torch.full((rows, width), value)


# U-Nets

def unet():
    """SD1.x and SD2.x: attention on every level."""
    net = _unet(num_res_blocks=1, channel_mult=(1, 2), transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1], transformer_depth_middle=1)
    return _finish(net, (4, 8, 8), {}, kinds=("self", "cross"), flow=False)


def sdxl():
    """SDXL: none on the first level, several transformer blocks in one place, a vector beside the text."""
    net = _unet(num_res_blocks=1, channel_mult=(1, 2), transformer_depth=[0, 2], transformer_depth_output=[0, 0, 2, 2], transformer_depth_middle=2, num_classes="sequential", adm_in_channels=16)
    return _finish(net, (4, 8, 8), {}, kinds=("self", "cross"), extra=_pooled, flow=False)


def cascade_c():
    from comfy.ldm.cascade.stage_c import StageC
    net = StageC(c_in=4, c_out=4, c_r=8, c_cond=16, c_hidden=[16, 16], nhead=[2, 2], blocks=[[1, 2], [2, 1]], c_clip_text=16, c_clip_text_pooled=16, c_clip_img=8, **_operations())
    extra = lambda rows, tokens: {"clip_text_pooled": _vector(rows)[:, None], "clip_img": torch.zeros(rows, 1, 8), "sca": torch.zeros(rows), "crp": torch.zeros(rows)}
    return _finish(net, (4, 8, 8), {}, extra=extra, text=lambda tokens: {"clip_text": tokens})


def cascade_b():
    from comfy.ldm.cascade.stage_b import StageB
    net = StageB(c_r=8, c_cond=16, c_hidden=[16, 16], nhead=[-1, 2], blocks=[[1, 2], [2, 1]], block_repeat=[[1, 1], [1, 1]], level_config=["CT", "CTA"], c_clip=16, c_effnet=4,
                 dropout=[0.0, 0.0], **_operations())
    extra = lambda rows, tokens: {"effnet": torch.full((rows, 4, 2, 2), 0.2), "sca": torch.zeros(rows)}
    return _finish(net, (4, 16, 16), {}, extra=extra, text=lambda tokens: {"clip": tokens.mean(1, keepdim=True)})


# pictures

def hunyuan_dit():
    from comfy.ldm.hydit.models import HunYuanDiT
    net = HunYuanDiT(input_size=8, hidden_size=32, depth=4, num_heads=2, text_states_dim=16, text_states_dim_t5=16, text_len=6, text_len_t5=5, **_operations())
    extra = lambda rows, tokens: {"text_embedding_mask": torch.ones(rows, tokens), "encoder_hidden_states_t5": torch.linspace(-1, 1, 80).view(1, 5, 16).repeat(rows, 1, 1),
                                  "text_embedding_mask_t5": torch.ones(rows, 5), "image_meta_size": torch.zeros(rows, 6)}
    return _finish(net, (4, 6, 6), {"block": 4}, extra=extra)


def hidream_o1():
    """A language model over token numbers and patches of 32 x 32 pixels; its vision tower, for reference pictures, is built and not run."""
    from comfy.ldm.hidream_o1 import conditioning, model
    net = model.HiDreamO1Transformer(text_config_overrides=dict(hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=16, rope_dims=[4, 2, 2]),
                                     vision_config_overrides=dict(hidden_size=32, num_heads=2, intermediate_size=32, depth=1, num_position_embeddings=16), **_operations())

    def sized(tokens, noise):
        numbers = (tokens[0].mean(-1) * 1e4).long().abs() % 1000      # the text as token numbers, the last the one that stands for the time
        numbers = torch.cat((numbers, torch.tensor([model.TMS_TOKEN_ID], device=numbers.device)))
        return conditioning.build_extra_conds(numbers, noise)
    return _finish(net, (3, 256, 256), {}, sized=sized)


def omnigen2():
    from comfy.ldm.omnigen.omnigen2 import OmniGen2Transformer2DModel
    net = OmniGen2Transformer2DModel(in_channels=4, hidden_size=32, num_layers=3, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 6, 6),
                                     axes_lens=(64, 64, 64), text_feat_dim=16, **_operations())
    return _finish(net, (4, 8, 6), {"layer": 3}, extra=lambda rows, tokens: {"num_tokens": tokens})


def boogu():
    from comfy.ldm.boogu.model import BooguTransformer2DModel
    net = BooguTransformer2DModel(in_channels=4, hidden_size=32, num_layers=3, num_double_stream_layers=1, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=8,
                                  axes_dim_rope=(4, 6, 6), axes_lens=(64, 64, 64), instruction_feat_dim=16, **_operations())
    return _finish(net, (4, 8, 6), {}, extra=lambda rows, tokens: {"num_tokens": tokens})


def anima():
    from comfy.ldm.anima.model import Anima
    net = Anima(max_img_h=16, max_img_w=16, max_frames=8, in_channels=4, out_channels=4, patch_spatial=2, patch_temporal=1, concat_padding_mask=False, model_channels=32, num_blocks=3,
                num_heads=2, crossattn_emb_channels=16, pos_emb_cls="rope3d", use_adaln_lora=True, adaln_lora_dim=8, **_operations())
    return _finish(net, (4, 1, 6, 6), {"block": 3})


def chroma_radiance():
    from comfy.ldm.chroma_radiance import model
    values = {**architectures._FLUX, "in_channels": 3, "in_dim": 64, "out_dim": 32, "hidden_dim": 16, "n_layers": 1, "vec_in_dim": None, "nerf_hidden_size": 8, "nerf_mlp_ratio": 2,
              "nerf_depth": 1, "nerf_max_freqs": 2, "nerf_tile_size": 16, "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False, "use_sequential_txt_ids": False,
              "patch_size": 4}
    net = model.ChromaRadiance(**_known(model.ChromaRadianceParams, values), **_operations())
    return _finish(net, (3, 16, 12), {"double": 3, "single": 2}, extra=lambda rows, tokens: {"guidance": torch.zeros(rows)})


def zimage_pixels():
    from comfy.ldm.lumina.model import NextDiTPixelSpace
    net = NextDiTPixelSpace(patch_size=4, in_channels=3, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=1, multiple_of=8, qk_norm=True, cap_feat_dim=16, axes_dims=(4, 6, 6),
                            axes_lens=(64, 64, 64), pad_tokens_multiple=8, decoder_hidden_size=16, decoder_num_res_blocks=1, decoder_max_freqs=2, **_operations())
    return _finish(net, (3, 16, 12), {"layer": 3}, extra=lambda rows, tokens: {"num_tokens": tokens})


def pixeldit():
    from comfy.ldm.pixeldit.model import PixDiT_T2I
    net = PixDiT_T2I(num_groups=2, hidden_size=32, pixel_hidden_size=8, pixel_attn_hidden_size=16, pixel_num_groups=2, patch_depth=3, pixel_depth=1, patch_size=4, txt_embed_dim=16,
                     txt_max_length=6, **_operations())
    return _finish(net, (3, 16, 12), {})


def pid():
    from comfy.ldm.pixeldit.pid import PidNet
    net = PidNet(lq_latent_channels=4, lq_hidden_dim=16, lq_num_res_blocks=1, sr_scale=2, latent_spatial_down_factor=2, num_groups=2, hidden_size=32, pixel_hidden_size=8,
                 pixel_attn_hidden_size=16, pixel_num_groups=2, patch_depth=3, pixel_depth=1, patch_size=4, txt_embed_dim=16, txt_max_length=6, **_operations())
    extra = lambda rows, tokens: {"lq_latent": torch.full((rows, 4, 4, 3), 0.2), "degrade_sigma": torch.full((rows,), 0.1)}
    return _finish(net, (3, 16, 12), {}, extra=extra)


def ernie():
    from comfy.ldm.ernie.model import ErnieImageModel
    net = ErnieImageModel(hidden_size=32, num_attention_heads=2, num_layers=3, ffn_hidden_size=32, in_channels=4, out_channels=4, text_in_dim=16, rope_axes_dim=(4, 6, 6), **_operations())
    return _finish(net, (4, 6, 5), {"layer": 3})


def krea2():
    from comfy.ldm.krea2.model import SingleStreamDiT
    net = SingleStreamDiT(features=32, tdim=16, txtdim=16, heads=2, kvheads=1, multiplier=2, layers=3, channels=4, txtlayers=2, txtheads=2, txtkvheads=2, **_operations())
    specimen = _finish(net, (4, 8, 6), {})
    specimen.width = 32      # the layers of the text encoder side by side
    return specimen


def ideogram4():
    from comfy.ldm.ideogram4.model import Ideogram4Transformer2DModel
    net = Ideogram4Transformer2DModel(in_channels=4, num_layers=3, num_attention_heads=2, attention_head_dim=16, intermediate_size=32, adaln_dim=16, llm_features_dim=16,
                                      mrope_section=(4, 2, 2), **_operations())
    return _finish(net, (4, 6, 5), {"layer": 3})


def joyimage():
    from comfy.ldm.joyimage.model import JoyImageTransformer3DModel
    net = JoyImageTransformer3DModel(in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=16, mlp_width_ratio=2.0, num_layers=3, rope_dim_list=[4, 6, 6], **_operations())
    return _finish(net, (4, 1, 8, 6), {"double": 3})


def mage_flow():
    from comfy.ldm.mage_flow.model import MageFlowTransformer2DModel
    net = MageFlowTransformer2DModel(in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 6, 6), **_operations())
    return _finish(net, (4, 6, 5), {"double": 3})


def lens():
    from comfy.ldm.lens.model import LensTransformer2DModel
    net = LensTransformer2DModel(in_channels=4, out_channels=1, num_layers=3, attention_head_dim=16, num_attention_heads=2, enc_hidden_dim=8, axes_dims_rope=(4, 6, 6),
                                 selected_layer_index=(0, 1), **_operations())
    return _finish(net, (4, 6, 5), {"double": 3})


def pixart():
    """Its positions are told in multiples of 64 cells: smaller pictures than half of that are nothing to it."""
    from comfy.ldm.pixart import pixartms
    net = pixartms.PixArtMS(input_size=8, hidden_size=48, depth=2, num_heads=2, caption_channels=16, model_max_length=6, pe_interpolation=1.0, micro_condition=False, **_operations())
    return _finish(net, (4, 80, 64), {"block": 2}, kinds=(), takes_control=False)


# video

def svd():
    """A video U-Net; the batch are the frames, as the host's own conditioning says."""
    net = _unet(num_res_blocks=1, channel_mult=(1, 2), transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1], transformer_depth_middle=1, use_temporal_attention=True,
                use_temporal_resblock=True, extra_ff_mix_layer=True, use_spatial_context=True, merge_strategy="learned_with_images", merge_factor=0.5, video_kernel_size=[3, 1, 1])
    return _finish(net, (4, 8, 8), {}, kinds=("self", "cross"), flow=False, rows=2, extra=lambda rows, tokens: {"num_video_frames": 2})


def mochi():
    from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint
    net = AsymmDiTJoint(in_channels=4, hidden_size_x=32, hidden_size_y=16, depth=3, num_heads=2, mlp_ratio_x=384.0, mlp_ratio_y=256.0, use_t5=True, t5_feat_dim=16, t5_token_length=6,
                        learn_sigma=False, attend_to_padding=False, use_extended_posenc=True, rope_theta=10000.0, patch_size=2, qk_norm=True, qkv_bias=False, out_bias=True, **_operations())
    extra = lambda rows, tokens: {"attention_mask": torch.ones(rows, tokens), "num_tokens": tokens}
    return _finish(net, (4, 1, 16, 16), {"block": 3}, extra=extra)


def cogvideo():
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel
    net = CogVideoXTransformer3DModel(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=16, num_layers=3, sample_width=6,
                                      sample_height=6, sample_frames=5, max_text_seq_length=6, use_rotary_positional_embeddings=True, **_operations())
    return _finish(net, (4, 2, 6, 6), {"block": 3})


def kandinsky5():
    from comfy.ldm.kandinsky5.model import Kandinsky5
    net = Kandinsky5(in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=16, time_dim=16, model_dim=32, ff_dim=32, visual_embed_dim=16, patch_size=(1, 2, 2), num_text_blocks=1, num_visual_blocks=3,
                     axes_dims=(4, 6, 6), **_operations())
    return _finish(net, (4, 2, 16, 16), {"block": 3}, extra=_pooled)


def ltxav():
    from comfy.ldm.lightricks.av_model import LTXAVModel
    net = LTXAVModel(in_channels=4, audio_in_channels=128, cross_attention_dim=24, audio_cross_attention_dim=24, attention_head_dim=12, audio_attention_head_dim=12, num_attention_heads=2,
                     audio_num_attention_heads=2, caption_channels=16, num_layers=3, connector_attention_head_dim=12, connector_num_attention_heads=2,
                     audio_connector_attention_head_dim=12, audio_connector_num_attention_heads=2, connector_num_layers=1, **_operations())
    return _finish(net, (4, 3, 3, 5), {"block": 3}, streams=((8, 6, 16),), width=32)


def seedvr():
    from comfy.ldm.seedvr.model import NaDiT
    net = NaDiT(norm_eps=1e-5, num_layers=4, mlp_type="swiglu", vid_dim=32, txt_in_dim=16, heads=2, head_dim=16, mm_layers=2, expand_ratio=2, rope_dim=16,
                **_operations())
    return _finish(net, (16, 2, 6, 4), {}, extra=lambda rows, tokens: {"condition": torch.full((rows, 17, 2, 6, 4), 0.1)})


def _wan(cls, values=None, extra=None, shape=(4, 3, 8, 6), module="wan.model"):
    import importlib
    model = getattr(importlib.import_module(f"comfy.ldm.{module}"), cls)
    base = dict(in_dim=4, out_dim=4, dim=24, ffn_dim=32, freq_dim=16, text_dim=16, num_heads=2, num_layers=3)
    net = model(**{**base, **(values or {})}, **_operations())
    return _finish(net, shape, {"block": 3}, extra=extra or (lambda rows, tokens: {}))


def wan_vace():
    extra = lambda rows, tokens: {"vace_context": torch.full((rows, 1, 8, 3, 8, 6), 0.1), "vace_strength": [1.0]}
    return _wan("VaceWanModel", dict(vace_layers=3, vace_in_dim=8), extra)


def wan_camera():
    extra = lambda rows, tokens: {"camera_conditions": torch.full((rows, 24, 3, 64, 48), 0.1)}
    return _wan("CameraWanModel", dict(in_dim_control_adapter=24), extra)


def wan_humo():
    extra = lambda rows, tokens: {"audio_embed": torch.full((rows, 3, 8, 5, 1280), 0.1)}
    return _wan("HumoWanModel", {}, extra)


def wan_s2v():
    extra = lambda rows, tokens: {"audio_embed": torch.full((rows, 25, 16, 9), 0.1)}
    return _wan("WanModel_S2V", dict(audio_dim=16, num_audio_token=2, cond_dim=4, audio_inject_layers=[0, 2]), extra)


def wan_animate():
    return _wan("AnimateWanModel", dict(motion_encoder_dim=16), module="wan.model_animate")


def wan_dancer():
    return _wan("WanDancerModel", dict(audio_inject_layers=[0], music_dim=16, music_heads=2, music_latent_dim=16), module="wan.model_wandancer")


def wan_scail():
    return _wan("SCAILWanModel", dict(in_dim=4))


def wan_scail2():
    return _wan("SCAIL2WanModel", dict(in_dim=4))


def wan_causal():
    return _wan("CausalWanModel", {}, module="wan.ar_model")


# sound, shapes

def audio():
    from comfy.ldm.audio.dit import AudioDiffusionTransformer
    net = AudioDiffusionTransformer(io_channels=4, embed_dim=64, cond_token_dim=16, project_cond_tokens=True, global_cond_dim=16, depth=3, num_heads=2, **_operations())
    for name, buffer in net.named_buffers():      # comes with the weights; the class leaves it as it finds the memory
        if name.endswith("inv_freq"):
            buffer.copy_(10000.0 ** -(torch.arange(buffer.shape[0]) / buffer.shape[0]))
    return _finish(net, (4, 12), {"block": 3}, extra=lambda rows, tokens: {"global_embed": _vector(rows)})


def ace():
    from comfy.ldm.ace.model import ACEStepTransformer2DModel
    net = ACEStepTransformer2DModel(in_channels=8, out_channels=8, num_layers=3, inner_dim=32, attention_head_dim=16, num_attention_heads=2, mlp_ratio=2.0, max_position=64,
                                    speaker_embedding_dim=16, text_embedding_dim=16, ssl_encoder_depths=[], ssl_names=[], ssl_latent_dims=[], lyric_encoder_vocab_size=8, lyric_hidden_size=1024,
                                    patch_size=[4, 1], max_height=4, max_width=64, **_operations())
    net.lyric_encoder.encoders = net.lyric_encoder.encoders[:1]
    extra = lambda rows, tokens: {"speaker_embeds": _vector(rows, 0.0), "lyric_token_idx": torch.tensor([[1, 2, 3]]).repeat(rows, 1)}
    return _finish(net, (8, 4, 12), {}, extra=extra)


def ace15():
    from comfy.ldm.ace.ace_step15 import AceStepConditionGenerationModel
    net = AceStepConditionGenerationModel(in_channels=12, hidden_size=32, text_hidden_dim=16, timbre_hidden_dim=4, audio_acoustic_hidden_dim=4, num_dit_layers=3, num_lyric_layers=1,
                                          num_timbre_layers=1, num_tokenizer_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=32, fsq_dim=32, encoder_hidden_size=32,
                                          encoder_intermediate_size=32, encoder_num_heads=2, **_operations())
    extra = lambda rows, tokens: {"lyric_embed": torch.full((rows, 3, 16), 0.1), "refer_audio": torch.full((rows, 4, 20), 0.1), "is_covers": False}
    return _finish(net, (4, 20), {}, extra=extra)


def hunyuan3d():
    from comfy.ldm.hunyuan3d.model import Hunyuan3Dv2
    net = Hunyuan3Dv2(in_channels=4, context_in_dim=16, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=2, **_operations())
    return _finish(net, (4, 12), {"double": 2, "single": 2})


def hunyuan3d21():
    from comfy.ldm.hunyuan3dv2_1.hunyuandit import HunYuanDiTPlain
    net = HunYuanDiTPlain(in_channels=4, hidden_size=32, context_dim=16, depth=3, num_heads=2, num_moe_layers=1, guidance_cond_proj_dim=32, num_experts=2, moe_top_k=1, **_operations())
    return _finish(net, (4, 12), {"block": 3})


def triposplat():
    from comfy.ldm.triposplat.model import LatentSeqMMFlowModel
    net = LatentSeqMMFlowModel(q_token_length=12, in_channels=4, model_channels=32, cond_channels=16, out_channels=4, num_blocks=2, num_refiner_blocks=1, num_heads=2, num_head_channels=16,
                               cam_channels=5, cond2_channels=8, mlp_ratio=2, **_operations())
    return _finish(net, (12, 4), {}, streams=((1, 5),))


def _sized(name, shape):
    """A specimen of tests/architectures.py with a latent that can be halved and cut into its patches."""
    def made():
        specimen = architectures.FAMILIES[name]()
        specimen.shape = shape
        return specimen
    return made


FURTHER = {name: made for name, made in list(globals().items()) if callable(made) and not name.startswith("_") and getattr(made, "__module__", "") == __name__}
LARGER = {"hunyuan": (4, 2, 16, 16), "cosmos1": (4, 2, 16, 16)}
ALL = {**architectures.FAMILIES, **{name: _sized(name, shape) for name, shape in LARGER.items()}, **FURTHER}

# what the host has besides
LEFT_OUT = {"DepthAnything3Net": "estimates depth; it does not sample", "RTv4": "finds objects; it does not sample", "SAM3Model": "cuts out objects; it does not sample"}
