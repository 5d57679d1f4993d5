"""The command line: `./scripts/bench effects ...`, `./scripts/bench costs ...`, `./scripts/bench readings ...`, `./scripts/bench exactness`, `./scripts/bench particles`, `./scripts/bench codes`, `./scripts/bench gradients`, `./scripts/bench restoration`."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path


def _count(low):
    def parse(text):
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}")
        return value
    return parse


def parser():
    from .store import EFFECTS
    p = argparse.ArgumentParser(prog="./scripts/bench", description="Measures what the methods do and what they take.")
    sub = p.add_subparsers(dest="what", required=True)
    e = sub.add_parser("effects", help="effects of the methods on the bundled models", description="Writes docs/effects/effects.json, effects.md and a sheet of pictures "
                       "per method. Finished batches are kept in the cache folder, so that an interrupted run goes on where it stopped.")
    e.add_argument("methods", nargs="*", metavar="METHOD", help="node ids or parts of them (all methods without); `models`: the models' own accuracy over guidance scales")
    e.add_argument("--prompts", type=_count(2), default=48, help="two-object prompts (default 48)")
    e.add_argument("--seeds", type=_count(1), default=1, help="seeds per prompt (default 1; then a quarter of the prompts has a second one, for diversity)")
    e.add_argument("--generator", choices=("unet", "dit", "video", "both"), default="both", help="the bundled models to sample with (default: all that a method is measured on)")
    e.add_argument("--steps", type=_count(2), default=20)
    e.add_argument("--fresh", action="store_true", help="sample again what is in the cache")
    c = sub.add_parser("costs", help="time, memory and evaluations relative to plain CFG", description="Writes docs/effects/costs.json and costs.md.")
    c.add_argument("methods", nargs="*", metavar="METHOD")
    c.add_argument("--generator", choices=("unet", "dit", "video", "both"), default="both", help="the bundled models to time (default: unet and dit)")
    c.add_argument("--steps", type=_count(3), default=6, help="sampler steps per run (default 6)")
    c.add_argument("--repeats", type=_count(1), default=5, help="interleaved repeats (default 5)")
    c.add_argument("--sd15", action="store_true", help="also a random-weight U-Net of the size of SD1.5 (3.4 GB); with a GPU always")
    c.add_argument("--no-demo", action="store_true", help="leave the bundled models out")
    c.add_argument("--kernels", action="store_true", help="also sparse attention against full attention, by number of tokens")
    c.add_argument("--peer", type=Path, action="append", default=[], help="another pack's checkout: its node for the same method is timed beside ours")
    r = sub.add_parser("readings", help="readings of a given picture against the truth of rendered scenes", description="Writes docs/effects/readings.json and "
                       "readings.md. Finished scenes are kept in the cache folder, so that an interrupted run goes on where it stopped.")
    r.add_argument("methods", nargs="*", metavar="METHOD", help="node ids or parts of them (all readings without)")
    r.add_argument("--scenes", type=_count(2), default=40, help="scenes per reading and model (default 40)")
    r.add_argument("--generator", choices=("unet", "dit", "both"), default="both")
    r.add_argument("--fresh", action="store_true", help="read again what is in the cache")
    x = sub.add_parser("exactness", help="errors of the measurement solvers against closed-form posteriors", description="Writes docs/effects/exactness.json and exactness.md.")
    x.add_argument("--steps", type=_count(2), default=200, help="sampler steps (default 200)")
    x.add_argument("--samples", type=_count(10), default=1000, help="samples of each solver (default 1000)")
    x.add_argument("--only", nargs="+", default=(), metavar="SOLVER", help="parts of solvers' names; the others keep their figures (all without)")
    k = sub.add_parser("particles", help="how the particle samplers converge", description="Writes docs/effects/particles.json and particles.md.")
    q = sub.add_parser("codes", help="how well pictures refined towards a QR code are read", description="Writes docs/effects/codes.json and codes.md.")
    q.add_argument("--pictures", type=_count(2), default=24, help="pictures (default 24)")
    t = sub.add_parser("restoration", help="how well each solver restores each kind of measurement", description="Writes docs/effects/restoration.json and restoration.md. Finished runs are "
                       "kept in the cache folder, so that an interrupted one goes on where it stopped.")
    t.add_argument("solvers", nargs="*", metavar="SOLVER", help="parts of solvers' names (all without)")
    t.add_argument("--pictures", type=_count(2), default=12, help="pictures of each task (default 12)")
    t.add_argument("--tasks", nargs="+", default=(), metavar="TASK", help="names of tasks (all without)")
    t.add_argument("--fresh", action="store_true", help="restore again what is in the cache")
    g = sub.add_parser("gradients", help="memory and time of the three costs of a gradient", description="Writes docs/effects/gradients.json and gradients.md. What is left out stays as it was.")
    g.add_argument("--generator", choices=("unet", "dit", "both"), default="both", help="the bundled models to measure (default both; samplers and growth are the U-Net's)")
    g.add_argument("--steps", type=_count(2), default=4, help="sampler steps per run (default 4)")
    g.add_argument("--repeats", type=_count(1), default=3, help="interleaved repeats (default 3)")
    g.add_argument("--sd15", action="store_true", help="also a random-weight U-Net of the size of SD1.5 (3.4 GB); with a GPU always")
    g.add_argument("--no-demo", action="store_true", help="leave the bundled models out")
    g.add_argument("--growth", type=_count(0), default=100, help="steps of the long runs whose memory is watched (default 100; 0 leaves them out; minutes on a CPU)")
    for s in (e, c, q, t):
        s.add_argument("--batch", type=_count(1), default=16 if s is e else 4, help="pictures per batch")
    for s in (e, c, r, x, k, q, g, t):
        s.add_argument("--out", type=Path, default=EFFECTS, help=argparse.SUPPRESS)
        s.add_argument("--cpu", action="store_true", help="don't use a GPU")
        s.add_argument("--threads", type=_count(1), help="CPU threads of the network")
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    import torch

    from . import host
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "exactness":      # needs no host
        from .exactness import run
        run(args.out, args.steps, args.samples, args.only)
        print(f"Written to {args.out}")
        return 0
    if args.what == "particles":
        from .particles import run
        run(args.out)
        print(f"Written to {args.out}")
        return 0
    try:
        version = host.start(True if args.cpu else None)
        if args.threads:
            torch.set_num_threads(args.threads)
        if args.what == "effects":
            from .effects import Bench
            bench = Bench(args, version)
            bench.models() if args.methods == ["models"] else bench.methods(args.methods)
        elif args.what in ("readings", "codes", "gradients", "restoration"):
            import importlib
            importlib.import_module(f".{args.what}", __package__).run(args, version)
        else:
            from .costs import run
            run(args, version)
    except (host.NoHost, FileNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. What is finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    print(f"Written to {args.out}")
    return 0
