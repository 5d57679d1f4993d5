"""The shapes of the bundled networks, and their construction from the host's own classes."""
import inspect

UNET = dict(image_size=16, in_channels=16, model_channels=64, out_channels=16, num_res_blocks=1, channel_mult=(1, 2),
            num_head_channels=32, use_spatial_transformer=True, context_dim=128, use_linear_in_transformer=True,
            legacy=False, transformer_depth_middle=1)
UNET_DEPTH_IN = [1, 1]
UNET_DEPTH_OUT = [1, 1, 1, 1]
DIT = dict(in_channels=16, out_channels=16, vec_in_dim=128, context_in_dim=128, hidden_size=160, mlp_ratio=4.0, num_heads=5,
           depth=3, depth_single_blocks=4, axes_dim=[8, 12, 12], theta=1000, patch_size=2, qkv_bias=True, guidance_embed=False)


def unet(operations, dtype=None, device=None):
    """The host's UNetModel in the shape of the bundled weights."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    # the host's constructor consumes the depth lists
    return UNetModel(**UNET, transformer_depth=list(UNET_DEPTH_IN), transformer_depth_output=list(UNET_DEPTH_OUT),
                     dtype=dtype, device=device, operations=operations)


def dit(operations, dtype=None, device=None):
    """The host's Flux in the shape of the bundled weights."""
    from comfy.ldm.flux import model
    known = inspect.signature(model.FluxParams).parameters
    extra = {"txt_ids_dims": []} if "txt_ids_dims" in known else {}
    shape = {k: v for k, v in DIT.items() if k in known}
    return model.Flux(**shape, **extra, dtype=dtype, device=device, operations=operations)
