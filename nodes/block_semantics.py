"""The file of Block-Wise Semantics (MegaSR)."""
from ..guidance.inverse.block_semantics import BlockWiseSemantics, parse
from ._define import Input, NodeDef, Output, category
from ._kept import files_of, tensors_of

LOADER = "Load Block-Wise Semantics"
BUNDLED = "bundled: degraded pictures, for the demo U-Net"


def _load(file):
    from ..demo.block_semantics import NAME
    return (parse(tensors_of(LOADER, file, BUNDLED, NAME, "lodestar"), LOADER, "file", file),)


NODES = (
    NodeDef(
        node_id="LodestarLoadBlockWiseSemantics",
        title=LOADER,
        category=category("inverse"),
        description="Reads block-wise semantics and guidance (MegaSR) from a safetensors file in models/lodestar.",
        inputs=(Input("file", "COMBO", "A file of models/lodestar in the layout below, or the small one that comes with the pack.", BUNDLED, choices=files_of(BUNDLED, "lodestar")),),
        outputs=(Output("LODESTAR_BLOCK_SEMANTICS", "weights", "For Block-Wise Semantics."),),
        run=_load,
        part_of=BlockWiseSemantics.node_id,
        help="""The authors published no weights; the layout is the pack's own. Convolutions have weight and bias; all widths are read from the shapes.

- semantics.enter, semantics.down.I (which halve), semantics.leave.L, semantics.norm: the degraded picture, 8 x 8 pixels to a cell (192 channels), to tokens of the text's width; level 0 is the coarsest
- blocks.LAYER.gate [1], blocks.LAYER.levels [levels]: of each block; LAYER as List Layers names it (input.1, middle.0, output.3.1)
- structure.enter, .down.I, .leave.N: depth (1 channel) and segmentation (3) in such cells, to features for the decoder's skip connection N, in the order of execution
- edges.enter, .down.I, .leave.N: the edges (1 channel), to twice as many channels: what the features are multiplied by (less 1), and what is added
- extract.enter, extract.inner.I (dilated by 2^I), extract.leave: the network that finds edges, depth and segmentation (5 channels), from cells of 4 x 4 pixels, at half the size. May be left out

The bundled file is for the demo model "unet": pictures of the demo scenes, blurred by up to 5 pixels and with noise of up to 0.4. It was trained by demo/train_block_semantics.py, for 160 steps of 4 pictures, which
is little: begun at 0.9 of the noise, what is drawn is a little nearer to the true picture than without it (17.4 dB against 16.4, 16 pictures, not resolved), and clearly so with the true maps connected (19.0): what the
extractor finds is coarse (its edges hardly any). The gates have hardly opened: the semantics add nothing that is seen (17.4 dB with the guidance alone). Pixel-Aware Attention's file does better (18.9), the degraded picture itself is nearer still (25.3).
""",
    ),
)
