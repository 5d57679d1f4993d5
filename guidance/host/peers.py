"""Other MODELs in a run: loaded beside the sampled one, prepared once, evaluated with the run's own prompts."""
from __future__ import annotations

import contextlib
import copy
import weakref

from .attach import KEY, models_of

_separate = weakref.WeakKeyDictionary()


def _own_copy(patcher):
    """A MODEL with a network of its own, for two MODELs that share one network but patch its weights differently.

    The copy is made of the unpatched weights, once for each such MODEL; it costs the memory of a second network.
    """
    if patcher not in _separate:
        new = _reloaded(patcher) or _copied(patcher)
        _separate[patcher] = new
    return _separate[patcher]


def _reloaded(patcher):
    """The MODEL on a second network from its file, where the host remembers how it was loaded (its own way for weights that may be absent)."""
    how = getattr(patcher, "cached_patcher_init", None)
    if how is None:
        return None
    fresh = how[0](*how[1])
    fresh = fresh[how[2]] if len(how) > 2 else fresh
    return patcher.clone(model_override=fresh.get_clone_model_override())


def _copied(patcher):
    """The MODEL on a copy of its network."""
    import comfy.model_management as management
    for loaded in list(management.current_loaded_models):
        if loaded.model is not None and loaded.model.model is patcher.model:
            loaded.model_unload()
            management.current_loaded_models.remove(loaded)
    shared = (getattr(patcher.model, "model_config", None), getattr(patcher.model, "current_patcher", None))
    network = copy.deepcopy(patcher.model, {id(x): x for x in shared if x is not None})
    new = patcher.clone()
    new.model = network
    for name in ("backup", "object_patches_backup"):
        if hasattr(new, name):
            setattr(new, name, {})
    return new


def _resolve(main, ref):
    """The MODEL to evaluate for a reference: itself, or a copy where it shares the sampled network under other weights."""
    other = ref.model
    if other.model is main.model and other.patches_uuid != main.patches_uuid:
        return _own_copy(other)
    return other


@contextlib.contextmanager
def loaded(session, carried=()):
    """Makes the run's other models ready: their patchers, and those `carried` by prompts, are loaded with the sampled model and cleaned up at the end."""
    main = session.guider.model_patcher
    refs = models_of(session.run.pipeline)
    if not refs and not carried:
        yield
        return
    for ref in refs:
        session.peers[ref] = Peer(_resolve(main, ref), main)
    extra = [p.patcher for p in session.peers.values() if p.patcher.model is not main.model]
    main.set_additional_models(KEY, [*extra, *carried])      # the host loads them together with the sampled model
    try:
        yield
    finally:
        main.remove_additional_models(KEY)
        for peer in session.peers.values():
            peer.close()
        session.peers.clear()


class Peer:
    """One other model within a run."""

    def __init__(self, patcher, main):
        self.patcher, self.main = patcher, main
        self.options, self.conds, self.started = None, {}, False

    def prepare(self, session):
        import comfy.model_patcher
        import comfy.sampler_helpers
        if self.options is not None:
            return
        options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)
        options.pop("lodestar", None)
        transformer = options.setdefault("transformer_options", {})
        wrappers = {kind: {key: list(f) for key, f in table.items() if key != "lodestar"} for kind, table in getattr(self.patcher, "wrappers", {}).items()}
        own = getattr(session.guider, "model_patcher").wrappers.get("apply_model", {}).get("lodestar")
        if own:
            wrappers.setdefault("apply_model", {})["lodestar"] = list(own)
        transformer["wrappers"] = wrappers
        transformer["sample_sigmas"] = session.arguments["sigmas"]
        self.options = options
        if self.patcher.model is not self.main.model:
            self.patcher.pre_run()
            self.started = True

    def prompt(self, session, name):
        if name not in self.conds:
            own = not isinstance(name, str)       # a Prompt of the method's own
            source = name.cond if own else session.guider.original_conds[name]
            self.conds[name] = session.process(self.patcher.model, source, converted=not own)
        return self.conds[name]

    def close(self):
        if self.started and hasattr(self.patcher, "cleanup"):
            self.patcher.cleanup()


def evaluate(session, call, branch, x, timestep, options):
    """Denoised of a branch that runs on another model, at the same x and noise level."""
    import uuid

    import comfy.samplers

    from .calls import OPTION
    peer = session.peers[branch.model]
    peer.prepare(session)
    entries = []
    for entry in peer.prompt(session, branch.prompt):
        entry = dict(entry)
        entry["uuid"] = uuid.uuid5(uuid.NAMESPACE_OID, f"{entry.get('uuid')}/{session.branch_number(branch)}")
        session.roles[entry["uuid"]] = branch
        entries.append(entry)
    local = {**peer.options, "transformer_options": {**peer.options["transformer_options"], OPTION: call}}
    return comfy.samplers.calc_cond_batch(peer.patcher.model, [entries], x, timestep, local)[0]
