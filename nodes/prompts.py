"""Methods that work on the words of a prompt, and encode it themselves."""
from __future__ import annotations

from dataclasses import replace

from ..guidance.attention.prompt_to_prompt import PromptToPrompt
from ..guidance.attention.structured import StructuredDiffusionGuidance
from ._define import Input, NodeDef, Output, about, inputs_of

_MODEL = Input("model", "MODEL", "The model to guide.")
_CLIP = Input("clip", "CLIP", "The model's text encoder.")


def _structured(model, clip, **values):
    import uuid

    from ..guidance.attention.tokens import Words
    from ..guidance.host.attach import attach
    from ..guidance.host.geometry import of_model
    from ..guidance.host.text import encode
    from ..guidance.layers import JOINT_FAMILIES
    from ..guidance.method import BadInput
    method = StructuredDiffusionGuidance(**values).validate()
    conditioning = encode(clip, method.text)
    words = Words(clip, method.text, conditioning[0][0].shape[1], method.title)
    joint = of_model(model).family in JOINT_FAMILIES
    if joint and method.chosen == "keys":
        raise BadInput(method.title, "mode", method.mode, "This model's text takes part in joint attention, where keys cannot be replaced alone. Choose values.")
    mark = uuid.uuid4().hex
    method = method.with_texts(words, conditioning, lambda text: encode(clip, text)[0][0], mark)
    if joint:
        return model.clone(), [[method.texts[0].cond[0][0], d] for _, d in conditioning]
    return attach(model, method), [[t, {**d, "lodestar_prompt": mark}] for t, d in conditioning]


def _paired(model, clip, latent, **values):
    import uuid

    import torch

    from ..guidance.attention.tokens import Words
    from ..guidance.host.attach import attach
    from ..guidance.host.text import encode
    from ..guidance.method import BadInput
    method = PromptToPrompt(**values).validate()
    (source, more), *_ = encode(clip, method.source)
    (target, details), *_ = encode(clip, method.target)
    mark = uuid.uuid4().hex
    method = method.with_words(Words(clip, method.source, source.shape[1], method.title), Words(clip, method.target, target.shape[1], method.title), mark)
    both = {k: torch.cat((more[k], v)) if isinstance(v, torch.Tensor) and v.ndim and v.shape == getattr(more.get(k), "shape", None) else v for k, v in details.items()}
    samples = latent["samples"]
    if samples.is_nested if hasattr(samples, "is_nested") else False:
        raise BadInput(method.title, "latent", "packed", "Latents of several streams are not supported.")
    numbers = latent.get("batch_index") or list(range(samples.shape[0]))
    pairs = {**latent, "samples": samples.repeat_interleave(2, 0), "batch_index": [n for n in numbers for _ in range(2)]}
    if latent.get("noise_mask") is not None and latent["noise_mask"].shape[0] == samples.shape[0]:
        pairs["noise_mask"] = latent["noise_mask"].repeat_interleave(2, 0)
    return attach(model, method), [[torch.cat((source, target)), {**both, "lodestar_prompt": mark}]], pairs


def _multiline(inputs, *names):
    return tuple(replace(i, multiline=i.name in names) for i in inputs)


NODES = (
    NodeDef(
        **about(StructuredDiffusionGuidance),
        inputs=(_MODEL, _CLIP, *_multiline(inputs_of(StructuredDiffusionGuidance), "text", "phrases")),
        outputs=(Output("MODEL", "model", "The model with this method added."), Output("CONDITIONING", "positive", "The prompt, for the sampler.")),
        run=_structured),
    NodeDef(
        **about(PromptToPrompt),
        inputs=(_MODEL, _CLIP, Input("latent", "LATENT", "The latent to sample, as for one prompt; every picture of it becomes a pair."),
                *_multiline(inputs_of(PromptToPrompt), "source", "target", "weights")),
        outputs=(Output("MODEL", "model", "The model with this method added."), Output("CONDITIONING", "positive", "Both prompts, for the sampler."),
                 Output("LATENT", "latent", "Pairs of pictures with the same noise, source first.")),
        run=_paired),
)
