"""What every node does on every network: the rows and columns of docs/conformance.md."""
import re
import traceback

import torch

from .models import STEPS, model_of, quiet, sample
from .nodes import GIVEN, Bench, wanted
from .specimens import ALL
from .touched import watched

FLOOR = 2e-6      # of the plain run's largest value: less than that is no effect
OUR_ERRORS = (ValueError, RuntimeError)


def node_ids():
    from ...guidance import catalogue
    from ...nodes import _define
    return wanted(catalogue.methods(), _define.attachable)


def newest(path):
    """Whether a host's folder has the networks of the newest one."""
    return (path / "comfy" / "ldm" / "krea2").is_dir()


def definitions():
    from ... import nodes
    return nodes.definitions()


def _ours(error):
    """Whether an error was raised by the pack, on purpose: by a `raise` of its own."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    here = __file__.replace("\\", "/").rsplit("/tests/", 1)[0]
    inside = last.filename.replace("\\", "/").startswith((here + "/guidance/", here + "/nodes/"))
    return inside and isinstance(error, OUR_ERRORS) and bool(re.match(r"(raise |super\(\).__init__|_fail\()", (last.line or "").strip()))


def reason(error):
    """The error's text; what follows its first line is a list of layers."""
    return str(error).split("\n")[0].removesuffix(" It has:").strip()


def first(text, count=160):
    return text if len(text) <= count else text[:count - 3] + "..."


class Network:
    """One specimen: its plain run, and what each node makes of it."""

    def __init__(self, name, known=None):
        self.name = name
        with torch.inference_mode(), quiet():
            self.specimen = ALL[name]()
            self.model = model_of(self.specimen)
        self.bench = Bench(self.specimen, known or definitions())
        self.base = {}

    def plain(self, positive=None, latent=None):
        """The run without the node, on the node's own prompt and latent where it has them."""
        key = (id(positive), id(latent))
        if key not in self.base:
            self.base[key] = (sample(self.specimen, self.model, positive, latent), positive, latent)
        return self.base[key][0]

    def outcome(self, node_id, again=False):
        """What the node does here: {"outcome": "acts", "evaluations" (per step, beside the plain ones), "selectors", "touched"}, {"outcome": "refuses", "reason"}, or
        {"outcome": "fails", "reason"}. again: whether a second run has to be the same."""
        from ...guidance import engine
        bench = self.bench
        bench.positive = bench.plain = bench.pair = None
        try:
            with torch.inference_mode(), quiet(), watched() as touched:
                made = bench.node(node_id, model=self.model, **GIVEN[node_id](bench, self.model))
                named = dict(zip((o.type for o in bench.definitions[node_id].outputs), made))
                positive, latent = named.get("CONDITIONING", bench.positive), named.get("LATENT", bench.pair)
                before = engine.REPORTS[-1] if engine.REPORTS else None
                out = sample(self.specimen, named["MODEL"], positive, latent)
                report = engine.REPORTS[-1] if engine.REPORTS and engine.REPORTS[-1] is not before else None
        except Exception as error:
            if _ours(error):
                return {"outcome": "refuses", "reason": reason(error)}
            return {"outcome": "fails", "reason": f"{type(error).__name__}: {first(str(error))}", "error": error}
        base = self.plain(bench.plain or positive, latent)
        if not bool(torch.isfinite(out).all()):
            return {"outcome": "fails", "reason": "values that are not finite"}
        if float((out - base).abs().max()) <= FLOOR * float(base.abs().max()):
            return {"outcome": "fails", "reason": "it has no effect"}
        if again and not torch.equal(out, sample(self.specimen, named["MODEL"], positive, latent)):
            return {"outcome": "fails", "reason": "a second run is not the same"}
        return {"outcome": "acts", "evaluations": 0 if report is None else round(report.evaluations / STEPS - 2, 2),
                "selectors": ", ".join(dict.fromkeys(touched.selectors.values())), "touched": str(touched)}

    def facts(self):
        """What the page says of the network."""
        from ...guidance.host.geometry import of_network
        net = self.specimen.net
        geometry = of_network(net)
        return {"class": type(net).__name__, "module": type(net).__module__.removeprefix("comfy.ldm."), "family": geometry.family + (" over frames" if geometry.temporal else ""), "layers": len(geometry.layers)}
