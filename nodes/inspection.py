"""Looking at a run, and at a model."""
from ..guidance.inspection.inspector import GuidanceInspector
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of


def _inspect(model, **values):
    from ..guidance.host.attach import attach
    from ..guidance.inspection.inspector import Record
    record = Record()
    record.latent_format = model.get_model_object("latent_format")
    return attach(model, GuidanceInspector(record=record, **values).validate()), record


def _plot(record, latent, vae):
    import numpy
    import torch
    from PIL import Image

    from ..guidance.inspection.plot import plot, summary
    pictures = []
    for sigma, denoised in record.previews if vae is not None else ():
        pixels = vae.decode(record.latent_format.process_out(denoised))
        pixels = pixels.reshape(-1, *pixels.shape[-3:])[0]       # of a video the first frame
        pictures.append((sigma, Image.fromarray((pixels.cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy())))
    sheet = torch.from_numpy(numpy.asarray(plot(record.rows, pictures).convert("RGB")).copy()).float()[None] / 255
    text = summary(record.rows)
    return Shown((sheet, text), text)


def _layers(model):
    from ..guidance.host.geometry import of_model
    text = of_model(model).describe()
    return Shown((text,), text)


NODES = (
    NodeDef(
        **about(GuidanceInspector),
        inputs=(Input("model", "MODEL", "The model to look at, with its guidance."), *inputs_of(GuidanceInspector)),
        outputs=(Output("MODEL", "model", "The same model, observed. Connect it to the sampler."),
                 Output("LODESTAR_RECORD", "record", "What the run shows, for the Inspector Plot.")),
        run=_inspect),
    NodeDef(
        node_id="LodestarInspectorPlot",
        title="Inspector Plot",
        category=category("inspection"),
        description="Draws what a Guidance Inspector saw in the run that made the connected latent.",
        inputs=(Input("record", "LODESTAR_RECORD", "From the Guidance Inspector."),
                Input("latent", "LATENT", "The sampler's output: makes sure that the plot is drawn after the run."),
                Input("vae", "VAE", "Decodes the previews; without it only the curves are drawn.", optional=True)),
        outputs=(Output("IMAGE", "image", "Curves over the sampler calls, and the previews."), Output("STRING", "summary", "A few figures in words.")),
        run=_plot,
        aliases=("guidance plot",),
        part_of="LodestarGuidanceInspector",
        help="""Curves over the sampler calls: the root mean square of the guided and the conditional prediction, of what guidance added, the cosine between the
noise predictions of positive and negative prompt, and how many predictions were evaluated. A curve is missing where its prediction was not
evaluated (for example outside a guidance interval).

The record is that of the last run that used the inspector's MODEL output: give each sampler an inspector of its own.
"""),
    NodeDef(
        node_id="LodestarListLayers",
        title="List Layers",
        category=category("inspection"),
        description="Lists the layers of a model by the names that the fields called `layers` take.",
        inputs=(Input("model", "MODEL", "Any model."),),
        outputs=(Output("STRING", "layers", "One line per stage."),),
        run=_layers,
        output_node=True,
        aliases=("model layers", "blocks"),
        help="""A layer is called by its stage and its number: `input.4`, `middle.0`, `output.3` in U-Nets, `double.7`, `single.12` in Flux-like networks,
`block.20` in Wan or LTX. Selectors name several: `middle`, `output.3-5`, `double.*`, `double.25%-75%`, `all`; commas separate them, a leading
minus takes layers out again (`all, -middle`).
"""),
)
