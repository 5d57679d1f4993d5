"""Text recognisers of ABINet's layout with random weights, small ones and of the published size."""
import torch

from lodestar.guidance.attention.glyph_reader import CHARACTERS, GlyphReader, positions

LENGTH = 4      # positions: up to 3 characters
WIDTHS, DEPTHS, INNER, DOWN = (8, 12, 24, 32, 48), (1, 1, 1, 1, 1), 96, 12


def fresh(seed=0):
    """A GlyphReader of the small size with random weights."""
    def block(inner, outer, down):
        names = {"conv1.weight": (outer, inner, 1, 1), "conv2.weight": (outer, outer, 3, 3)} | ({"downsample.0.weight": (outer, inner, 1, 1)} if down else {})
        return names | {f"{bn}.{p}": (outer,) for bn in ("bn1", "bn2", *(("downsample.1",) if down else ())) for p in ("weight", "bias", "running_mean", "running_var")}
    shapes, inner, width = {"backbone.resnet.conv1.weight": (WIDTHS[0], 3, 3, 3)}, WIDTHS[0], WIDTHS[-1]
    shapes |= {f"backbone.resnet.bn1.{p}": (inner,) for p in ("weight", "bias", "running_mean", "running_var")}
    for i, (outer, depth) in enumerate(zip(WIDTHS, DEPTHS)):
        for n in range(depth):
            down = n == 0 and (inner != outer or i in (0, 2))
            shapes |= {f"backbone.resnet.layer{i + 1}.{n}.{k}": s for k, s in block(inner, outer, down).items()}
            inner = outer
    layer = torch.nn.TransformerEncoderLayer(width, 8, INNER)
    shapes |= {f"backbone.transformer.layers.0.{k}": tuple(v.shape) for k, v in layer.state_dict().items()}
    convs = {f"k_encoder.{i}": (DOWN, width if i == 0 else DOWN) for i in range(4)} | {f"k_decoder.{i}": (width if i == 3 else DOWN, DOWN) for i in range(4)}
    for name, (outer, inner) in convs.items():
        first = 0 if "encoder" in name else 1
        shapes |= {f"attention.{name}.{first}.weight": (outer, inner, 3, 3), f"attention.{name}.{first}.bias": (outer,)}
        shapes |= {f"attention.{name}.{first + 1}.{p}": (outer,) for p in ("weight", "bias", "running_mean", "running_var")}
    classes = len(CHARACTERS) + 1
    shapes |= {"attention.project.weight": (width, width), "attention.project.bias": (width,), "cls.weight": (classes, width), "cls.bias": (classes,)}
    g, weights = torch.Generator().manual_seed(seed), {"attention.pos_encoder.pe": positions(LENGTH, width)}
    for name, shape in shapes.items():
        if len(shape) > 1:
            weights[name] = torch.randn(shape, generator=g) * (2.0 / torch.Size(shape[1:]).numel()) ** 0.5
        else:
            one = name.endswith(("running_var", ".weight"))
            weights[name] = torch.ones(shape) if one else torch.zeros(shape)
    return GlyphReader(weights)
