"""The bundled models as MODEL, CLIP and VAE."""
from ._define import Input, NodeDef, Output, category

KINDS = ("unet", "dit", "video", "degrading")


def _load(model):
    from ..demo.loader import load_demo_model
    from ..guidance.host.features import complete
    complete()
    return tuple(load_demo_model(model))


def _control():
    from ..demo.damage import load_control
    return (load_control(),)


NODES = (NodeDef(
    node_id="LodestarLoadDemoModel",
    title="Load Demo Model",
    category=category("demo"),
    description="Loads a small text-to-image model that comes with the pack: runs in seconds on any machine, for trying out and comparing guidance.",
    inputs=(Input("model", "COMBO", "unet: a U-Net that predicts noise (like SD). dit: a flow-matching transformer (like Flux). video: the U-Net with layers over the frames of a short video; the batch is the video (like SVD). degrading: a U-Net that sees a clean picture (like InstructPix2Pix), for Degradation Synthesis.", "unet", choices=KINDS),),
    outputs=(Output("MODEL", "model", "The generator."), Output("CLIP", "clip", "The text encoder."),
             Output("VAE", "vae", "From latents to 128 px pictures and back.")),
    run=_load,
    aliases=("bundled model", "test model"),
    help="""The model draws scenes of one to three shapes on a plain background. It knows captions such as

    a large red circle
    a small blue square above a yellow triangle
    a green triangle left of a purple circle

Words outside its vocabulary are ignored, with one warning that names them. An Empty Latent Image of 128 x 128 is the size it was trained for.

`video` makes one video of eight frames from an Empty Latent Image of 128 x 128 with batch size 8: the objects drift, the background stands still. Its prompts are the same.

`degrading` is for degraded pictures of a clean one (haze, rain, snow, motion blur, low light, raindrops): connect it to Degradation Synthesis. It was trained by `demo/train_degrading.py` for some fifty minutes: after so short a training it draws the clean picture's things on its own ground, rain and snow (as specks for other kinds too), hardly haze or blur; the level follows what is asked for roughly (12 pictures: correlation of the means 0.53, without a level -0.29).

The outputs behave like those of any other checkpoint: prompt weights, KSampler, VAE Decode, LoRA-style weight patches, saving latents.
The generators share the text encoder and the latents.
""",
), NodeDef(
    node_id="LodestarLoadDemoControlNet",
    title="Load Demo ControlNet",
    category=category("demo"),
    description="Loads a small ControlNet that comes with the pack, for the bundled U-Net: it sees a damaged picture, so that the model joins what is made anew to what is left.",
    inputs=(),
    outputs=(Output("CONTROL_NET", "control_net", "For Apply ControlNet."),),
    run=_control,
    aliases=("bundled ControlNet", "damaged picture", "Control-LoRA"),
    help="""Its picture is the damaged one, in which what is gone is painted magenta (red 255, green 0, blue 255): Empty Image with that colour, and Image Composite Masked with the mask of the damage. Its size should be that of the picture that is made.

It is a Control-LoRA and is read and run by the host's own code like any other. It was trained by `demo/train_damage.py` on whole scenes of 128 x 128 and on parts of larger ones; it is for `unet` alone.
""",
    part_of="LodestarMultiScaleRestoration",
),)
