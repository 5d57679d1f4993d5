"""How well pictures that were refined towards a QR code can be read, and what it costs the picture. Writes docs/effects/codes.md and codes.json."""
from __future__ import annotations

import json

import torch

from .stats import mean, ssim

SIDE, MODULE, TEXT = 256, 8, "lodestar"
SIZES, ANGLES = (192, 256, 512), (0, 15, 45, 160)      # of what the reader is shown: pixels of the picture's side, degrees that it is turned by
RULE = dict(steps=100, rate=30.0)
WAYS = (("as sampled", None), ("refined, dark below 0.3 and light above 0.8", {"dark_below": 0.3, "light_above": 0.8}), ("refined, as the node is set (0.45 and 0.65)", {}), ("refined, the paper's loss alone (no weight on the finder patterns)", {"finders": 0.0}))


def views(picture):
    """[(size, angle, picture [height, width, 3])] of one picture in [0, 1]: scaled, and turned on a gray ground."""
    from PIL import Image
    image = Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    for size in SIZES:
        for angle in ANGLES:
            turned = image.resize((size, size), Image.BICUBIC).rotate(angle, Image.BICUBIC, expand=True, fillcolor=(128, 128, 128))
            yield size, angle, torch.frombuffer(bytearray(turned.tobytes()), dtype=torch.uint8).view(turned.height, turned.width, 3) / 255


def read_share(pictures):
    """{(size, angle): [n] bool} of pictures [n, height, width, 3]."""
    from ..guidance.loss.qr_code import read
    found = {}
    for picture in pictures:
        for size, angle, seen in views(picture):
            found.setdefault((size, angle), []).append(read(seen[None])[0] == TEXT)
    return found


def run(args, version):
    """Sample, refine, read; a table."""
    import comfy.sample

    from ..demo.scenes import two_object_prompts
    from ..guidance.host.decode import Decoder
    from ..guidance.host.refine import refine
    from ..guidance.loss.qr import ScanningRobust, find_code, wrong_share
    from ..guidance.loss.qr_code import drawn
    from ..guidance.loss.refine import LossRefinement
    from .subject import Subject
    with torch.inference_mode():
        subject = Subject("unet")
        model, vae = subject.model, subject.vae
        code = drawn(TEXT, "M", SIDE, SIDE, MODULE, 2)
        place = find_code(code[0].movedim(-1, 0))
        texts, plain = [s.caption for s in two_object_prompts(args.pictures, 20_001)], []
        for begin in range(0, len(texts), args.batch):
            batch = texts[begin:begin + args.batch]
            cells = SIDE // 8
            noise = torch.cat([torch.randn(1, 16, cells, cells, generator=torch.Generator().manual_seed(begin + i)) for i in range(len(batch))])
            plain.append(comfy.sample.sample(model, noise, 20, 4.0, "euler", "normal", subject.encode(batch), subject.encode([""] * len(batch)), torch.zeros_like(noise), disable_pbar=True, seed=0))
        plain = torch.cat(plain)
        before, rows = vae.decode(plain), []
        for label, values in WAYS:
            pictures = before
            if values is not None:
                with torch.inference_mode(False):
                    loss = ScanningRobust(target=code.movedim(-1, 1).clone(), decoder=Decoder(vae, model.get_model_object("latent_format")), quiet_zone=2, **values).check()
                method = LossRefinement(loss=loss, **RULE)
                pictures = torch.cat([vae.decode(refine(method, model, {"samples": plain[i:i + args.batch]})[0]["samples"]) for i in range(0, len(plain), args.batch)])
            seen = read_share(pictures)
            groups = list(range(len(texts)))
            every = torch.tensor([list(map(float, v)) for v in seen.values()]).mean(0)      # of each picture, over its views
            row = {"way": label, "read": list(mean(every, groups)), "views": {f"{s} px, {a} degrees": sum(v) / len(v) for (s, a), v in seen.items()},
                   "wrong modules": list(mean(wrong_share(pictures.movedim(-1, 1), place), groups)),
                   "ssim to the sampled picture": list(mean(ssim(pictures.movedim(-1, 1).float(), before.movedim(-1, 1).float()), groups))}
            print(f"{label}: read {row['read'][0]:.1%}", flush=True)
            rows.append(row)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "codes.json").write_text(json.dumps({"host": version, "pictures": len(texts), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    (args.out / "codes.md").write_text(page(rows, len(texts)), encoding="utf-8")


def page(rows, pictures):
    """The table as Markdown."""
    share = lambda e: f"{e[0]:.1%} [{max(0.0, e[1]):.1%}, {min(1.0, e[2]):.1%}]"
    names = list(rows[0]["views"])
    lines = ["# QR codes", "", f"{pictures} pictures of two-object prompts, sampled at {SIDE} x {SIDE} by the bundled U-Net, which knows no codes, and refined by Refine by Loss with QR Code Loss "
             f"(level M, modules of {MODULE} pixels, quiet zone of 2, {RULE['steps']} steps of SGD at {RULE['rate']:g}). The reader is ZXing. Each picture is read at {len(SIZES)} sizes and {len(ANGLES)} angles. In brackets 95 % intervals over pictures. "
             "`./scripts/bench codes` repeats it.", "", "| | read, all views | wrong modules | SSIM to the sampled picture |", "|---|---|---|---|"]
    for r in rows:
        s = r["ssim to the sampled picture"]
        lines.append(f"| {r['way']} | {share(r['read'])} | {share(r['wrong modules'])} | {s[0]:.2f} [{s[1]:.2f}, {s[2]:.2f}] |")
    lines += ["", "Read at each size and angle:", "", "| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {r['way']} | " + " | ".join(f"{r['views'][n]:.0%}" for n in names) + " |" for r in rows]
    return "\n".join(lines) + "\n"
