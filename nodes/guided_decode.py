"""Guided Decode (GuideSR): a picture from a restored latent, with a second look at the degraded one; and the file of its branch."""
from ..guidance.inverse.guidance_branch import GuidedDecode
from ._define import Input, NodeDef, Output, about, category, inputs_of
from ._kept import files_of, tensors_of

LOAD, BUNDLED = "Load Guidance Branch", "bundled: blur and noise, behind the bundled LoRA"


def _branch(file):
    from ..demo.guidance_branch import NAME
    from ..guidance.inverse.guidance_branch import parse
    return (parse(tensors_of(LOAD, file, BUNDLED, NAME, "lodestar"), LOAD, "file", file),)


def _decoded(**values):
    method = GuidedDecode(**values).validate()
    from ..guidance.host.guided_decode import decoded
    return (decoded(method),)


NODES = (
    NodeDef(**about(GuidedDecode), inputs=inputs_of(GuidedDecode), run=_decoded, outputs=(Output("IMAGE", "image", "The corrected pictures."),)),
    NodeDef(
        node_id="LodestarLoadGuidanceBranch",
        title=LOAD,
        category=category("inverse"),
        description="Reads a full-resolution guidance branch (GuideSR) from a safetensors file in models/lodestar.",
        inputs=(Input("file", "COMBO", "A file of models/lodestar in the layout below, or the small one that comes with the pack.", BUNDLED, choices=files_of(BUNDLED, "lodestar")),),
        outputs=(Output("LODESTAR_GUIDANCE_BRANCH", "branch", "For Guided Decode."),),
        run=_branch,
        part_of=GuidedDecode.node_id,
        help="""The authors released no weights, so that the layout is the pack's own. All are convolutions with weight and bias; C is the width, which the file says, as it says how many blocks there are:

- enter [C, 3], tail [C, C]: before and behind the full-resolution blocks
- body.N.blocks.M.{conv1, gate, conv2} and body.N.tail [C, C]: full-resolution block N with its channel-attention blocks M
- guide.attend.0 [C, 6] (the decoded picture, then the degraded one) and guide.attend.1 [C, C]: the attention; guide.project [C, C]: what it weighs
- fuse.enter [C, C + 3] (features, then the decoded picture), fuse.body.N... like body, leave [3, C]: the residual

Kernels are square and odd (3 in the bundled file, gate 1). Pictures go in and out in [0, 1].

The bundled file (width 16) stands behind one step of the demo model "unet" with the bundled degradation-guided LoRA and its estimate, scheduler "simple", 1 step, denoise 0.5: pictures of the demo scenes, blurred by up
to 5 pixels and with noise of up to 0.4. It was trained by demo/train_guidance_branch.py for 300 steps, on that step's results alone: behind others it adds grain, and of strong noise some is left. On 16 fresh pictures
of 128 pixels the same step is 27.2 dB from the scene with it and 23.1 with VAE Decode; the degraded pictures are 18.5, through the VAE 25.1, and what the branch makes of these without the step 24.4.
""",
    ),
)
