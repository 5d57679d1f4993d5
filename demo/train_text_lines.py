"""Trains the network that comes with Text Super-Resolution (demo/lines.py): lines of the bundled font, from what is left of them and their text.

    python scripts/_module.py lodestar.demo.train_text_lines [--out demo/weights] [--minutes 6] [--threads 1] [--seed 0] [--go-on]

Flow matching: the velocity's squared error at a level between 0 and 1. Letters are small ones; the font draws them as capitals, whose bytes are taught the same. Half of the lines have their text, one in five of these with a wrong character; one in ten has no picture. Lines are brought to a sixth to a third of
their size, with noise of up to 0.1.
"""
import random

import torch

from ..guidance.attention.glyph_reader import CHARACTERS
from ..guidance.inverse.text_network import FREQUENCIES, HEAD, TextNetwork, encode
from ..guidance.inverse.text_super_resolution import sample
from .lines import LINE, NAME, SMALL, LineReader, degrade, drawn, picture
from .train_loop import train_whole

SAID, WRONG, BLIND = 0.5, 0.2, 0.1


def fresh():
    network, n = TextNetwork(line=LINE), 2 * FREQUENCIES
    with torch.no_grad():      # each head looks at first at the character that stands where its cell is
        network.text.embed.weight[:, :n], network.text.place.weight[n:], network.text.place.bias[:] = 0.0, 0.0, 0.0
        network.text.place.weight[:n] = torch.eye(n)
        for attend in (block.attend for block in (*network.down, network.middle, *network.up)):
            for head in range(0, len(attend.place.weight), HEAD):
                attend.place.weight[head:head + n], attend.to_k.weight[head:head + n, :n] = 2 * torch.eye(n), 2 * torch.eye(n)
    for zero in (network.leave, *(block.attend.to_out for block in (*network.down, network.middle, *network.up))):
        torch.nn.init.zeros_(zero.weight)
        torch.nn.init.zeros_(zero.bias)
    return network


def mistaken(rng, text):
    i = rng.randrange(len(text))
    return text[:i] + rng.choice(CHARACTERS) + text[i + 1:]


def examples(rng, n, generator, share=None, noise=None):
    """(texts, lines, what is left of them), pictures in [-1, 1]."""
    texts = [drawn(rng) for _ in range(n)]
    lines = torch.stack([picture(rng, t) for t in texts])
    low = torch.cat([degrade(u[None], rng.uniform(0.17, 0.34) if share is None else share, rng.uniform(0, 0.1) if noise is None else noise, generator) for u in lines])
    return texts, 2 * lines - 1, 2 * low - 1


def alike(network):
    """Capital letters mean what small ones mean."""
    with torch.no_grad():
        network.text.embed.weight[ord("A"):ord("Z") + 1] = network.text.embed.weight[ord("a"):ord("z") + 1]


def loss_of(network, rng, n, code, generator):
    alike(network)
    texts, true, low = examples(rng, n, generator)
    said = [("" if rng.random() > SAID else mistaken(rng, t) if rng.random() < WRONG else t) for t in texts]
    low = low * torch.tensor([float(rng.random() > BLIND) for _ in texts])[:, None, None, None]
    level, noise = torch.rand(n, generator=generator), torch.randn(true.shape, generator=generator)
    at = level[:, None, None, None]
    return (network((1 - at) * true + at * noise, level, low, *encode(said, network.length)) - (noise - true)).square().mean()


def edit_share(a, b):
    """The edit distance of two texts as a share of the second's length."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1] / len(b)


@torch.no_grad()
def figures(network, code, seed, count=48):
    """Of lines of their own at a quarter and a sixth of their size (there picture and text alone): characters read rightly (1 - edit distance), lines read rightly, and the PSNR in dB, as they are and as they are drawn."""
    reader, result = LineReader(), {}
    for share in (SMALL, 0.17):
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        texts, true, low = examples(rng, count, generator, share, 0.05)
        noise = torch.randn(true.shape, generator=generator)
        read = reader.read((low + 1) / 2)
        run = lambda said, **scales: sample(network, low, said, noise, 12, **scales)
        by_reading = run(read) if share == SMALL else None
        found = {"as it is": low, "picture alone": run([""] * count), "right text": run(texts)}
        if share == SMALL:
            found |= {"text read from it": by_reading, "read twice": run(reader.read((by_reading + 1) / 2)), "right text, scale 2": run(texts, text=2.0),
                      "one wrong character": run([mistaken(random.Random(i), t) for i, t in enumerate(texts)]), "true line": true}
        for name, lines in found.items():
            back = reader.read(((lines + 1) / 2).clamp(0, 1))
            error = ((lines.clamp(-1, 1) - true) / 2).square().mean((1, 2, 3)).clamp(min=1e-9)
            result[f"{share:g}: {name}"] = {"characters": round(sum(1 - min(1.0, edit_share(a, b)) for a, b in zip(back, texts)) / count, 3),
                                            "lines": round(sum(a == b for a, b in zip(back, texts)) / count, 3), "psnr": round(float((-10 * error.log10()).mean()), 2)}
    return result


def main():
    train_whole(__doc__.splitlines()[0], NAME, fresh, loss_of, figures, minutes=6, batch=16, out="demo/weights")


if __name__ == "__main__":
    main()
