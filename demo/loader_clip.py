"""The bundled text encoder as the host's CLIP: words instead of sub-words, the host's prompt weights, chunks of 24 tokens."""
import logging

import comfy.ops
import comfy.sd
import torch
from comfy import sd1_clip
from torch import nn

from . import text
from .weights_file import FOLDER, fill, read

KEY = "l"     # the name under which other nodes look for a CLIP's tokens


class DemoTokenizer:
    """Texts to {"l": chunks of 24 (id, weight)}; ComfyUI's prompt weights, e.g. "(red:1.3) circle", are understood."""

    def __init__(self, embedding_directory=None, tokenizer_data=None, **_):
        self.embedding_directory = embedding_directory

    def clone(self):
        return self

    def state_dict(self):
        return {}

    def tokenize_with_weights(self, prompt, return_word_ids=False, **_):
        """Chunks of START, up to 22 words, END and padding; with `return_word_ids` each token is (id, weight, number of its word).

        Words that are not in the vocabulary are left out; one warning names them."""
        words, unknown = [], []
        for part, weight in sd1_clip.token_weights(sd1_clip.escape_important(prompt), 1.0):
            ids, missing = text.encode_words(sd1_clip.unescape_important(part))
            words += [(i, weight) for i in ids]
            unknown += missing
        if unknown:
            logging.warning("Lodestar demo model: ignored words that it does not know: %s. It knows: %s.",
                            ", ".join(dict.fromkeys(unknown)), ", ".join(text.WORDS))
        room = text.LENGTH - 2
        chunks = []
        for first in range(0, max(1, len(words)), room):
            chunk = [(i, w, first + n + 1) for n, (i, w) in enumerate(words[first:first + room])]
            chunk = [(text.START, 1.0, 0), *chunk, (text.END, 1.0, 0)]
            chunks.append(chunk + [(text.PAD, 1.0, 0)] * (text.LENGTH - len(chunk)))
        return {KEY: chunks if return_word_ids else [[t[:2] for t in c] for c in chunks]}

    def untokenize(self, token_weight_pair):
        names = {i: w for w, i in reversed(text.VOCABULARY.items())} | {text.PAD: "<pad>", text.START: "<start>", text.END: "<end>"}
        return [(t, names[t[0]]) for t in token_weight_pair]

    def decode(self, token_ids, skip_special_tokens=True):
        names = {i: w for w, i in reversed(text.VOCABULARY.items())}
        return " ".join(names[i] for i in token_ids if i in names)


class DemoTextModel(text.TextEncoder, sd1_clip.ClipTokenWeightEncoder):
    """The text encoder of the host's layers, in float32: chunks of tokens to (cond [1, 24 * chunks, 128], pooled [1, 128])."""

    special_tokens = {"start": text.START, "end": text.END, "pad": text.PAD}

    def __init__(self, device="cpu", dtype=None, model_options=None, **_):
        super().__init__()
        _use_layers(self, comfy.ops.manual_cast, device)
        self.position.data = self.position.data.to(device)
        self.dtypes = {torch.float32}
        self.execution_device = None
        self.requires_grad_(False).eval()

    def set_clip_options(self, options):
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self):
        self.execution_device = None

    def encode(self, tokens):
        device = self.execution_device or self.position.device
        return self(torch.tensor(tokens, device=device))

    def forward(self, ids):
        mask = (ids != text.PAD)[:, None, None, :]
        x = self.embed(ids) + self.position.to(ids.device)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return x, x[torch.arange(len(x), device=x.device), (ids == text.END).int().argmax(1)]

    def encode_token_weights(self, token_weight_pairs):
        pairs = token_weight_pairs[KEY] if isinstance(token_weight_pairs, dict) else token_weight_pairs
        return sd1_clip.ClipTokenWeightEncoder.encode_token_weights(self, [[t[:2] for t in c] for c in pairs])

    def load_sd(self, sd):
        return self.load_state_dict(sd, strict=False, **({"assign": True} if getattr(self, "can_assign_sd", False) else {}))


def _use_layers(module, operations, device):
    """Replaces PyTorch's layers by the host's, which know its memory management; their values are loaded afterwards."""
    options = {"device": device, "dtype": torch.float32}
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, operations.Linear(child.in_features, child.out_features, **options))
        elif isinstance(child, nn.Embedding):
            new = getattr(operations, "Embedding", nn.Embedding)
            setattr(module, name, new(child.num_embeddings, child.embedding_dim, **options))
        elif isinstance(child, nn.LayerNorm):
            setattr(module, name, operations.LayerNorm(child.normalized_shape, elementwise_affine=child.elementwise_affine, **options))
        else:
            _use_layers(child, operations, device)


class _Target:
    clip, tokenizer, params = DemoTextModel, DemoTokenizer, {}


def make_clip(folder=FOLDER, disable_dynamic=False):
    """The host's CLIP object of the bundled text encoder. Raises FileNotFoundError or ValueError that names the weight file."""
    weights = read("text", folder)
    options = {"disable_dynamic": True} if disable_dynamic else {}
    clip = comfy.sd.CLIP(_Target, **options)
    dynamic = bool(getattr(clip.patcher, "is_dynamic", bool)())
    fill(clip.cond_stage_model, weights, "text", folder, dynamic)
    clip.patcher.cached_patcher_init = (load_clip_patcher, (folder,))
    return clip


def load_clip_patcher(folder=FOLDER, disable_dynamic=False):
    """The ModelPatcher of a fresh CLIP, as newer hosts ask for it."""
    return make_clip(folder, disable_dynamic).patcher
