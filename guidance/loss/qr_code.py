"""Making and reading QR codes, with the libraries that do that well: segno and ZXing, both optional."""
from __future__ import annotations

import torch

from ..method import BadInput

LEVELS = ("L", "M", "Q", "H")
CELL = 8      # pixels of a latent's cell: the code's corner lies on one


def drawn(text, level, width, height, module, quiet_zone, node="QR Code"):
    """A picture [1, height, width, 3] of the code near the middle of light ground, its corner on a cell of the latent. module: pixels; 0: as many as fit."""
    try:
        import segno
    except ImportError:
        raise BadInput(node, "text", text, "Making a code needs the package segno (pip install segno); a picture from any generator does as well (Load Image).") from None
    if not text:
        raise BadInput(node, "text", text, "Write what the code is to say.")
    try:
        made = segno.make(text, error=level, micro=False, boost_error=False)
    except segno.DataOverflowError:
        raise BadInput(node, "text", f"{len(text)} characters", f"This is more than a code of level {level} holds; shorten it, or choose a lower level.") from None
    light = torch.tensor([[not cell for cell in row] for row in made.matrix])
    count = light.shape[0]
    room = min(width, height) // (count + 2 * quiet_zone)
    if room < 1 or module > room:
        need = (count + 2 * quiet_zone) * max(module, 1)
        raise BadInput(node, "width", f"{width} x {height}", f"A code of {count} modules and its quiet zone needs {need} x {need} pixels.")
    module = module or room
    code = light.repeat_interleave(module, 0).repeat_interleave(module, 1).float()
    picture = torch.ones(height, width)
    y, x = ((total - code.shape[0]) // 2 // CELL * CELL for total in (height, width))
    picture[y:y + code.shape[0], x:x + code.shape[1]] = code
    return picture[None, :, :, None].repeat(1, 1, 1, 3)


def read(pictures, node="Read QR Code"):
    """What a reader finds in pictures [n, height, width, 3]: a text for each, "" for none."""
    try:
        import zxingcpp
    except ImportError:
        raise BadInput(node, "image", f"{pictures.shape[0]} pictures", "Reading needs the package zxing-cpp (pip install zxing-cpp).") from None
    found = [zxingcpp.read_barcodes((p.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy(), formats=zxingcpp.BarcodeFormat.QRCode) for p in pictures]
    return [next((code.text for code in codes if code.text), "") for codes in found]
