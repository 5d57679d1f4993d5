"""Nodes around restorers with weights of their own: files, the degradation of a picture, and where the sampling begins."""
from ..guidance.inverse.degradation_lora import DegradationGuidedLora
from ..guidance.inverse.pixel_aware import PixelAwareAttention
from ..guidance.samplers.restoration_start import RestorationStart
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of
from ._kept import files_of, tensors_of

LORA, ESTIMATE, PIXELS, ENCODE = "Load Degradation LoRA", "Estimate Degradation", "Load Pixel-Aware Attention", "Degradation-Guided Encode"
BUNDLED_PIXELS = "bundled: degraded pictures, for the demo U-Net"
BUNDLED_LORA, BUNDLED_ESTIMATOR = "bundled: blur and noise, for the demo U-Net", "bundled: blur and noise of the demo scenes"


def _lora(file):
    from ..demo.degradation_lora import NAME
    from ..guidance.inverse.degradation_lora import parse
    return (parse(tensors_of(LORA, file, BUNDLED_LORA, NAME, "loras"), LORA, "file", file),)


def _pixels(file):
    from ..demo.pixel_aware import NAME
    from ..guidance.inverse.pixel_aware import parse
    return (parse(tensors_of(PIXELS, file, BUNDLED_PIXELS, NAME, "diffusion_models"), PIXELS, "file", file),)


def _estimate(image, file):
    import torch

    from ..demo.degradation_lora import ESTIMATOR
    from ..guidance.inverse.degradation import Degradation, parse_estimator
    estimator = parse_estimator(tensors_of(ESTIMATE, file, BUNDLED_ESTIMATOR, ESTIMATOR, "lodestar"), ESTIMATE, "file", file)
    with torch.no_grad():
        scores = torch.cat([estimator(u[None, ..., :3].movedim(-1, 1).float().cpu()) for u in image])
    found = Degradation(tuple(tuple(round(v, 4) for v in pair) for pair in scores.tolist()))
    text = "\n".join(f"blur {b:.2f}, noise {n:.2f}" for b, n in found.scores)
    return Shown((found, *found.scores[0], text), text)


def _encode(pixels, vae, lora, blur, noise, strength, degradation=None):
    from ..guidance.host.degradation_encode import encoded
    from ..guidance.inverse.degradation import Degradation
    return (encoded(ENCODE, pixels, vae, lora, Degradation(((blur, noise),)) if degradation is None else degradation, strength),)


def _started(**values):
    method = RestorationStart(**values).validate()
    from ..guidance.host.sampler_start import sampler
    return (sampler(method),)


NODES = (
    NodeDef(**about(RestorationStart), inputs=inputs_of(RestorationStart), run=_started, outputs=(Output("SAMPLER", "sampler", "For SamplerCustom and SamplerCustomAdvanced, with the encoded degraded picture as the latent."),)),
    NodeDef(
        node_id="LodestarLoadDegradationLora",
        title=LORA,
        category=category("inverse"),
        description="Reads a degradation-guided LoRA (S3Diff) from a safetensors file in models/loras.",
        inputs=(Input("file", "COMBO", "A file of models/loras in S3Diff's layout, or the small one that comes with the pack.", BUNDLED_LORA, choices=files_of(BUNDLED_LORA, "loras")),),
        outputs=(Output("LODESTAR_DEGRADATION_LORA", "lora", "For Degradation-Guided LoRA and Degradation-Guided Encode."),),
        run=_lora,
        part_of=DegradationGuidedLora.node_id,
        help="""The authors publish a pickle, s3diff.pkl (for SD-Turbo): a dictionary whose values are dictionaries of tensors. Bring it to one safetensors file in which the names on the way stand before each other:

- w: the frequencies of the scores' embedding
- state_embeddings.state_dict_unet_block.weight [blocks, width]: one row for each resolution down, the middle, each resolution up, and the rest
- state_dict_unet_de_mlp.0.{weight, bias}, state_dict_unet_block_mlp.0.{weight, bias}, state_dict_unet_fuse_mlp.{weight, bias}: what makes the middle matrices
- state_dict_unet.LAYER.lora_{A, B}.default.weight, and state_dict_unet.conv_in.{weight, bias}, which replace the input convolution where they are there

LAYER is diffusers' name of a linear layer or convolution. Lists of names and the rank are left out. For the VAE's encoder there may be the same with vae in place of unet (state_dict_vae.encoder.LAYER.lora_{A, B}.vae_skip.weight,
state_dict_vae_de_mlp.0 and so on; state_embeddings.state_dict_vae_block.weight has a row for each resolution, the middle, and the rest): Degradation-Guided Encode applies them.

The bundled file is for the demo model "unet": pictures of the demo scenes, blurred by up to 5 pixels and with noise of up to 0.4 (the scores 1). It was trained by demo/train_degradation_lora.py from the middle of the
schedule: scheduler "simple", 1 step, denoise 0.5. Positive prompt: what there is, or "the background"; negative prompt: empty. After 170 steps of 4 pictures it restores what the same step without it destroys (23.3 dB against 13.9), but is not nearer to the true
picture than the degraded one is on the average (25.3 dB).
""",
    ),
    NodeDef(
        node_id="LodestarDegradationGuidedEncode",
        title=ENCODE,
        category=category("inverse"),
        description="Encodes degraded pictures with the part of a degradation-guided LoRA (S3Diff) that is for the VAE's encoder.",
        inputs=(Input("pixels", "IMAGE", "The degraded pictures, brought to the wanted size."), Input("vae", "VAE", "The VAE that the LoRA was trained with."),
                Input("lora", "LODESTAR_DEGRADATION_LORA", "From Load Degradation LoRA."),
                Input("blur", "FLOAT", "How blurred the picture is, 0 to 1. Without effect where degradation is connected.", 0.5, 0.0, 1.0, 0.01),
                Input("noise", "FLOAT", "How noisy it is, 0 to 1. Without effect where degradation is connected.", 0.5, 0.0, 1.0, 0.01),
                Input("strength", "FLOAT", "Factor on the LoRA; at 0 it is VAE Encode.", 1.0, 0.0, 2.0, 0.05),
                Input("degradation", "LODESTAR_DEGRADATION", "Both numbers for each picture of the batch, from Estimate Degradation.", optional=True)),
        outputs=(Output("LATENT", "latent", "For the sampler, with Degradation-Guided LoRA on the model."),),
        run=_encode,
        aliases=("S3Diff", "VAE encode", "one-step super-resolution"),
        part_of=DegradationGuidedLora.node_id,
        help="""S3Diff's second LoRA, in the convolutions of the VAE's encoder and the projections of its attention: out = W h + strength (8 / rank) B C A h, the middle matrix C made of the picture's two scores for each resolution, the
middle, and the rest, as in Degradation-Guided LoRA. Pictures are encoded one by one, each with its own.

A file that has nothing for the encoder, as the bundled one (the demo models' VAE has no such layers), or strength 0: bit by bit what VAE Encode gives.
""",
    ),
    NodeDef(
        node_id="LodestarEstimateDegradation",
        title=ESTIMATE,
        category=category("inverse"),
        description="Estimates how blurred and how noisy pictures are, each as a number from 0 to 1.",
        inputs=(Input("image", "IMAGE", "The degraded pictures, at their own size: before they are enlarged."),
                Input("file", "COMBO", "A file of models/lodestar in the layout of the estimator that S3Diff uses, or the small one that comes with the pack.", BUNDLED_ESTIMATOR, choices=files_of(BUNDLED_ESTIMATOR, "lodestar"))),
        outputs=(Output("LODESTAR_DEGRADATION", "degradation", "Both numbers of each picture, for Degradation-Guided LoRA."), Output("FLOAT", "blur", "Of the first picture."), Output("FLOAT", "noise", "Of the first picture."),
                 Output("STRING", "text", "In words.")),
        run=_estimate,
        output_node=True,
        aliases=("S3Diff", "MM-RealSR", "blur", "noise", "quality"),
        part_of=DegradationGuidedLora.node_id,
        help="""A small network that was trained with degradations of known strength. The released one (MM-RealSR's, de_net.pth in S3Diff's repository) is read once it is brought to safetensors, with its keys as they are:
conv_first.K, body.K.N.conv1 and conv2 (residual blocks), body.K.N (convolutions, which halve the picture), fc_degree.K.0 and .2, each with weight and bias; K 0 is blur, 1 noise.

What the scores mean is the file's own matter: a LoRA wants those that it was trained with. The bundled file goes with the bundled LoRA; after a minute of training it finds noise (correlation with the true score
0.98 on whole pictures) but hardly blur (0.08).
""",
    ),
    NodeDef(
        node_id="LodestarLoadPixelAwareAttention",
        title=PIXELS,
        category=category("inverse"),
        description="Reads pixel-aware attention (PASD) from a safetensors file in models/diffusion_models.",
        inputs=(Input("file", "COMBO", "A file of models/diffusion_models in PASD's layout, or the small one that comes with the pack.", BUNDLED_PIXELS, choices=files_of(BUNDLED_PIXELS, "diffusion_models")),),
        outputs=(Output("LODESTAR_PIXEL_ATTENTION", "weights", "For Pixel-Aware Attention."),),
        run=_pixels,
        part_of=PixelAwareAttention.node_id,
        help="""The authors publish a U-Net and a ControlNet (for SD1.5). The U-Net's file (unet/diffusion_pytorch_model.safetensors, or its .bin brought to safetensors) is read as it is; of its keys those are taken
that begin with up_blocks.LEVEL.pixel_attentions.LAYER: a transformer in diffusers' layout (norm, proj_in, transformer_blocks.N.{norm1, attn1, norm2, attn2, norm3, ff}, proj_out). attn2 looks at the features.
The ControlNet is loaded and applied by the host's own nodes; its own features are what the transformers look at.

Files of the pack hold an encoder as well, which stands in for a ControlNet: pixel_encoder.enter, pixel_encoder.down.I (which halve), pixel_encoder.leave.LAYER: convolutions of the degraded latent, with weight
and bias.

The bundled file is for the demo model "unet": pictures of the demo scenes, blurred by up to 5 pixels and with noise of up to 0.4. It was trained by demo/train_pixel_aware.py, for 90 steps
of 4 pictures: what is drawn stays nearer to the picture than without it (19.7 dB against 16.8), most of it by the features in the skip connections (19.2 without the transformers); the degraded picture itself is
nearer still (25.2).
""",
    ),
)
