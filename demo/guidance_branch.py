"""The bundled guidance branch (GuideSR) for one-step restorations of the bundled models' pictures."""
import torch

NAME = "guidance_branch"
WIDTH = 16                  # channels
BODY, FUSE = (2, 2), (2,)   # channel-attention blocks of each full-resolution block, before and behind the guided attention


def fresh(seed=0, width=WIDTH, body=BODY, fuse=FUSE):
    """Weights before training {key: tensor}: the last convolution is zero, so that nothing is added."""
    g, w = torch.Generator().manual_seed(seed), {}

    def conv(name, given, out, kernel=3, scale=1.0):
        w[f"{name}.weight"] = torch.randn(out, given, kernel, kernel, generator=g) * scale / (given * kernel * kernel) ** 0.5
        w[f"{name}.bias"] = torch.zeros(out)

    def blocks(place, counts):
        for i, count in enumerate(counts):
            for j in range(count):
                at = f"{place}.{i}.blocks.{j}"
                conv(f"{at}.conv1", width, width, 3, 1.5)
                conv(f"{at}.gate", width, width, 1)
                conv(f"{at}.conv2", width, width, 3, 0.7)
            conv(f"{place}.{i}.tail", width, width, 3, 0.5)
    conv("enter", 3, width)
    blocks("body", body)
    conv("tail", width, width, 3, 0.5)
    conv("guide.attend.0", 6, width)
    conv("guide.attend.1", width, width)
    conv("guide.project", width, width)
    conv("fuse.enter", width + 3, width)
    blocks("fuse.body", fuse)
    conv("leave", width, 3, 3, 0.0)
    return w
