"""Lines of text for the bundled text network: capital letters and digits of 5 x 7 dots, and a reader that compares with them."""
import random

import torch
import torch.nn.functional as F

from ..guidance.attention.glyph_reader import CHARACTERS, TextScore
from .weights_file import read

NAME = "text_lines"
LINE, SHORTEST, LONGEST, SMALL = (16, 64), 4, 5, 0.25      # pixels; characters of a line; share of its size that is left of a bad one
_DOTS = {
    "A": "0E11111F111111", "B": "1E11111E11111E", "C": "0E11101010110E", "D": "1E11111111111E", "E": "1F10101E10101F", "F": "1F10101E101010", "G": "0E11101711110F", "H": "1111111F111111",
    "I": "0E04040404040E", "J": "0702020202120C", "K": "11121418141211", "L": "1010101010101F", "M": "111B1515111111", "N": "11111915131111", "O": "0E11111111110E", "P": "1E11111E101010",
    "Q": "0E11111115120D", "R": "1E11111E141211", "S": "0F10100E01011E", "T": "1F040404040404", "U": "1111111111110E", "V": "11111111110A04", "W": "11111115151B11", "X": "11110A040A1111",
    "Y": "1111110A040404", "Z": "1F01020408101F", "0": "0E11131519110E", "1": "040C040404040E", "2": "0E11010204081F", "3": "1F02040201110E", "4": "02060A121F0202", "5": "1F101E0101110E",
    "6": "0608101E11110E", "7": "1F010204080808", "8": "0E11110E11110E", "9": "0E11110F01020C",
}


def glyph(character):
    """The dots of a character [7, 5], 1 where there is ink; small letters are drawn as capitals."""
    code = _DOTS[character.upper()]
    return torch.tensor([[(int(code[2 * r:2 * r + 2], 16) >> (4 - c)) & 1 for c in range(5)] for r in range(7)], dtype=torch.float32)


def ink(text, size=LINE):
    """Where a line of text has ink [h, w] in 0..1: its characters fill the line, but for a margin of half a dot."""
    dots = torch.cat([F.pad(glyph(c), (0, 1)) for c in text], 1)[:, :-1]
    dots = F.pad(dots, (1, 1, 1, 1)).repeat_interleave(8, 0).repeat_interleave(8, 1)[4:-4, 4:-4]
    return F.interpolate(dots[None, None], size, mode="bilinear", antialias=True)[0, 0]


def drawn(rng, characters=CHARACTERS):
    """A text of some characters."""
    return "".join(rng.choice(characters) for _ in range(rng.randint(SHORTEST, LONGEST)))


def picture(rng, text, size=LINE):
    """A line [3, h, w] in [0, 1]: ink and ground of any two colours that differ clearly in brightness."""
    while True:
        a, b = (torch.tensor([rng.random() for _ in "rgb"]) for _ in "ab")
        if abs(float(a.mean() - b.mean())) > 0.3:
            break
    cover = ink(text, size)
    return a[:, None, None] * cover + b[:, None, None] * (1 - cover)


def degrade(lines, share, noise, generator):
    """Lines [n, 3, h, w] brought to a share of their size, with noise, and back to it."""
    size = tuple(max(2, round(s * share)) for s in lines.shape[-2:])
    small = F.interpolate(lines, size, mode="bilinear", antialias=True)
    small = (small + noise * torch.randn(small.shape, generator=generator)).clamp(0, 1)
    return F.interpolate(small, lines.shape[-2:], mode="bicubic").clamp(0, 1)


class _Alphabet:
    """What a TextScore asks of its reader."""

    characters, length = CHARACTERS, LONGEST + 1


class LineReader(TextScore):
    """Reads lines of the bundled font: each character's cell is compared with every character's dots, for each number of characters, and the number whose characters fit best is taken."""

    sharpness = 25.0

    def __init__(self):
        super().__init__(_Alphabet())
        self.forms = {n: self._forms(n) for n in range(SHORTEST, LONGEST + 1)}

    @staticmethod
    def _cells(lines, n):
        """Cells [m, n, pixels] of gray lines [m, h, w], each of mean 0 and length 1."""
        wide = F.interpolate(lines[:, None], (LINE[0], 12 * n), mode="bilinear", antialias=True)[:, 0]
        cells = wide.unflatten(2, (n, 12)).permute(0, 2, 1, 3).flatten(2)
        cells = cells - cells.mean(2, keepdim=True)
        return cells / cells.norm(dim=2, keepdim=True).clamp(min=1e-4)

    def _forms(self, n):
        """[n, characters, pixels]: how each character looks in each place."""
        return torch.stack([self._cells(ink(c * n)[None], n)[0] for c in CHARACTERS], 1)

    def probabilities(self, pictures):
        lines = F.interpolate(pictures.float().mean(1, keepdim=True), LINE, mode="bilinear", antialias=True)[:, 0].cpu()
        edge = torch.cat((lines[:, 0], lines[:, -1], lines[:, :, 0], lines[:, :, -1]), 1).mean(1)      # the ground
        lines = lines - edge[:, None, None]
        lines = lines * torch.where(lines.mean((1, 2)) < 0, -1.0, 1.0)[:, None, None]                  # ink is brighter than the ground
        found = {n: torch.einsum("mnp,ncp->mnc", self._cells(lines, n), forms) for n, forms in self.forms.items()}
        fits = torch.stack([f.amax(2).mean(1) for f in found.values()], 1).argmax(1)
        out = torch.zeros(len(lines), LONGEST + 1, 1 + len(CHARACTERS))
        out[..., 0] = 1
        for i, best in enumerate(fits.tolist()):
            n = SHORTEST + best
            out[i, :n, 0] = 0
            out[i, :n, 1:] = (self.sharpness * found[n][i]).softmax(-1)
        return out.to(pictures.device)


def placed(text, size, at, width, share, noise, seed):
    """(picture [3, h, w], the same with a line that was made small [3, h, w], mask [h, w]) with a line of `width` pixels at (top, left) `at`; ValueError for a text or a place that cannot be."""
    unknown = sorted({c for c in text if c.upper() not in _DOTS})
    if unknown or not SHORTEST <= len(text) <= LONGEST:
        raise ValueError(f"The font has letters and digits alone, not {''.join(unknown)!r}." if unknown else f"A line has {SHORTEST} to {LONGEST} characters.")
    (top, left), height = at, max(1, round(width * LINE[0] / LINE[1]))
    if top + height > size[0] or left + width > size[1]:
        raise ValueError(f"A line of {width} x {height} pixels at {left}, {top} does not fit into a picture of {size[1]} x {size[0]}.")
    line = picture(random.Random(seed), text)[None]
    bad = degrade(line, share, noise, torch.Generator().manual_seed(seed))
    mask, made = torch.zeros(size), []
    mask[top:top + height, left:left + width] = 1
    for given in (line, bad):
        whole = given[0, :, :1, :1].expand(-1, *size).clone() if not made else made[0].clone()
        whole[:, top:top + height, left:left + width] = F.interpolate(given, (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
        made.append(whole)
    return (*made, mask)


def network():
    """The TextNetwork of the weight file; its errors name the file."""
    from ..guidance.inverse.text_network import parse
    return parse(read(NAME))
