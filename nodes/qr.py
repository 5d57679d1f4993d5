"""QR codes: making one, reading one; refining a latent by a loss."""
from ..guidance.loss.qr_code import LEVELS
from ..guidance.loss.refine import LossRefinement
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of

SERVES = LossRefinement.node_id


def _draw(text, width, height, level, module, quiet_zone):
    from ..guidance.loss.qr_code import drawn
    return (drawn(text, level, width, height, module, quiet_zone),)


def _read(image, code=None):
    from ..guidance.loss.qr import find_code, wrong_share
    from ..guidance.loss.qr_code import read
    from ..guidance.method import BadInput
    texts = read(image[..., :3])
    share = [0.0] * len(texts)
    if code is not None:
        if code.shape[0] not in (1, image.shape[0]):
            raise BadInput("Read QR Code", "code", f"{code.shape[0]} pictures", f"Give one, or one for each of the {image.shape[0]} pictures.")
        share = [float(wrong_share(picture[None, ..., :3].movedim(-1, 1), find_code(code[i % code.shape[0], ..., :3].movedim(-1, 0), "Read QR Code", "code"))) for i, picture in enumerate(image)]
    wrong = sum(share) / len(share)
    shown = "\n".join((f"reads: {t}" if t else "not readable") + (f" ({100 * s:.1f} % of the modules wrong)" if code is not None else "") for t, s in zip(texts, share))
    return Shown((next((t for t in texts if t), ""), sum(map(bool, texts)) / len(texts), wrong), shown)


def _refine(model, latent, **values):
    method = LossRefinement(**values).validate()
    from ..guidance.host.refine import refine
    found, before, after = refine(method, model, latent)
    numbers = lambda t: ", ".join(f"{v:.4g}" for v in t.tolist())
    return Shown((found,), "off" if before is None else f"loss before: {numbers(before)}\nloss after: {numbers(after)}")


NODES = (
    NodeDef(
        node_id="LodestarQRCode",
        title="QR Code",
        category=category("loss"),
        description="A clean picture of a QR code, as large as fits, in the middle.",
        inputs=(Input("text", "STRING", "What the code says.", "https://example.org"),
                Input("width", "INT", "Width of the picture in pixels: that of what is sampled.", 512, 32, 16384, 8), Input("height", "INT", "Height of the picture in pixels.", 512, 32, 16384, 8),
                Input("level", "COMBO", "How much of the code may be damaged: L 7 %, M 15 %, Q 25 %, H 30 %. Higher levels need more modules.", "M", choices=LEVELS),
                Input("module", "INT", "Pixels of a module; 0: as many as fit. A multiple of the VAE's 8 pixels is best.", 0, 0, 256, 1),
                Input("quiet_zone", "INT", "Light modules that have to fit around the code.", 4, 0, 16, 1)),
        outputs=(Output("IMAGE", "image", "The code: black on white."),),
        run=_draw,
        part_of=SERVES,
        help="Needs the package segno (pip install segno). A picture of a code from anywhere does as well, if it is upright, dark on light and alone.\n",
    ),
    NodeDef(
        node_id="LodestarReadQRCode",
        title="Read QR Code",
        category=category("loss"),
        description="What a QR reader reads in a picture, and how many modules are wrong.",
        inputs=(Input("image", "IMAGE", "The picture with a code in it."), Input("code", "IMAGE", "The clean code that it should hold, for the share of wrong modules.", optional=True)),
        outputs=(Output("STRING", "text", "The first text that was read; empty where none was."), Output("FLOAT", "readable", "Share of the batch's pictures that could be read."),
                 Output("FLOAT", "wrong", "Mean share of modules whose middle has the wrong brightness; 0 without a code.")),
        run=_read,
        output_node=True,
        part_of=SERVES,
        help="""Reads with ZXing (pip install zxing-cpp). A phone's camera forgives more, and sees the picture at an angle and in bad light: leave some room, a few per cent of wrong modules
at most. Modules count as wrong by the thresholds of the scanning-robust loss, 0.45 for dark and 0.65 for light ones.
""",
    ),
    NodeDef(
        **about(LossRefinement),
        inputs=(Input("model", "MODEL", "The model that made the latent: its latents' scale, and previews."), Input("latent", "LATENT", "The finished latent."), *inputs_of(LossRefinement)),
        outputs=(Output("LATENT", "latent", "The refined latent."),),
        run=_refine,
    ),
)
