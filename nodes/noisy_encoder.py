"""Noise-aware encoders: training, files, and the guidance by texts and pictures that they give."""
from __future__ import annotations

from ..guidance.loss.semantic_diffusion import SemanticDiffusionGuidance
from ..guidance.training.noisy_encoder import TrainNoiseAwareEncoder
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of
from ._kept import reader, written

ENCODER = "LODESTAR_NOISY_ENCODER"
BUNDLED = "bundled: demo scenes, after the demo scene encoder"
LOADER, SAVER = "Load Noise-Aware Encoder", "Save Noise-Aware Encoder"
_OUT = Output(ENCODER, "encoder", "For Semantic Diffusion Guidance.")


def _train(model, vae, clip_vision, latent, **values):
    from ..guidance.host.examples import encoder_examples, train_encoder
    from ..guidance.host.vision import encoder
    method = TrainNoiseAwareEncoder(**values).validate()
    latents, embeddings = encoder_examples(model, vae, encoder(clip_vision, method.title), latent, method.title)
    found, report = train_encoder(method, model, latents, embeddings)
    text = f"{len(latents)} examples, embeddings of {found.width} numbers\n" + "\n".join(
        f"at {100 * p:.0f} % of the schedule: cosine with the own picture {v:.2f} above that with others" for p, v in report.items())
    return Shown((found, text), text)


def _guide(model, encoder, text="", clip=None, clip_vision=None, reference=None, **values):
    import torch

    from ..guidance.host.attach import attach
    from ..guidance.host.examples import samples_of
    from ..guidance.host.vision import encoder as seeing
    from ..guidance.host.vision import text_embeddings
    from ..guidance.loss.clip import lines_of
    from ..guidance.method import BadInput
    title, lines, texts, known = SemanticDiffusionGuidance.title, lines_of(text or ""), None, None
    if lines:
        if clip is None:
            raise BadInput(title, "clip", None, "A text needs the CLIP that belongs to the encoder which the noise-aware one was trained after.")
        texts = text_embeddings(clip, lines, None if clip_vision is None else seeing(clip_vision, title), title)
    if reference is not None:
        with torch.inference_mode(False):
            known = model.get_model_object("latent_format").process_in(samples_of(title, reference, "reference").clone().float())
    if texts is None and known is None:
        raise BadInput(title, "text", text, "Write a text, or connect a reference.")
    return attach(model, SemanticDiffusionGuidance(encoder=encoder, texts=texts, reference=known, **values))


def _parse():
    from ..guidance.training.noisy_encoder import parse_encoder
    return parse_encoder


_files, _load = reader(LOADER, {BUNDLED: "noisy_encoder"}, _parse)


def _save(encoder, prefix):
    return written(SAVER, encoder, prefix, "noise-aware encoder")


NODES = (
    NodeDef(
        **about(SemanticDiffusionGuidance),
        inputs=(Input("model", "MODEL", "The model to guide."), *inputs_of(SemanticDiffusionGuidance),
                Input("text", "STRING", "What the pictures are to be like; one for all, one a line for each picture of the batch, or several whose mean counts.", "", multiline=True, optional=True),
                Input("clip", "CLIP", "The text encoder that belongs to the image encoder.", optional=True),
                Input("clip_vision", "CLIP_VISION", "The image encoder that the noise-aware one was trained after; wanted where it projects the texts itself (Load Demo Vision).", optional=True),
                Input("reference", "LATENT", "Pictures that the samples are to be like, as latents of this model (VAE Encode).", optional=True)),
        outputs=(Output("MODEL", "model", "The model with the guidance."),), run=lambda **values: (_guide(**values),)),
    NodeDef(
        **about(TrainNoiseAwareEncoder),
        inputs=(Input("model", "MODEL", "The model of these latents: their scale, and the noise schedule."), Input("vae", "VAE", "Decodes the latents, for the image encoder."),
                Input("clip_vision", "CLIP_VISION", "The image encoder whose embeddings are learned."), Input("latent", "LATENT", "A batch of clean latents: sampled ones, or encoded pictures."),
                *inputs_of(TrainNoiseAwareEncoder)),
        outputs=(_OUT, Output("STRING", "report", "How well it tells examples that were kept aside, by the share of the schedule.")), run=_train),
    NodeDef(
        node_id="LodestarLoadNoiseAwareEncoder", title=LOADER, category=category("training"), description="Reads a noise-aware encoder from a safetensors file in models/lodestar.",
        inputs=(Input("file", "COMBO", "A file of models/lodestar, or the small one that comes with the pack.", BUNDLED, choices=_files),), outputs=(_OUT,), run=_load,
        part_of=SemanticDiffusionGuidance.node_id,
        help="""Files are those of Save Noise-Aware Encoder, moved to models/lodestar. Keys: encoder.enter, encoder.time.0, encoder.time.2, encoder.blocks.I.norm, .film, .conv, encoder.norm, encoder.leave, weight
and bias each; encoder.leave.weight is [embedding, width]. The network takes the noisy latent divided by sqrt(a^2 + s^2) and 16 sines and cosines of the share of noise.

The bundled file gives the embeddings of Load Demo Vision with "scenes and captions" for latents of both demo models; it was trained by demo/train_noisy_encoder.py.
"""),
    NodeDef(
        node_id="LodestarSaveNoiseAwareEncoder", title=SAVER, category=category("training"), description="Writes a noise-aware encoder as a safetensors file into the output folder.",
        inputs=(Input("encoder", ENCODER, "The encoder, from Train Noise-Aware Encoder."), Input("prefix", "STRING", "Name of the file in the output folder; a number is added.", "lodestar/encoder")),
        outputs=(Output("STRING", "path", "Where it was written."),), run=_save, output_node=True, part_of=TrainNoiseAwareEncoder.node_id,
        help="Half precision. Move the file to models/lodestar to load it again.\n"),
)
