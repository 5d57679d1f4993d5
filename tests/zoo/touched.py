"""What a run really changed: the layers whose attention, blocks or features went through a method's edits, and the selectors that named them."""
import contextlib
from dataclasses import dataclass, field


@dataclass
class Touched:
    """`places`: {kind of place: set of layers}; `selectors`: {edit's name: selector}; `total`: the network's layers."""

    places: dict = field(default_factory=dict)
    selectors: dict = field(default_factory=dict)
    total: int = 0

    def add(self, kind, layer):
        self.places.setdefault(kind, set()).add(str(layer))

    def __str__(self):
        return ", ".join(f"{kind} {len(layers)}/{self.total}" if kind != "skip connection" else f"{kind} {len(layers)}" for kind, layers in sorted(self.places.items()))


@contextlib.contextmanager
def watched():
    """Within it, every edit that runs is noted in the Touched that it yields."""
    from ...guidance.attention import edits
    from ...guidance.attention.edits import AttentionObserver
    from ...guidance.host import attention_hooks, block_hooks, calls, feature_hooks, joint_streams, unet_hooks
    seen, undo = Touched(), []

    def wrap(module, name, note):
        inner = getattr(module, name)

        def run(*args, **kwargs):
            out = inner(*args, **kwargs)
            note(args, out)
            return out
        undo.append((module, name, inner))
        setattr(module, name, run)

    def of_chain(args, out):
        for edit in args[0]:
            if not isinstance(edit, AttentionObserver):
                seen.add(args[1].kind, args[1].layer)

    def of_call(args, out):      # a DiT's own record: edits with a text of their own do not pass a chain
        call, options = args
        readings = [r.edit for r in call.readings]
        for edit, layer in attention_hooks.ran(options.get("lodestar_net", {})):
            if not isinstance(edit, AttentionObserver) and edit not in readings:
                for kind in (k for k in edit.kinds if k in layer.attentions):
                    seen.add(kind, layer)

    def of_blocks(args, out):
        for _, _, found in out:
            for edit in found:
                seen.add("block", args[2])

    def of_selected(args, out):
        session, edit = args
        seen.total = len(session.geometry.layers)
        if not isinstance(edit, AttentionObserver):
            seen.selectors[type(edit).__name__] = getattr(edit, "layers", "") or edit.default_layers(session.geometry)

    def of_pairs(args, out):
        for _, blocks in out:
            for layer, *_ in blocks:
                seen.add("self", layer)

    wrap(edits, "chain", of_chain)
    wrap(joint_streams, "_holders", of_pairs)
    wrap(attention_hooks, "check_fired", of_call)
    wrap(block_hooks, "_groups", of_blocks)
    wrap(calls.Session, "selected", of_selected)
    wrap(unet_hooks, "_through", lambda args, out: seen.add("features" if args[5] == "residual" else "attention input", args[3]))
    wrap(feature_hooks, "_output_patch", lambda args, out: seen.add("skip connection", "all"))
    try:
        yield seen
    finally:
        for module, name, inner in reversed(undo):
            setattr(module, name, inner)
