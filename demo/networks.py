"""The shapes of the bundled networks, and their construction from the host's own classes."""
import inspect

UNET = dict(image_size=16, in_channels=16, model_channels=64, out_channels=16, num_res_blocks=1, channel_mult=(1, 2),
            num_head_channels=32, use_spatial_transformer=True, context_dim=128, use_linear_in_transformer=True,
            legacy=False, transformer_depth_middle=1)
UNET_DEPTH_IN = [1, 1]
UNET_DEPTH_OUT = [1, 1, 1, 1]
# attention and convolutions over the frames are added to the U-Net's own layers; what is between them is as it was
VIDEO = dict({k: v for k, v in UNET.items() if k != "use_linear_in_transformer"}, use_temporal_attention=True, use_temporal_resblock=True, disable_temporal_crossattention=True,
             extra_ff_mix_layer=False, merge_strategy="learned", merge_factor=0.0, video_kernel_size=[3, 1, 1])
OVER_FRAMES = ("time_stack.", "time_mixer.", "time_pos_embed.")
DIT = dict(in_channels=16, out_channels=16, vec_in_dim=128, context_in_dim=128, hidden_size=160, mlp_ratio=4.0, num_heads=5,
           depth=3, depth_single_blocks=4, axes_dim=[8, 12, 12], theta=1000, patch_size=2, qkv_bias=True, guidance_embed=False)


def unet(operations, dtype=None, device=None):
    """The host's UNetModel in the shape of the bundled weights."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    # the host's constructor consumes the depth lists
    return UNetModel(**UNET, transformer_depth=list(UNET_DEPTH_IN), transformer_depth_output=list(UNET_DEPTH_OUT),
                     dtype=dtype, device=device, operations=operations)


def video(operations, dtype=None, device=None):
    """The U-Net with layers over the frames of a video, as the host's SVD has them."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    return UNetModel(**VIDEO, transformer_depth=list(UNET_DEPTH_IN), transformer_depth_output=list(UNET_DEPTH_OUT), dtype=dtype, device=device, operations=operations)


def of_frames(weights):
    """The U-Net's weights for `video`, whose projections into and out of attention are 1 x 1 convolutions."""
    return {k: v[:, :, None, None] if k.endswith((".proj_in.weight", ".proj_out.weight")) and v.ndim == 2 else v for k, v in weights.items()}


def dit(operations, dtype=None, device=None):
    """The host's Flux in the shape of the bundled weights."""
    from comfy.ldm.flux import model
    known = inspect.signature(model.FluxParams).parameters
    extra = {"txt_ids_dims": []} if "txt_ids_dims" in known else {}
    shape = {k: v for k, v in DIT.items() if k in known}
    return model.Flux(**shape, **extra, dtype=dtype, device=device, operations=operations)
