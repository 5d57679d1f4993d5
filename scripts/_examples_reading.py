"""The examples of nodes that change the whole network, and of those that read from it."""

from __future__ import annotations

from ._examples import SEED, STEPS, guided
from ._graph import Graph

# examples with models that do not come with the pack, and what their picture says
NEEDS_WEIGHTS = {"temporal_attention_temperature": "Temporal Attention Temperature\n\nThis example needs\nStable Video Diffusion\n(svd.safetensors)."}


def _entropy(definitions, definition, name):
    return guided(definitions, definition, name, size=192)


def _draft(definitions, definition, name):
    return guided(definitions, definition, name, kept=0.4, pool_height=2, pool_width=2, least_tokens=0)


def _temperature(definitions, definition, name):
    g = Graph(definitions, f"{definition.title}: {definition.description} Needs the checkpoint of Stable Video Diffusion (svd.safetensors) and a picture of your own; "
                           "the white rectangle is where something moves.")
    load = g.add("ImageOnlyCheckpointLoader", ckpt_name="svd.safetensors")
    picture = g.add("LoadImage")
    still = g.add("SolidMask", "Nothing", value=0.0, width=1024, height=576)
    moving = g.add("SolidMask", "Where something moves", value=1.0, width=320, height=480)
    mask = g.add("MaskComposite", destination=still[0], source=moving[0], x=352, y=48, operation="add")
    cond = g.add("SVD_img2vid_Conditioning", clip_vision=load[1], init_image=picture[0], vae=load[2])
    model = g.add(definition.node_id, model=load[0], mask=mask[0])
    samples = g.add("KSampler", model=model[0], seed=SEED, steps=STEPS, cfg=2.5, sampler_name="euler", scheduler="karras", positive=cond[0], negative=cond[1], latent_image=cond[2])
    g.add("SaveImage", "The frames", images=g.add("VAEDecode", samples=samples[0], vae=load[2])[0], filename_prefix=f"lodestar/{name}")
    return g


OWN = {
    "LodestarAttentionEntropyScaling": _entropy,
    "LodestarDraftAttention": _draft,
    "LodestarFreeU": lambda d, definition, name: guided(d, definition, name, cfg=2.0),
    "LodestarPLADIS": lambda d, definition, name: guided(d, definition, name, cfg=2.0),
    "LodestarTemporalAttentionTemperature": _temperature,
}
