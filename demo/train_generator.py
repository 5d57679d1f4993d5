"""Trains the two generators on the scenes: `unet` (eps prediction) or `dit` (flow matching).

    python -m demo.train_generator unet|dit --host PATH_OF_COMFYUI --out demo/weights --state DIR --minutes 90

Resumable: --state keeps weights, averages, optimisers and the step (safetensors and JSON). The learning rate is constant and falls to zero over
the last `--decay` part of the budget. A run that ended as planned is resumed from the state before the fall (`trunk`), one that was stopped from its newest state.
An auxiliary read-out predicts each cell's colours and shapes from a middle layer; it shortens training and is thrown away.
"""
import argparse
import json
import os
import random
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from . import latents, networks, text
from .muon import Muon
from .scenes import COLOURS, SHAPES, mask_of, random_scene, render

GRID = 8


def import_host(path):
    """Puts the host on the path, on the CPU where there is no accelerator."""
    sys.path.insert(0, path)
    sys.argv = sys.argv[:1] + ([] if torch.cuda.is_available() else ["--cpu"])
    import comfy.options
    comfy.options.enable_args_parsing()


def layout(scene):
    """[colours + shapes, GRID, GRID]: how much of each cell each colour and each shape covers."""
    cells = torch.zeros(len(COLOURS) + len(SHAPES), GRID, GRID)
    for thing in scene.things:
        mask = mask_of(thing, GRID)
        cells[list(COLOURS).index(thing.colour)] += mask
        cells[len(COLOURS) + SHAPES.index(thing.shape)] += mask
    return cells.clamp(0, 1)


class Unet:
    """eps prediction on the schedule of Stable Diffusion, loss weighted by (min(SNR, 5) + 1) / SNR: as a v-prediction's, so that layout and background,
    which are settled where the signal is weak, are learnt too (the bundled weights had min(SNR, 5) / SNR for their first 1,450 steps)."""

    def __init__(self, model):
        import comfy.ldm.modules.attention as attention
        self.model = model
        beta = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
        self.alpha = torch.cumprod(1 - beta, 0).float()
        self.width = networks.UNET["model_channels"] * networks.UNET["channel_mult"][-1]
        model.middle_block[-1].register_forward_hook(lambda m, i, out: setattr(self, "tapped", out))

        def attend(q, k, v, heads, *args, **kwargs):
            n, _, c = q.shape
            q, k, v = (z.reshape(n, -1, heads, c // heads).transpose(1, 2) for z in (q, k, v))
            weights = (q @ k.transpose(-1, -2) * (c // heads) ** -0.5).softmax(-1)
            return (weights @ v).transpose(1, 2).reshape(n, -1, c)
        attention.optimized_attention = attention.optimized_attention_masked = attend

    def loss(self, x, context, pooled, generator):
        t = torch.randint(0, 1000, (len(x),), generator=generator)
        a = self.alpha[t][:, None, None, None]
        noise = torch.randn(x.shape, generator=generator)
        out = self.model(a.sqrt() * x + (1 - a).sqrt() * noise, t.float(), context=context)
        snr = a / (1 - a)
        each = ((out - noise).square() * ((snr.clamp(max=5) + 1) / snr)).mean((1, 2, 3))
        return each.mean(), self.tapped.permute(0, 2, 3, 1)


class Dit:
    """Flow matching: x = (1 - t) x0 + t n, the network predicts n - x0; t is logit-normal."""

    def __init__(self, model):
        from .train_forward import dit_forward
        self.model = model
        self.width = networks.DIT["hidden_size"]
        self.forward = torch.compile(dit_forward)

    def loss(self, x, context, pooled, generator):
        t = torch.sigmoid(torch.randn(len(x), generator=generator) * 1.2 + 0.3)
        noise = torch.randn(x.shape, generator=generator)
        s = t[:, None, None, None]
        out, tapped = self.forward(self.model, (1 - s) * x + s * noise, t, context, pooled)
        return (out - (noise - x)).square().mean(), tapped.view(len(x), GRID, GRID, -1)


def initialise(model, kind, seed):
    """The host's layers come without initial values; PyTorch's own instead, with the last projections of residual paths at zero."""
    torch.manual_seed(seed)
    for module in model.modules():
        for base in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(module, base):
                base.reset_parameters(module)
    for name, p in model.named_parameters():
        if name.endswith(".scale") or (p.ndim == 1 and "norm" in name and name.endswith("weight")):
            nn.init.ones_(p)
    if kind == "unet":
        zero = [m.out_layers[-1] for m in model.modules() if hasattr(m, "out_layers")]
        zero += [m.proj_out for m in model.modules() if hasattr(m, "proj_out")] + [model.out[-1]]
    else:
        zero = [b.img_mod.lin for b in model.double_blocks] + [b.txt_mod.lin for b in model.double_blocks]
        zero += [b.modulation.lin for b in model.single_blocks] + [model.final_layer.linear, model.final_layer.adaLN_modulation[1]]
    for module in zero:
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)


def split_parameters(model):
    """(matrices for Muon, the rest for AdamW): inner weights against inputs, outputs, modulations, norms, biases."""
    outer = ("img_in", "txt_in", "time_in", "vector_in", "final_layer", "time_embed", "mod", "input_blocks.0.", "out.", "emb_layers")
    inner, rest = [], []
    for name, p in model.named_parameters():
        is_outer = any(name.startswith(o) or f".{o}" in name for o in outer if o not in ("out.", "input_blocks.0."))
        is_outer = is_outer or name.startswith(("out.", "input_blocks.0."))
        (inner if p.ndim >= 2 and not is_outer else rest).append(p)
    return inner, rest


class Run:
    """Model, read-out, average, optimisers and where they are kept."""

    def __init__(self, kind, state, seed):
        import comfy.ops
        operations = comfy.ops.disable_weight_init
        self.kind, self.folder, self.seed = kind, state, seed
        build = networks.unet if kind == "unet" else networks.dit
        self.model = build(operations, dtype=torch.float32)
        initialise(self.model, kind, seed)
        self.task = (Unet if kind == "unet" else Dit)(self.model)
        self.readout = nn.Linear(self.task.width, len(COLOURS) + len(SHAPES))
        inner, rest = split_parameters(self.model)
        self.muon = Muon(inner, lr=0.02)
        self.adam = torch.optim.AdamW([*rest, *self.readout.parameters()], lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.step, self.seconds, self.log = 0, 0.0, []

    def _optimiser_tensors(self):
        for tag, optimiser in (("muon", self.muon), ("adam", self.adam)):
            for i, p in enumerate(p for g in optimiser.param_groups for p in g["params"]):
                yield f"{tag}.{i}", optimiser.state[p]

    def save(self, name="state"):
        os.makedirs(self.folder, exist_ok=True)
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {f"readout.{k}": v for k, v in self.readout.state_dict().items()}
        for key, state in self._optimiser_tensors():
            tensors |= {f"{key}.{k}": torch.as_tensor(v) for k, v in state.items()}
        path = os.path.join(self.folder, f"{self.kind}-{name}")
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path + ".tmp")
        os.replace(path + ".tmp", path + ".safetensors")
        with open(path + ".json", "w") as f:
            json.dump({"step": self.step, "seconds": self.seconds, "log": self.log}, f)

    def load(self):
        """Resumes from the trunk where the last run ended as planned (its `final` is newer than its `state`), else from the newest state."""
        def age(name):
            path = os.path.join(self.folder, f"{self.kind}-{name}.safetensors")
            return os.path.getmtime(path) if os.path.exists(path) else -1.0
        name = "trunk" if age("trunk") >= 0 and age("final") >= age("state") else "state"
        if age(name) < 0:
            return False
        path = os.path.join(self.folder, f"{self.kind}-{name}")
        tensors = load_file(path + ".safetensors")

        def part(prefix):
            return {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}
        self.model.load_state_dict(part("model."))
        self.readout.load_state_dict(part("readout."))
        self.average = part("average.")
        for key, state in self._optimiser_tensors():
            state.update(part(key + "."))
        with open(path + ".json") as f:
            self.__dict__.update(json.load(f))
        if name == "trunk":      # from here on the ordinary state is the newest
            for ending in (".safetensors", ".json"):
                os.replace(path + ending, os.path.join(self.folder, f"{self.kind}-state{ending}"))
        return True

    def export(self, out):
        save_file({k: v.half().contiguous() for k, v in self.average.items()}, os.path.join(out, f"{self.kind}.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("unet", "dit"))
    parser.add_argument("--host", required=True)
    parser.add_argument("--out", default="demo/weights")
    parser.add_argument("--state", required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--decay", type=float, default=0.3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=0, help="stop at this time since the epoch instead of after --minutes")
    args = parser.parse_args()
    import_host(args.host)
    import comfy.model_management
    comfy.model_management.in_training = True
    torch.set_grad_enabled(True)

    run = Run(args.kind, args.state, args.seed)
    resumed = run.load()
    encoder = text.TextEncoder()
    encoder.load_state_dict({k: v.float() for k, v in load_file(os.path.join(args.out, "text.safetensors")).items()})
    encoder.requires_grad_(False)
    code = load_file(os.path.join(args.out, "latents.safetensors"))
    seed = args.seed * 1_000_003 + run.step
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    params = [*run.model.parameters(), *run.readout.parameters()]
    begin, last_save, before = time.time(), time.time(), run.seconds
    end = args.deadline or begin + args.minutes * 60
    decay_from = end - args.decay * (end - begin)
    trunk_saved, recent = False, []
    print(f"{args.kind}: {sum(p.numel() for p in run.model.parameters()) / 1e6:.2f}M parameters, step {run.step}{' (resumed)' if resumed else ''}", flush=True)
    while time.time() < end:
        now = time.time()
        if now > decay_from and not trunk_saved:
            run.save("trunk")
            trunk_saved = True
        rate = min(1.0, (run.step + 1) / 200) * min(1.0, max(0.0, (end - now) / max(end - decay_from, 1e-9)))
        for group in run.muon.param_groups:
            group["lr"] = 0.02 * rate
        for group in run.adam.param_groups:
            group["lr"] = 1e-3 * rate
        scenes = [random_scene(rng) for _ in range(args.batch)]
        images = torch.stack([render(s) for s in scenes])
        captions = [s.caption if rng.random() > 0.1 else "" for s in scenes]
        with torch.no_grad():
            context, pooled = encoder(text.tokenize(captions))
        loss, tapped = run.task.loss(latents.encode(images, code), context, pooled, generator)
        cells = torch.stack([layout(s) for s in scenes]).permute(0, 2, 3, 1)
        helper = F.binary_cross_entropy_with_logits(run.readout(tapped), cells)
        run.muon.zero_grad()
        run.adam.zero_grad()
        (loss + helper).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        run.muon.step()
        run.adam.step()
        run.step += 1
        keep = min(0.998, (1 + run.step) / (20 + run.step))
        with torch.no_grad():
            for k, v in run.model.state_dict().items():
                run.average[k].lerp_(v, 1 - keep)
        recent.append((loss.item(), helper.item()))
        if run.step % 50 == 0:
            mean = [sum(c) / len(recent) for c in zip(*recent)]
            recent = []
            run.seconds = before + time.time() - begin
            run.log.append([run.step, round(mean[0], 4), round(mean[1], 4), round(run.seconds)])
            print(f"step {run.step} loss {mean[0]:.4f} layout {mean[1]:.4f} {run.seconds:.0f}s {args.batch * 50 / max(1e-9, time.time() - begin):.0f}", flush=True)
        if time.time() - last_save > 300:
            run.save()
            run.export(args.out)
            last_save = time.time()
    run.save("final")
    run.export(args.out)


if __name__ == "__main__":
    main()
