"""Nodes that read weight files of methods."""
from ..guidance.attention.easycontrol import EasyControl
from ..guidance.attention.glyph_adaptive import GlyphAdaptiveAttention
from ._define import Input, NodeDef, Output, category

OUTLINES = "bundled: outlines, for the demo flow model"
SHAPES, LETTERS = "bundled: shapes of the demo scenes", "bundled: lines of one font"


def _lora_files():
    from ..guidance.host.weight_files import names
    return [OUTLINES, *names("loras")]


def _condition_lora(file, number):
    from ..guidance.attention.condition_lora import parse
    title = "Load Condition LoRA"
    if file == OUTLINES:
        from ..demo.weights_file import read
        return (parse(read("condition_outlines"), title, "file", OUTLINES, number),)
    from ..guidance.host.weight_files import load
    return (parse(load(title, "file", file, "loras"), title, "file", file, number),)


def _reader_files():
    from ..guidance.host.weight_files import names
    return [SHAPES, LETTERS, *names()]


def _recogniser(file):
    from ..guidance.attention.glyph_reader import TextScore, load
    from ..guidance.host.weight_files import load as tensors
    from ..guidance.method import BadInput
    title = "Load Text Recogniser"
    if file == SHAPES:
        from ..demo.reader import ShapeScore
        return (ShapeScore(),)
    if file == LETTERS:
        from ..demo.lines import LineReader
        return (LineReader(),)
    weights = tensors(title, "file", file)
    try:
        return (TextScore(load(weights)),)
    except ValueError as error:
        raise BadInput(title, "file", file, str(error)) from error


NODES = (NodeDef(
    node_id="LodestarLoadConditionLora",
    title="Load Condition LoRA",
    category=category("attention"),
    description="Reads the LoRA of a condition branch (EasyControl) from a safetensors file in models/loras.",
    inputs=(Input("file", "COMBO", "A file of models/loras in EasyControl's layout, or the small one that comes with the pack.", OUTLINES, choices=_lora_files),
            Input("number", "INT", "Which condition of the file, where it holds several.", 0, 0, 15, 1, optional=True, advanced=True)),
    outputs=(Output("LODESTAR_CONDITION_LORA", "lora", "For EasyControl."),),
    run=_condition_lora,
    help="""Files as the authors publish them (canny, depth, pose, seg, hedsketch, inpainting, subject ... for Flux) are read as they are. N is the number of the condition in the file, 0 in files of one:

- transformer_blocks.I.attn.processor.{q,k,v,proj}_loras.N.{down,up}.weight: double block I
- single_transformer_blocks.I.attn.processor.{q,k,v}_loras.N.{down,up}.weight: single block I

down is [rank, width], up [width, rank]; there is no alpha, it equals the rank. An ordinary LoRA has other keys and is refused: it belongs to Load LoRA.

The bundled file steers the demo flow model ("dit") by outlines: white lines, about three pixels wide, on black. It was trained by demo/train_condition.py.
""",
    part_of=EasyControl.node_id,
), NodeDef(
    node_id="LodestarLoadTextRecogniser",
    title="Load Text Recogniser",
    category=category("attention"),
    description="Reads lines of text in pictures: the vision half of ABINet, from a safetensors file in models/lodestar.",
    inputs=(Input("file", "COMBO", "A file of models/lodestar with ABINet's vision weights, or one of the small readers that come with the pack.", SHAPES, choices=_reader_files),),
    outputs=(Output("LODESTAR_RECOGNISER", "recogniser", "For Glyph-Adaptive Attention and Text Super-Resolution."),),
    run=_recogniser,
    help="""For text convert ABINet's own weights (the vision model) to safetensors and put them into models/lodestar. Keys, behind an optional model., module. or vision.:

- backbone.resnet.*: conv1, bn1, layer1 to layer5 with blocks of conv1, bn1, conv2, bn2, downsample
- backbone.transformer.layers.*: self_attn, linear1, linear2, norm1, norm2
- attention.k_encoder, attention.k_decoder, attention.project, attention.pos_encoder.pe
- cls.weight, cls.bias: class 0 is no character, then a to z, 1 to 9, 0

Widths and depths are read from the shapes.

The first bundled reader reads the demo models' scenes, which hold no text: a circle is o, a square h, a triangle a, a cross x, from left to right, up to three. It is the pack's measuring network,
no text recogniser. The second reads lines of the bundled font (Demo Text Line).
""",
    part_of=GlyphAdaptiveAttention.node_id,
))
