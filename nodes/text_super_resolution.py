"""Text Super-Resolution (TextSR), its network's file, and lines of text to try it on."""
from ..guidance.inverse.text_super_resolution import TextSuperResolution
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of
from ._kept import reader

LOADER, LINE = "Load Text Network", "Demo Text Line"
BUNDLED = "bundled: lines of one font"


def _parse():
    from ..guidance.inverse.text_network import parse
    return parse


_files, _load = reader(LOADER, {BUNDLED: "text_lines"}, _parse)


def _restore(image, network=None, **values):
    import comfy.model_management as management

    from ..demo.lines import network as bundled
    method = TextSuperResolution(network=network if network is not None else bundled(), **values).validate()
    pictures, used = method.restored(image[..., :3].movedim(-1, 1).float(), management.throw_exception_if_processing_interrupted)
    text = "\n".join(line for lines in used for line in lines)
    return Shown((pictures.movedim(1, -1).contiguous(), text), text)


def _line(text, width, height, left, top, line_width, left_over, noise, seed):
    from ..demo.lines import placed
    from ..guidance.method import BadInput
    try:
        good, bad, mask = placed(text, (height, width), (top, left), line_width, left_over, noise, seed)
    except ValueError as error:
        raise BadInput(LINE, "text", text, str(error)) from error
    return good.movedim(0, -1)[None], bad.movedim(0, -1)[None], mask[None]


NODES = (
    NodeDef(
        **about(TextSuperResolution),
        inputs=(Input("image", "IMAGE", "The picture at the size that is wanted, enlarged by an upscale model or by interpolation."), *inputs_of(TextSuperResolution)),
        outputs=(Output("IMAGE", "image", "The picture with its lines of text drawn anew."), Output("STRING", "text", "What each line was said to be, given or read.")),
        run=_restore, output_node=True),
    NodeDef(
        node_id="LodestarLoadTextNetwork", title=LOADER, category=category("inverse"),
        description="Reads the network of Text Super-Resolution from a safetensors file in models/lodestar.",
        inputs=(Input("file", "COMBO", "A file of models/lodestar in the layout below, or the small one that comes with the pack.", BUNDLED, choices=_files),),
        outputs=(Output("LODESTAR_TEXT_NETWORK", "network", "For Text Super-Resolution."),), run=_load, part_of=TextSuperResolution.node_id,
        help="""The authors of TextSR published no weights; the layout is the pack's own. Each with weight and bias, widths and depths are read from the shapes:

- line [2] (a tensor alone): height and width of a line in pixels
- enter: a convolution of the noisy and the low-resolution line, in cells of 2 x 2 pixels (24 channels); leave: to the velocity (12 channels)
- time.0, time.2: linear layers of the noise level
- text.embed.weight [258, w]: the 256 bytes, 256 behind the text's end, 257 its end; text.place: of a character's place in the line; text.layers.N: torch.nn.TransformerEncoderLayer
- down.I, middle, up.I: conv1, conv2, time, skip (where widths differ), attend.to_q, to_k, to_v, to_out, place, offset; reduce.I: convolutions that halve

The bundled file draws lines of one font, 16 x 64 pixels, of four or five characters. It was trained by demo/train_text_lines.py for 8,927 steps. On 48 lines of their own at a quarter of their size a reader reads 40 % of
the characters as they are, 58 % drawn by the picture alone, 82 % told their text, 90 % at twice the text's scale; 60 % with the text that it reads itself, 76 % told one wrong character. PSNR: 15.8, 17.9, 19.8 dB. At a sixth: 18, 24 and 42 %.
"""),
    NodeDef(
        node_id="LodestarDemoTextLine", title=LINE, category=category("demo"),
        description="Draws a line of text in the bundled font, and the same as it is after it was made small: to try Text Super-Resolution on.",
        inputs=(Input("text", "STRING", "Four or five letters and digits.", "LODE7"), Input("width", "INT", "Of the picture, in pixels.", 128, 64, 1024, 1), Input("height", "INT", "Of the picture, in pixels.", 128, 32, 1024, 1),
                Input("left", "INT", "Where the line begins, in pixels.", 16, 0, 1024, 1), Input("top", "INT", "Where the line begins, in pixels.", 52, 0, 1024, 1),
                Input("line_width", "INT", "Of the line, in pixels; it is a quarter as high.", 96, 32, 1024, 1),
                Input("left_over", "FLOAT", "Size of the small picture, as a share of a line of 16 x 64 pixels.", 0.25, 0.1, 1.0, 0.01), Input("noise", "FLOAT", "Noise of the small picture.", 0.05, 0.0, 1.0, 0.01),
                Input("seed", "INT", "Of colours and noise.", 0, 0, 2**32 - 1, 1)),
        outputs=(Output("IMAGE", "picture", "The line as it should be."), Output("IMAGE", "small", "The line after it was made small and enlarged again."), Output("MASK", "mask", "Where it is.")),
        run=_line, part_of=TextSuperResolution.node_id,
        help="""The font has capital letters and digits of 5 x 7 dots; small letters are drawn as capitals. The characters fill the line, so that four of them are wider than five. Colours are random, by the seed.

What is left of a line: it is brought to a share of 16 x 64 pixels (0.25: 4 x 16), noise is added, and it is enlarged again by interpolation. A quarter is hardly legible for the eye or for the bundled reader.
"""),
)
