"""`bench costs`: time per sampler step, evaluations and memory of each method relative to plain CFG, in one run with interleaved repeats."""
from __future__ import annotations

import gc
import math
import statistics
import sys
import time

import torch
from tqdm.auto import tqdm

from . import host, store
from .effects import select
from .plan import Setup, table
from .subject import Subject, cases

INTRO = """Written by `./scripts/bench costs` on {device}, host ComfyUI {version}; Euler steps in interleaved repeats; medians of the ratios within a repeat, in brackets the
quartiles. Rows within {close:.0%} of what they promise are run up to {pairs} times more, each time beside their base, the order changing, and where that does not decide, up to {longer} times;
their promise is kept or not where the 90 % interval of the median says so, and else open. Evaluations: rows of network batches per picture, counted. The base is plain CFG of the same network ("w = 1" rows: no guidance). Networks that a method refuses have no row.
A step of the bundled networks lasts a few hundredths of a second, and what an edit costs there is mostly Python's own time for each layer: judge limits of a few per cent by the larger networks."""
CLOSE = 0.1      # what single runs on a shared machine vary by: rows that are as close to their promise are run beside their base again and again
PAIRS, PAIRS_SECONDS = 60, 120.0
LONGER = 4       # how many times as many where the first pairs leave a promise open
BASES = ("CFG", "no guidance, w = 1")
REFUSED = ("BadInput", "ValueError")      # errors of methods that say that a network cannot have them: no row


class Timed:
    """One way to run: `run()` samples once; `evaluations` is filled by the first run."""

    def __init__(self, label, base, run, limit=None):
        self.label, self.base, self.run, self.limit = label, base, run, limit
        self.seconds, self.evaluations, self.peak, self.error = [], None, None, None
        self.pairs = []      # [(seconds, seconds of the base beside it)]


def clock_of_runs():
    """On one CPU thread the process's own time, which other work on the machine moves less; else the clock's."""
    return time.perf_counter if host.on_gpu() or torch.get_num_threads() > 1 else time.process_time


def time_all(ways, repeats, bar):
    """Fills the times: every way once per repeat, in turn, after one run to warm up."""
    for r in range(repeats + 1):
        for way in ways:
            if way.error is not None:
                continue
            try:
                if host.on_gpu():
                    torch.cuda.reset_peak_memory_stats()
                took, count = _timed(way)
                if host.on_gpu():
                    way.peak = torch.cuda.max_memory_allocated()
            except Exception as e:      # a peer's node that fails must not end the run; it is shown in the table
                way.error = f"{type(e).__name__}: {e}"
                continue
            if r:
                way.seconds.append(took)
            way.evaluations = count if count is not None else way.evaluations
            bar.update(1)


def _timed(way):
    """(seconds, what it returned) of one run."""
    clock = clock_of_runs()
    if host.on_gpu():
        torch.cuda.synchronize()
    begin = clock()
    out = way.run()
    if host.on_gpu():
        torch.cuda.synchronize()
    return clock() - begin, out


def time_pairs(way, base):
    """Fills the pairs of a row whose promise is close; none where a run is too long for enough of them."""
    if min(base.seconds) * 20 > PAIRS_SECONDS:
        return
    _pairs(way, base, PAIRS, PAIRS_SECONDS)
    if verdict(way, None) == "open":
        _pairs(way, base, LONGER * PAIRS, (LONGER - 1) * PAIRS_SECONDS)


def _pairs(way, base, count, seconds):
    """Goes on to `count` pairs, for at most `seconds`."""
    begin = time.perf_counter()
    while len(way.pairs) < count and time.perf_counter() - begin < seconds:
        if len(way.pairs) % 2:
            own = _timed(way)[0]
            way.pairs.append((own, _timed(base)[0]))
        else:
            beside = _timed(base)[0]
            way.pairs.append((_timed(way)[0], beside))


def median_interval(values, level=0.9):
    """(low, high) of the median of independent values by order statistics; the whole line where there are too few."""
    n = len(values)
    tail = 0.5 ** n
    for k in range(n):
        if tail > (1 - level) / 2:
            return (sorted(values)[k - 1], sorted(values)[n - k]) if k else (-math.inf, math.inf)
        tail += math.comb(n, k + 1) * 0.5 ** n
    return -math.inf, math.inf


def paired(way):
    """The interval of the median of a row's pairs."""
    return median_interval([a / b for a, b in way.pairs])


def verdict(way, ratio):
    """Whether a row keeps its promise: True, False, or "open"; None without a promise."""
    if way.limit is None:
        return None
    if not way.pairs:
        return ratio <= way.limit
    low, high = paired(way)
    return True if high <= way.limit else False if low > way.limit else "open"


def ratios(way, base):
    """(median, lower quartile, upper quartile) of way / base within each repeat, or in the pairs where there are some."""
    values = sorted(a / b for a, b in way.pairs or zip(way.seconds, base.seconds))
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), low, high


def demo_ways(generator, entries, options):
    """The Timed of one bundled model."""
    subject = Subject(generator)
    batch = cases(max(2, options.batch), 1)[:options.batch]

    def runner(setup):
        def run():
            return subject.run(setup, batch, options.steps)[1]
        return run

    def with_host_node(name, inputs, cfg):
        cls = host.nodes().get(name) or host.nodes().get(name + "Guidance")
        if cls is None:
            return None
        return lambda: _foreign(subject, lambda model, cond: host.call(cls, model=model, **inputs)[0], cfg, batch, options.steps)

    ways = [Timed(BASES[0], BASES[0], runner(Setup("CFG", 4.0))), Timed(BASES[1], BASES[0], runner(Setup("w = 1", 1.0)))]
    peers = _peers(options)
    for node_id, entry in entries.items():
        for cost in entry.costs:
            setup = Setup(cost.label, cost.cfg, cost.methods, cost.sampler, task=cost.task)
            base = BASES[cost.cfg == 1.0]
            ways.append(Timed(cost.label, base, runner(setup), cost.limit))
            if cost.host is not None:
                run = with_host_node(*cost.host, cost.cfg)
                if run is not None:
                    ways.append(Timed(f"{cost.label}: the host's own node", base, run))
            for pack, name, cls in peers:
                import re
                if cost.peer and re.search(cost.peer, name):
                    ways.append(Timed(f"{cost.label}: {name} of {pack}", base, lambda cls=cls: _foreign(
                        subject, lambda model, cond: host.call(cls, **host.defaults(cls, model, cond))[0], cost.cfg, batch, options.steps)))
    return ways


def _peers(options):
    found = []
    for path in options.peer:
        try:
            found += [(path.name, name, cls) for name, cls in host.peer_nodes(path).items()]
        except RuntimeError as e:
            print(f"peer left out: {e}", file=sys.stderr)
    return found


def _foreign(subject, patch, cfg, batch, steps):
    """One run with somebody else's node on the plain model."""
    import comfy.samplers
    positive, negative = subject.encode([c.scene.caption for c in batch]), subject.encode([""])
    with torch.inference_mode(), subject.counting() as rows:
        guider = comfy.samplers.CFGGuider(patch(subject.model, negative))
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        noise = torch.cat([c.noise() for c in batch])
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), subject.sigmas(steps), disable_pbar=True, seed=0)
    return rows[0] / len(batch)


def heavy_ways(name, patcher, prompt, shape, entries, options):
    """The Timed of a large network with random weights: methods without prompts or models of their own."""
    import comfy.samplers

    from ..guidance.host.attach import attach
    positive, negative = prompt(1), prompt(2)

    def runner(methods, cfg):
        def run():
            rows = [0]
            handle = patcher.model.diffusion_model.register_forward_pre_hook(lambda m, a: rows.__setitem__(0, rows[0] + a[0].shape[0]))
            try:
                with torch.inference_mode():
                    model = patcher
                    for u in methods:
                        model = attach(model, u.cls(**{k: negative if v == "$forbidden" else v for k, v in u.values}))
                    guider = comfy.samplers.CFGGuider(model)
                    guider.set_conds(positive, negative)
                    guider.set_cfg(cfg)
                    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", options.steps)
                    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
                    guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)
            finally:
                handle.remove()
            return rows[0]
        return run

    ways = [Timed(BASES[0], BASES[0], runner((), 4.0)), Timed(BASES[1], BASES[0], runner((), 1.0))]
    for entry in entries.values():
        for cost in entry.costs:
            asks = [v for u in cost.methods for _, v in u.values if isinstance(v, str) and v.startswith("$")]
            if cost.heavy and cost.sampler is None and cost.task == "sample" and set(asks) <= {"$forbidden"}:
                ways.append(Timed(cost.label, BASES[cost.cfg == 1.0], runner(cost.methods, cost.cfg), cost.limit))
    return ways


def kernel_ways():
    """Attention alone, on random queries and keys of one frame or three: Draft Attention against full attention, by number of tokens."""
    import torch.nn.functional as F

    from ..guidance.attention.draft import DraftAttention, Regions, part_size, sparse
    method, ways = DraftAttention(), []
    for frames, height, width in ((1, 32, 32), (1, 64, 64), (1, 96, 96), (3, 64, 64)):
        count = frames * height * width
        generator = torch.Generator().manual_seed(count)
        q, k, v = (torch.randn(1, 4, count, 64, generator=generator).to(host.device()) for _ in range(3))
        regions = Regions(frames, height, width, part_size(height, method.pool_height), part_size(width, method.pool_width))
        base = f"full attention, {count} tokens"
        ways.append(Timed(base, base, lambda q=q, k=k, v=v: 0 * len(F.scaled_dot_product_attention(q, k, v))))
        for share in (0.1, 0.25, 0.5):
            ways.append(Timed(f"Draft Attention, {share:g} kept, {count} tokens", base, lambda q=q, k=k, v=v, r=regions, s=share: 0 * len(sparse(q, k, v, r, s)),
                              limit=1.0 if count >= method.least_tokens and share <= method.kept else None))
    return ways


def measure(name, ways, options, steps=None):
    """Times the ways of one network and returns their records."""
    gc.collect()
    gc.freeze()      # collections would go through the whole host's objects again and again, at whose expense is chance
    bar = tqdm(total=len(ways) * (options.repeats + 1), desc=name, file=sys.stderr, unit="run", mininterval=1.0)
    try:
        time_all(ways, options.repeats, bar)
    finally:
        bar.close()
    bases = {w.label: w for w in ways}
    for way in ways:
        if way.error is None and way.limit is not None and way.limit > 1.0 and abs(ratios(way, bases[way.base])[0] / way.limit - 1) < CLOSE:
            time_pairs(way, bases[way.base])
    records = []
    for way in ways:
        if way.error is not None:
            records.append({"label": way.label, "error": way.error})
            continue
        ratio, low, high = ratios(way, bases[way.base])
        records.append({"label": way.label, "base": way.base, "ratio": round(ratio, 4), "low": round(low, 4), "high": round(high, 4),
                        "seconds_per_step": round(statistics.median(way.seconds) / (steps or options.steps), 5), "evaluations": way.evaluations,
                        "peak_bytes": way.peak, "limit": way.limit, "kept": verdict(way, ratio), "pairs": len(way.pairs)})
        if way.pairs:
            records[-1]["interval"] = [round(x, 4) for x in paired(way)]
    return records


def merged(old, name, records, settings):
    """(records, settings) of one network with the rows of some methods measured again or added; the bases stay as they were. SystemExit where the others were run otherwise."""
    kept, before = {r["label"]: r for r in old.get("networks", {}).get(name, ())}, old.get("settings", {}).get(name, settings)
    if any(before[k] != settings[k] for k in ("steps", "batch")):
        raise SystemExit(f"error: {name} was measured with {before['steps']} steps and batch {before['batch']}; give the same, or measure all methods.")
    other = {} if before["repeats"] == settings["repeats"] else {"repeats": settings["repeats"]}
    return list((kept | {r["label"]: r | other for r in records if r["label"] not in BASES or r["label"] not in kept}).values()), before


def run(options, version):
    """The whole bench; writes costs.json and costs.md. With names of methods the other rows stay."""
    entries = select(table(), options.methods)
    networks = {}
    if not options.no_demo:
        for generator in ("unet", "dit") if options.generator == "both" else (options.generator,):
            try:
                ways = demo_ways(generator, entries, options)
            except RuntimeError as e:
                print(f"{generator}: left out. {e}", file=sys.stderr)
                continue
            networks[f"bundled {generator}"] = measure(f"bundled {generator}", ways, options)
    if options.sd15 or host.on_gpu():
        from . import large
        for name, build in (("SD1.5 size", large.sd15), *((("SDXL size", large.sdxl),) if host.on_gpu() else ())):
            patcher, prompt, shape = build()
            networks[name] = measure(name, heavy_ways(name, patcher, prompt, shape, entries, options), options)
            del patcher
    if options.kernels:
        with torch.inference_mode():
            networks["attention alone"] = measure("attention alone", kernel_ways(), options, 1)
    path = options.out / "costs.json"
    old = store.read_json(path)
    settings = {name: {"steps": options.steps, "repeats": options.repeats, "batch": options.batch} for name in networks}
    if options.methods:
        for name in networks:
            networks[name], settings[name] = merged(old, name, networks[name], settings[name])
    store.write_json(path, {"about": {"device": host.device_name(), "version": version}, "settings": {**old.get("settings", {}), **settings},
                            "networks": {**old.get("networks", {}), **networks}})
    write_page(options.out)


def write_page(out):
    """costs.md from costs.json."""
    data = store.read_json(out / "costs.json")
    lines = ["# Costs", "", INTRO.format(**data["about"], close=CLOSE, pairs=PAIRS, longer=LONGER * PAIRS), ""]
    for name, records in data["networks"].items():
        rows = []
        for r in records:
            if "error" in r:
                if not r["error"].startswith(REFUSED):
                    rows.append((r["label"], "", "", "", "fails on this network: " + r["error"].splitlines()[0]))
                continue
            promise = "" if r["limit"] is None else f"at most {r['limit']:g}: {r['kept'] if r['kept'] == 'open' else 'kept' if r['kept'] else 'not kept'}" + (
                " (median of {} pairs in [{:.3f}, {:.3f}])".format(r["pairs"], *r["interval"]) if r.get("pairs") else "")
            memory = f"{r['peak_bytes'] / 2**20:.0f} MiB" if r["peak_bytes"] else ""
            repeats = f"{r['repeats']} repeats" if "repeats" in r else ""
            rows.append((r["label"], f"{r['ratio']:.3f} [{r['low']:.3f}, {r['high']:.3f}] x {r['base']}", f"{1000 * r['seconds_per_step']:.1f} ms", f"{r['evaluations']:g}", " ".join(x for x in (promise, memory, repeats) if x)))
        lines += [f"## {name}", "", "{steps} steps, {repeats} repeats, batch {batch}.".format(**data["settings"][name]), "", store.table(("", "time per step", "median", "evaluations", ""), rows)]
    (out / "costs.md").write_text("\n".join(lines), encoding="utf-8")
