"""One prediction: which conditionings are evaluated, which rows of a network call belong to whom, and what came out."""
from __future__ import annotations

import uuid

import torch

from ..attention.edits import merge_groups
from ..attention.regions import WHOLE
from ..layers import select
from ..method import NEGATIVE, POSITIVE

OPTION = "lodestar_call"


def spread(tokens, rows):
    """Tokens [n, length, width] of one or n pictures for `rows` rows, picture after picture as often as there are prompts in the call."""
    n = tokens.shape[0]
    if n == 1 or rows % n:
        return tokens[:1].expand(rows, -1, -1)
    return tokens.repeat(rows // n, 1, 1)


class Call:
    """Belongs to one sampler call; reached by hooks through transformer_options, so nothing is global and threads do not meet."""

    def __init__(self, session, plan, step):
        self.session, self.plan, self.step = session, plan, step
        self.predictions = {}
        self.batched = [b for b in plan.branches if b.model is None and b.transform is None and b.sigma_factor == 1.0]
        self.single = [b for b in plan.branches if b not in self.batched]
        self.main_done = False
        self.combined = False
        self.negative_seen = False

    # conditionings

    def conds_of(self, branch):
        """The conditioning list of a branch: copies of its prompt's entries under uuids of their own (step caches file by uuid)."""
        session = self.session
        source = session.prompt_conds(branch.prompt)
        out = []
        for entry in source:
            entry = dict(entry)
            name = f"{entry.get('uuid', id(entry))}/{session.branch_number(branch)}"
            entry["uuid"] = uuid.uuid5(uuid.NAMESPACE_OID, name)
            session.roles[entry["uuid"]] = branch
            session.entries[entry["uuid"]] = entry
            out.append(entry)
        return out

    def edits_of(self, branch):
        """The attention edits of a role, outermost first."""
        own = branch.edits if branch is not None else ()
        if branch is not None and branch.model is not None:
            return own
        return own + tuple(e for e in self.plan.edits if e.wanted(branch))

    @property
    def edited(self):
        """Every edit that any role of this call carries."""
        found = list(self.plan.edits)
        for branch in self.plan.branches:
            found += [e for e in branch.edits if e not in found]
        return tuple(dict.fromkeys(found))

    # rows

    def role(self, chunk_uuid, chunk_index):
        """The Branch that a chunk of the batch belongs to, or None."""
        if chunk_uuid is not None:
            return self.session.roles.get(chunk_uuid)
        if self.session.forced_role is not None:       # hosts without uuids: the order of the conditionings tells
            return self.session.forced_role[chunk_index]
        return POSITIVE if chunk_index == 0 else NEGATIVE

    def roles(self, options):
        indices = options.get("lodestar_chunks") or options.get("cond_or_uncond") or [0]
        uuids = options.get("uuids") or [None] * len(indices)
        return [self.role(u, i) for u, i in zip(uuids, indices)]

    def chunks(self, options):
        """[(edits, window)] of a network call's chunks: the edits that their prompts carry, outermost first, and the part of the picture that they show."""
        roles = self.roles(options)
        uuids = options.get("uuids") or [None] * len(roles)
        marked = any(e.get("lodestar_prompt") is not None for e in self.session.entries.values())
        found = []
        for role, u in zip(roles, uuids):
            entry = self.session.entries.get(u, {})
            # an edit that knows the words of one prompt keeps to it where the positive conditioning holds several
            edits = tuple(e for e in self.edits_of(role) if getattr(e, "mark", None) is None or not marked or entry.get("lodestar_prompt") == e.mark)
            found.append((edits, self._window(entry)))
        return found

    def _window(self, entry):
        """(left, top, width, height) of a conditioning's area, in fractions of the latent."""
        area = entry.get("area")
        if not area or self.step is None or area[0] == "percentage":
            return WHOLE
        half, (high, wide) = len(area) // 2, self.step.x.shape[-2:]
        h, w, y, x = area[half - 2], area[half - 1], area[-2], area[-1]
        return x / wide, y / high, min(w, wide - x) / wide, min(h, high - y) / high

    def groups(self, options, rows, layer, kind):
        """[(start, stop, edits)] of a network call's rows at one layer. Chunks of other parts of the picture are groups of their own."""
        chunks = self.chunks(options)
        size = rows // len(chunks)
        labels = [(tuple(e for e in edits if kind in e.kinds and layer in self.session.selected(e)), window) for edits, window in chunks]
        labels = [(edits, window if edits else None) for edits, window in labels]
        return [(start, stop, label[0]) for start, stop, label in merge_groups(labels, size)]

    def window_at(self, options, row, rows):
        """The window of the chunk that a row belongs to."""
        chunks = self.chunks(options)
        return chunks[row // (rows // len(chunks))][1]

    def layers_with(self, kind):
        """The layers that any edit of this call touches with attention of one kind."""
        found = set()
        for edit in self.edited:
            if kind in edit.kinds:
                found |= self.session.selected(edit)
        return found


class Session:
    """What the host side keeps for one sampling run."""

    def __init__(self, run, guider, arguments):
        self.run, self.guider, self.arguments = run, guider, arguments
        self.roles, self.entries = {}, {}
        self.forced_role = None
        self.prompt_first = False      # guidance.host.places.prompt_first, looked up before the network is called
        self._branches, self._selected, self._prompts = {}, {}, {}
        self._geometry = None
        self.peers = {}
        self.converted = {}      # {Prompt: entries} of the methods' own prompts, their hooks registered

    @property
    def model(self):
        return self.guider.inner_model

    @property
    def geometry(self):
        if self._geometry is None:
            from .geometry import of_network
            self._geometry = of_network(self.model.diffusion_model)
        return self._geometry

    def branch_number(self, branch):
        return self._branches.setdefault(branch, len(self._branches))

    def selected(self, edit):
        """The layers of this model that an edit names."""
        if edit not in self._selected:
            selector = edit.layers or edit.default_layers(self.geometry)
            self._selected[edit] = frozenset(select(self.geometry, selector, type(edit).__name__))
        return self._selected[edit]

    def note_prompts(self):
        """Files the guider's own conditionings under their roles; called once their uuids exist."""
        taken = set()
        for name, branch in (("positive", POSITIVE), ("negative", NEGATIVE)):
            for entry in self.guider.conds.get(name) or []:
                if "uuid" in entry:
                    if entry["uuid"] in taken:      # the host gives a prompt with an area an opposite that is its copy
                        entry["uuid"] = uuid.uuid4()
                    taken.add(entry["uuid"])
                    self.roles[entry["uuid"]] = branch
                    self.entries[entry["uuid"]] = entry

    def prompt_conds(self, prompt):
        """The processed conditioning entries of "positive", "negative" or a Prompt."""
        if isinstance(prompt, str):
            conds = self.guider.conds.get(prompt)
            if not conds:
                raise ValueError(f"A guidance node on this model needs the {prompt} prompt, but {type(self.guider).__name__} was given none. "
                                 f"Use a guider with a {prompt} conditioning (CFGGuider or KSampler).")
            return conds
        if prompt not in self._prompts:
            ready = self.converted.get(prompt)
            self._prompts[prompt] = self.process(self.model, prompt.cond if ready is None else ready, converted=ready is not None)
        return self._prompts[prompt]

    def process(self, model, conditioning, converted=False):
        """Conditioning of the graph, made ready for a model as the host does at the start of a run."""
        import comfy.sampler_helpers
        import comfy.samplers
        entries = [dict(c) for c in conditioning] if converted else comfy.sampler_helpers.convert_cond(conditioning)
        for entry in entries:
            entry.setdefault("uuid", uuid.uuid4())
            if not converted or model is not self.model:
                entry.pop("hooks", None)      # registered with the sampled model only
        noise, latent, mask, seed = (self.arguments[k] for k in ("noise", "latent_image", "denoise_mask", "seed"))
        device = self.guider.model_patcher.load_device
        if latent is not None and torch.count_nonzero(latent) > 0:
            latent = model.process_latent_in(latent)
        return comfy.samplers.process_conds(model, noise, {"positive": entries}, device, latent, mask, seed)["positive"]

    def cross_tokens(self, prompt, rows, like):
        """The text tokens [rows, n, width] of a Prompt, several entries one after the other; a conditioning with a row for each picture keeps them."""
        parts = [e["model_conds"]["c_crossattn"].cond for e in self.prompt_conds(prompt) if "c_crossattn" in e.get("model_conds", {})]
        if not parts:
            raise ValueError(f"the {prompt.name} conditioning has no text tokens (c_crossattn) for this model")
        return torch.cat([spread(p.to(device=like.device, dtype=like.dtype), rows) for p in parts], 1)
