"""One prediction: which conditionings are evaluated, which rows of a network call belong to whom, and what came out."""
from __future__ import annotations

import uuid

import torch

from ..attention.edits import merge_groups, titled
from ..attention.regions import WHOLE
from ..layers import select
from ..method import NEGATIVE, POSITIVE, Branch
from . import windows
from .references import entry_of

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
        # references (guidance.host.references): what is kept of them, how many chunks are still to be evaluated, whether they are evaluated ahead, the call's options
        self.bank, self.expected, self.ahead, self.options = {}, 0, False, None
        self.live, self.network, self._picked = None, None, {}      # the options of the network call that runs; its network, for edits of its features; layers of the block edits at this step
        self._chunks, self._tables = {}, {}     # what `chunks` and `_placed` found: every layer asks for it
        self._carried = (None, (), ())          # what `_of_plan` found
        self.notes = {}                         # {(edit, Branch): [(uuid, layer, tensor)]} of the readings

    def close(self):
        """Lets go of the options, whose hooks hold the call: its latents are freed at once, without the garbage collector."""
        self.options = self.live = self.network = None

    # conditionings

    def conds_of(self, branch, x=None):
        """The conditioning list of a branch: copies of its prompt's entries under uuids of their own (step caches file by uuid).

        x: the network's input where it may have another height and width than the sampler's.
        """
        session = self.session
        if branch.source is not None:
            source = [entry_of(session.prompt_conds(branch.prompt), float(self.step.sigma.flatten()[0]), branch.source.control)]
        elif x is None or x.shape[-2:] == self.step.x.shape[-2:]:
            source = session.prompt_conds(branch.prompt)
        else:
            source = session.resized(branch.prompt, x, self.step.x.shape)
        out = []
        for number, entry in self.cut(branch, source):
            entry = dict(entry) if x is None else {**entry, "lodestar_cells": tuple(x.shape[-2:])}
            name = f"{entry.get('uuid', id(entry))}/{session.branch_number(branch)}{number}"
            entry["uuid"] = uuid.uuid5(uuid.NAMESPACE_OID, name)
            session.roles[entry["uuid"]] = branch
            session.entries[entry["uuid"]] = entry
            out.append(entry)
        return out

    def cut(self, branch, source):
        """[(mark, entry)] of the entries of a branch's prompt, each once per window where the branch has windows."""
        if branch.windows is None:
            return [("", entry) for entry in source]
        x = self.step.x
        parts = branch.windows.of(x.shape)
        controls = lambda control, window: self.session.cropped_control(control, window, x.shape)
        return [(f"/{i}", self.session.laid_out(entry, cut, x)) for entry in source for i, cut in windows.crops(entry, parts, x, controls)]

    def edits_of(self, branch):
        """The attention edits of a role, outermost first."""
        if branch is None:
            return tuple(e for e in self.plan.edits if e.wanted(None) and e.acts(self.step))
        own = tuple(r.edit for r in self.readings if Branch(r.prompt) == branch) + branch.edits
        if branch.model is not None:
            return own
        if branch.source is not None:
            return own + tuple(e for e in self.plan.edits if e.everywhere)
        return own + tuple(e for e in self.plan.edits if e.wanted(branch) and e.acts(self.step))

    @property
    def edited(self):
        """Every edit that any role of this call carries."""
        return self._of_plan()[1]

    @property
    def references(self):
        """The branches that any edit of this call looks at."""
        return self._of_plan()[2]

    def _of_plan(self):
        """(plan, its edits, the branches they look at); every layer asks for them."""
        if self._carried[0] is not self.plan:
            found = [r.edit for r in self.readings] + list(self.plan.edits)
            for branch in self.plan.branches:
                found += [e for e in branch.edits if e not in found]
            edits = tuple(dict.fromkeys(found))
            self._carried = self.plan, edits, tuple(dict.fromkeys(b for edit in edits for b in edit.references))
        return self._carried

    # readings

    @property
    def readings(self):
        return getattr(self.plan, "readings", ())

    def note(self, options, edit, layer, start, rows, tensor):
        """Files what an edit noted of the rows from `start` on of a call with so many rows, chunk by chunk."""
        roles = self.roles(options)
        uuids, size = options.get("uuids") or [None] * len(roles), rows // len(roles)
        with self.session.run.lock:
            for i in range(start // size, (start + tensor.shape[0]) // size):
                part = tensor[i * size - start: (i + 1) * size - start]
                self.notes.setdefault((edit, roles[i]), []).append((uuids[i], layer, part))

    def taken(self, shape):
        """{Reading: value} of this call's readings; what a call did not note (a step that a cache skipped) is the last call's."""
        kept = self.session.readings
        for reading in self.readings:
            parts = self.notes.get((reading.edit, Branch(reading.prompt)))
            if parts:
                kept[reading] = reading.edit.gather([(self.session.entries.get(u, {}).get("area"), layer, t) for u, layer, t in parts], shape)
            elif reading not in kept:
                raise RuntimeError(f"{titled(reading.edit)} noted nothing: the {reading.prompt} prompt's rows did not reach the layers that it reads.")
        return {r: kept[r] for r in self.readings}

    # blocks

    def blocks_of(self, branch):
        """The block edits of a role, outermost first."""
        if branch is None or branch.model is not None:
            return ()
        if branch.source is not None:
            return branch.blocks
        return branch.blocks + getattr(self.plan, "blocks", {}).get(branch.prompt, ())

    @property
    def blocked(self):
        """Every block edit that any role of this call carries."""
        found = [e for branch in self.plan.branches for e in branch.blocks] + [e for edits in getattr(self.plan, "blocks", {}).values() for e in edits]
        return tuple(dict.fromkeys(found))

    @property
    def rotated(self):
        """The attention edits of this call that need to know the rotary embedding."""
        return tuple(e for e in self.edited if getattr(e, "unrotates", False))

    def picked(self, edit):
        """The layers that a block edit acts on at this step."""
        if edit not in self._picked:
            chosen = self.session.selected(edit)
            self._picked[edit] = frozenset(edit.pick(tuple(x for x in self.session.geometry.layers if x in chosen), self.step))
        return self._picked[edit]

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
        uuids, net = options.get("uuids"), options.get("lodestar_net")
        kept = None if net is None or uuids is None else net.get("chunks")
        if kept is not None and kept[0] is uuids:       # the list itself: every layer of a network call asks with the same one
            return kept[1]
        forced = self.session.forced_role
        key = (tuple(uuids or ()), tuple(options.get("lodestar_chunks") or options.get("cond_or_uncond") or ()), None if forced is None else id(forced))
        if key not in self._chunks:
            self._chunks[key] = self._found(options)
        if net is not None and uuids is not None:
            net["chunks"] = uuids, self._chunks[key]
        return self._chunks[key]

    def _found(self, options):
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
        half, (high, wide) = len(area) // 2, entry.get("lodestar_cells", self.step.x.shape[-2:])
        h, w, y, x = area[half - 2], area[half - 1], area[-2], area[-1]
        return x / wide, y / high, min(w, wide - x) / wide, min(h, high - y) / high

    def groups(self, options, rows, layer, kind):
        """[(start, stop, edits)] of a network call's rows at one layer. Chunks of other parts of the picture are groups of their own."""
        chunks = self.chunks(options)
        tables = self._placed(chunks, kind)
        if len(tables) == 1:
            return [(0, rows // len(chunks) * len(chunks), tables[0].get(layer, ()))]
        here = [table.get(layer, ()) for table in tables]
        labels = [(edits, window if edits else None) for edits, (_, window) in zip(here, chunks)]
        return [(start, stop, label[0]) for start, stop, label in merge_groups(labels, rows // len(chunks))]

    def _placed(self, chunks, kind):
        """Session.placed of each chunk; a single one where all chunks are alike."""
        key = (id(chunks), kind)        # the lists are kept as long as the call, in _chunks
        if key not in self._tables:
            alike = all(chunk == chunks[0] for chunk in chunks)
            self._tables[key] = [self.session.placed(edits, kind) for edits, _ in (chunks[:1] if alike else chunks)]
        return self._tables[key]

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


class Noter:
    """What `site.note` is: files the tensors that an edit notes at one place, `start` being the first row that it is shown."""

    def __init__(self, call, options, layer, rows, start=0):
        self.place, self.start = (call, options, layer, rows), start

    def at(self, start):
        call, options, layer, rows = self.place
        return Noter(call, options, layer, rows, self.start + start)

    def __call__(self, edit, tensor):
        call, options, layer, rows = self.place
        call.note(options, edit, layer, self.start, rows, tensor)


class Session:
    """What the host side keeps for one sampling run."""

    def __init__(self, run, guider, arguments):
        self.run, self.guider, self.arguments = run, guider, arguments
        self.roles, self.entries = {}, {}
        self.forced_role = None
        self.prompt_first = False      # guidance.host.places.prompt_first, looked up before the network is called
        self._branches, self._selected, self._prompts, self._placed = {}, {}, {}, {}
        self._geometry = self._network = None
        self.peers = {}
        self.references, self.references_first = {}, False      # latents and noise of references; whether they cannot share the others' network calls
        self.converted = {}      # {Prompt: entries} of the methods' own prompts, their hooks registered
        self._controls = {}      # {(ControlNet, window, shape): its cropped copy}
        self._laid_out = {}      # {(id of an entry, area): (what was made of it for the area, the entry)}
        self.readings = {}       # {Reading: its last value}

    @property
    def model(self):
        return self.guider.inner_model

    @property
    def network(self):
        """The name of the network's class; known after the run too, when the guider has let its model go."""
        if self._network is None:
            self._network = type(self.model.diffusion_model).__name__
        return self._network

    @property
    def geometry(self):
        if self._geometry is None:
            from .geometry import of_network
            self._geometry = of_network(self.model.diffusion_model)
            self._network = type(self.model.diffusion_model).__name__
        return self._geometry

    def branch_number(self, branch):
        return self._branches.setdefault(branch, len(self._branches))

    def selected(self, edit):
        """The layers of this model that an edit names."""
        if edit not in self._selected:
            selector = edit.layers or edit.default_layers(self.geometry)
            self._selected[edit] = frozenset(select(self.geometry, selector, type(edit).__name__))
        return self._selected[edit]

    def placed(self, edits, kind):
        """{layer: those of `edits` that act on its attention of one kind}; kept, because every layer asks in every step."""
        if (edits, kind) not in self._placed:
            table = self._placed[edits, kind] = {}
            for edit in edits:
                if kind in edit.kinds:
                    for layer in self.selected(edit):
                        table[layer] = (*table.get(layer, ()), edit)
        return self._placed[edits, kind]

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

    def cropped_control(self, control, window, shape):
        """The copy of a ControlNet whose hint is cropped to a window; it lives as long as the run."""
        key = (control, window, tuple(shape[-2:]))
        if key not in self._controls:
            self._controls[key] = windows.cropped_control(control, window, shape, self.model)
        return self._controls[key]

    def close(self):
        """Frees what the run made beside the host's own."""
        for control in self._controls.values():
            control.cleanup()
        self._controls.clear()

    def laid_out(self, entry, cut, x):
        """A crop `cut` of an entry; what a network lays out for all tokens of a latent's size (HiDream-O1: positions, masks) is made for its area, as the host does for areas of the graph."""
        if "vinput_mask" not in entry.get("model_conds", {}):
            return cut
        key = (id(entry), cut["area"])
        if key not in self._laid_out:
            import comfy.samplers
            made = comfy.samplers.encode_model_conds(self.model.extra_conds, [cut], torch.zeros_like(x), x.device, "positive")[0]["model_conds"]
            self._laid_out[key] = (made, entry)      # kept with it, for its id
        return {**cut, "model_conds": self._laid_out[key][0]}

    def resized(self, prompt, x, full):
        """The entries of "positive", "negative" or a Prompt, processed for an input x of another height and width than the run's latent of shape `full`."""
        key = (prompt, tuple(x.shape[-2:]))
        if key not in self._prompts:
            source = self.guider.original_conds.get(prompt) if isinstance(prompt, str) else self.converted.get(prompt)
            if source is None:
                self.prompt_conds(prompt)      # the error that names what is missing
                raise ValueError("This guider's prompts cannot be evaluated at another size.")
            self._prompts[key] = self.process(self.model, [windows.relative(e, full) for e in source], converted=True, noise=torch.zeros_like(x))
        return self._prompts[key]

    def process(self, model, conditioning, converted=False, noise=None):
        """Conditioning of the graph, made ready for a model as the host does at the start of a run; for a latent of the size of `noise` where it is given."""
        import comfy.sampler_helpers
        import comfy.samplers
        entries = [dict(c) for c in conditioning] if converted else comfy.sampler_helpers.convert_cond(conditioning)
        for entry in entries:
            entry.setdefault("uuid", uuid.uuid4())
            if not converted or model is not self.model:
                entry.pop("hooks", None)      # registered with the sampled model only
        like, latent, mask, seed = (self.arguments[k] for k in ("noise", "latent_image", "denoise_mask", "seed"))
        if noise is None:
            noise = like
        else:
            latent, mask = windows.scaled(latent, noise), windows.scaled(mask, noise)
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
