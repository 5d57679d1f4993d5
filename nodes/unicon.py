"""Nodes around UniCon: the weights' file, the latent that holds both streams, and what was sampled of it taken apart."""
from ..guidance.attention.unicon import CANVAS, MODES, UniCon
from ._define import Input, NodeDef, Output, category

DEPTH = "bundled: depth, for the demo U-Net"
LOADER, SPLIT = "Load UniCon Weights", "Split Joint Latent"


def _files():
    from ..guidance.host.weight_files import names
    return [DEPTH, *names("loras")]


def _load(file):
    from ..guidance.attention.joint_lora import parse
    if file == DEPTH:
        from ..demo.unicon import NAME
        from ..demo.weights_file import read
        return (parse(read(NAME), LOADER, "file", DEPTH),)
    from ..guidance.host.weight_files import load
    return (parse(load(LOADER, "file", file, "loras"), LOADER, "file", file),)


def _joint(mode, image=None, condition=None, image_noise=1.0, condition_noise=0.0):
    from ..guidance.attention.unicon import joint_latent
    from ..guidance.method import BadInput
    if mode not in MODES:
        raise BadInput(CANVAS, "mode", mode, f"Choose one of: {', '.join(MODES)}.")
    return (joint_latent(mode, image, condition, image_noise, condition_noise),)


def _split(samples):
    from ..guidance.attention.unicon import split
    return split(samples, SPLIT)


NODES = (
    NodeDef(
        node_id="LodestarLoadUniConWeights",
        title=LOADER,
        category=category("attention"),
        description="Reads the weights of a pair of streams (UniCon) from a safetensors file in models/loras.",
        inputs=(Input("file", "COMBO", "A file of models/loras in UniCon's layout, or the small one that comes with the pack.", DEPTH, choices=_files),),
        outputs=(Output("LODESTAR_UNICON", "weights", "For UniCon."),),
        run=_load,
        part_of=UniCon.node_id,
        help="""The authors publish a folder for each condition (depth, edge, pose, id, appearance; for SD1.5): LoRAs in safetensors and the rest as a pickle, model.pth. Bring the pickle's dictionary to one
safetensors file with its keys as they are, where it holds the LoRAs too:

- BLOCK.attn1n.to_{q,k,v,out.0}.lora_{A,B}.{xy,yx}_lora.weight: the joint attention; xy: the image looks at the condition, yx: the condition at the image
- BLOCK.attn1.to_..., BLOCK.attn2.to_....lora_{A,B}.y_lora.weight: the condition's stream (files of identity and appearance have none)
- BLOCK.conv1n.weight: the projection behind the joint attention, [2 width, 2 width] or [width, width]

BLOCK is diffusers' name of a transformer block, e.g. down_blocks.0.attentions.1.transformer_blocks.0. A is [rank, width], B [width, rank]; there is no alpha, it equals the rank. Where the pickle has conv1n alone,
add the LoRA files' keys with the name of their folder in front: xy_lora.unet.BLOCK.attn1n.to_q.lora.down.weight. An ordinary LoRA has other keys and is refused: it belongs to Load LoRA.

The bundled file is for the demo model "unet": pictures of the demo scenes and their depth, in which larger things are nearer and brighter. It was trained by demo/train_unicon.py, for 1,000 steps:
pictures follow a given depth; in the depth of a given picture the things are in their places, but its background is gray, not black.
""",
    ),
    NodeDef(
        node_id="LodestarJointLatent",
        title=CANVAS,
        category=category("attention"),
        description="Puts pictures and their conditions into one latent for UniCon, and says how much noise each begins with.",
        inputs=(Input("mode", "COMBO", "What is known and what is made; noise levels: as the two numbers below say.", MODES[0], choices=MODES),
                Input("image", "LATENT", "The picture, encoded; an empty latent (or nothing) where it is to be made.", optional=True),
                Input("condition", "LATENT", "The condition (depth, edges ...), encoded as a picture; an empty latent (or nothing) where it is to be made.", optional=True),
                Input("image_noise", "FLOAT", "Mode noise levels: with how much noise the picture begins. 0 keeps it, 1 makes it anew.", 1.0, 0.0, 1.0, 0.01, optional=True, advanced=True),
                Input("condition_noise", "FLOAT", "Mode noise levels: with how much noise the condition begins. 0.6 to 0.8 makes a coarse hint of it, e.g. of a rough sketch.", 0.0, 0.0, 1.0, 0.01,
                      optional=True, advanced=True)),
        outputs=(Output("LATENT", "latent", "For the sampler: all pictures, then all conditions, with a noise mask."),),
        run=_joint,
        aliases=("UniCon", "depth to image", "image to depth", "pair"),
        part_of=UniCon.node_id,
        help="""The picture and the condition need one size. The batch becomes twice as large; several pictures with one condition, or the other way round, are possible.

- image from condition: controllable generation. The condition stays as it is.
- condition from image: estimation. The picture stays as it is.
- both: both are made, and belong together.
- noise levels: anything between.

Set Latent Noise Mask on one of the inputs limits what is made there to the mask: inpainting with a condition, or a condition that is known in a part alone. Sample with UniCon on the model, at denoise 1.
""",
    ),
    NodeDef(
        node_id="LodestarSplitJointLatent",
        title=SPLIT,
        category=category("attention"),
        description="Takes a sampled joint latent apart into pictures and conditions.",
        inputs=(Input("samples", "LATENT", "What was sampled of Joint Latent."),),
        outputs=(Output("LATENT", "image", "The pictures."), Output("LATENT", "condition", "Their conditions.")),
        run=_split,
        part_of=UniCon.node_id,
        help="The first half of the batch are the pictures, the second their conditions, in the same order.\n",
    ),
)
