"""Small convolutional networks and heads from the tensors of a safetensors file, by the names of its keys.

    VGG        features.N.{weight, bias}, batch norms as features.N+1.{weight, bias, running_mean, running_var}; classifier.N.{weight, bias}; as torchvision names them (vgg11 to vgg19, _bn)
    ResNet     conv1, bn1, layer1 .. layer4.I.{conv1, bn1, conv2, bn2, conv3, bn3, downsample.0, downsample.1}, fc; as torchvision names them (resnet18 to resnet152, wide ones)
    FCN        backbone.* like a ResNet with dilated layers 3 and 4, classifier.0, classifier.1, classifier.4 (torchvision's fcn_resnet50, fcn_resnet101)
    head       weight, bias; or layers.N.{weight, bias}: linear layers on an encoder's embedding, as LAION's aesthetic predictors have them

A VGG may have head.{weight, bias} [labels, channels, 1, 1]: a class for each cell of its last map. Beside the tensors a file may say (safetensors metadata): mean, std (three numbers; ImageNet's
else), size (side of the pictures; 224 for networks with fc or classifier, any for VGG features alone), classes, labels (names, a JSON list or separated by commas), activation (between linear layers:
none, relu or gelu), unit (whether a head takes the embedding at unit length; true).
A layer's number is how many modules of `features` were passed (VGG: 2 is relu1_1, 4 relu1_2, 9 relu2_2, 16 relu3_3, 23 relu4_3 of vgg16), or the stage (ResNet: 0 the stem, 1 to 4).
"""
from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .encoder import Seen

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STYLE = (2, 7, 12, 21, 30)          # relu1_1 to relu5_1 of vgg16 and vgg19's first four
FEATURES = (4, 9, 16, 23)           # relu1_2, relu2_2, relu3_3, relu4_3 of vgg16
PREFIXES = ("module.", "model.", "net.")
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


def _numbers(text):
    return tuple(float(v) for v in str(text).replace(",", " ").split())


def _names(text):
    found = json.loads(text) if str(text).strip().startswith("[") else str(text).split(",")
    return tuple(str(n).strip() for n in found)


def parse(tensors, notes=None, name="file"):
    """The Network of a file's tensors and metadata; ValueError that says what is missing. No graph goes through its weights."""
    notes = dict(notes or {})
    keys = set(tensors)
    for prefix in PREFIXES:
        if keys and all(k.startswith(prefix) for k in keys):
            tensors, keys = {k[len(prefix):]: v for k, v in tensors.items()}, {k[len(prefix):] for k in keys}
    with torch.inference_mode(False):
        weights = {k: v.detach().float().clone() if v.is_floating_point() else v.detach().clone() for k, v in tensors.items()}
    if "features.0.weight" in keys:
        cls = VGG
    elif "backbone.conv1.weight" in keys or {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"} <= keys:
        cls = ResNet
    elif "weight" in keys or any(re.fullmatch(r"layers\.\d+\.weight", k) for k in keys):
        cls = Head
    else:
        raise ValueError("It has none of the known layouts: torchvision's VGG (features.0.weight), ResNet (conv1.weight, bn1, layer1 ...), FCN (backbone.conv1.weight), or linear layers (weight; layers.0.weight).")
    return cls(name, weights, notes)


@dataclass(eq=False)
class Network:
    """A network as an encoder, with `logits` [n, classes] and `cells` [n, labels, h, w] where it has them. takes: "pictures", or "embedding" of another encoder."""

    name: str
    weights: dict = field(repr=False)
    notes: dict = field(default_factory=dict, repr=False)

    takes = "pictures"
    layers = ()
    style_layers = feature_layers = ()

    def __post_init__(self):
        self.mean, self.std = _numbers(self.notes.get("mean", "")) or IMAGENET[0], _numbers(self.notes.get("std", "")) or IMAGENET[1]
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("Its metadata mean and std must be three numbers each, std above 0.")
        self.classes, self.labels = (_names(self.notes[k]) if k in self.notes else () for k in ("classes", "labels"))
        self.side = int(self.notes.get("size", self.usual_side()))
        self.key, self._on = ("network", id(self)), {}

    def __deepcopy__(self, memo):
        return self

    def usual_side(self):
        return 224

    def on(self, device):
        """The weights on a device; those of the last one are kept."""
        if device not in self._on:
            with torch.inference_mode(False):
                self._on = {device: {k: v.to(device) for k, v in self.weights.items()}}
        return self._on[device]

    def prepared(self, pictures):
        mean, std = (pictures.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pictures.float() - mean) / std

    def pick(self, word, of_cells=False):
        """The number of a class by its number or name; LookupError for what it has not."""
        names, word = self.labels if of_cells else self.classes, word.strip()
        if word in names:
            return names.index(word)
        if re.fullmatch(r"\d+", word) and int(word) < self.count(of_cells):
            return int(word)
        raise LookupError(word)

    def count(self, of_cells=False):
        """How many classes it has, of pictures or of cells; LookupError that names the missing tensor where it has none."""
        raise NotImplementedError


def _linear(w, prefix, x, activation):
    """Linear layers prefix.N in the order of their numbers."""
    found = sorted(int(k[len(prefix):].split(".")[0]) for k in w if re.fullmatch(re.escape(prefix) + r"\d+\.weight", k))
    for i, n in enumerate(found):
        x = F.linear(x, w[f"{prefix}{n}.weight"], w.get(f"{prefix}{n}.bias"))
        x = activation(x) if i < len(found) - 1 else x
    return x


class Head(Network):
    """Linear layers on an embedding."""

    takes = "embedding"

    def __post_init__(self):
        super().__post_init__()
        first = self.weights.get("weight") if "weight" in self.weights else self.weights[min((k for k in self.weights if re.fullmatch(r"layers\.\d+\.weight", k)), key=lambda k: int(k.split(".")[1]))]
        self.width = first.shape[-1]
        self.unit = str(self.notes.get("unit", "true")).lower() != "false"
        name = self.notes.get("activation", "none")
        if name not in ACTIVATIONS:
            raise ValueError(f"Its metadata activation is {name!r}; it may be: {', '.join(ACTIVATIONS)}.")
        self.activation = ACTIVATIONS[name]

    def count(self, of_cells=False):
        if "weight" in self.weights:
            return self.weights["weight"].shape[0]
        return self.weights[max((k for k in self.weights if re.fullmatch(r"layers\.\d+\.weight", k)), key=lambda k: int(k.split(".")[1]))].shape[0]

    def logits(self, embedding):
        """[n, classes] of embeddings [n, width]."""
        w, x = self.on(embedding.device), embedding.float()
        x = F.normalize(x, dim=-1, eps=1e-8) if self.unit else x
        return F.linear(x, w["weight"], w.get("bias")) if "weight" in w else _linear(w, "layers.", x, self.activation)


class VGG(Network):
    """Convolutions of 3 x 3, as torchvision's VGG."""

    def __post_init__(self):
        super().__post_init__()
        convs = sorted(int(k.split(".")[1]) for k, v in self.weights.items() if re.fullmatch(r"features\.\d+\.weight", k) and v.ndim == 4)
        self.modules = []      # (number of the module, kind)
        for at, following in zip(convs, [*convs[1:], None]):
            self.modules.append((at, "conv"))
            last = at
            if f"features.{at + 1}.running_mean" in self.weights:
                last += 1
                self.modules.append((last, "norm"))
            self.modules.append((last + 1, "relu"))
            if (following is None and self.flat()) or (following is not None and following - last == 3):
                self.modules.append((last + 2, "pool"))
            elif following is not None and following - last != 2:
                raise ValueError(f"Between features.{at} and features.{following} there is more than torchvision's VGG has.")
        self.channels = self.weights[f"features.{convs[-1]}.weight"].shape[0]
        self.layers = tuple(n + 1 for n, _ in self.modules)
        relus = tuple(n + 1 for n, kind in self.modules if kind == "relu")
        self.style_layers = tuple(n for n in STYLE if n in relus) or relus
        self.feature_layers = tuple(n for n in FEATURES if n in relus) or relus

    def flat(self):
        """Whether its classifier takes 7 x 7 cells, as torchvision's."""
        first, last = self.weights.get("classifier.0.weight"), [v for k, v in self.weights.items() if re.fullmatch(r"features\.\d+\.weight", k) and v.ndim == 4][-1]
        return first is not None and first.shape[1] == 49 * last.shape[0]

    def usual_side(self):
        return 224 if "classifier.0.weight" in self.weights else 0

    def count(self, of_cells=False):
        if of_cells:
            return self.weights["head.weight"].shape[0]
        last = max((int(k.split(".")[1]) for k in self.weights if re.fullmatch(r"classifier\.\d+\.weight", k)), default=0)
        return self.weights[f"classifier.{last}.weight"].shape[0]

    def _run(self, pictures, layers):
        w, x, maps = self.on(pictures.device), self.prepared(pictures), {}
        last = None if layers is None else max(layers, default=0)
        for n, kind in self.modules:
            if kind == "conv":
                x = F.conv2d(x, w[f"features.{n}.weight"], w.get(f"features.{n}.bias"), padding=1)
            elif kind == "norm":
                x = _norm(w, f"features.{n}", x)
            else:
                x = F.relu(x) if kind == "relu" else F.max_pool2d(x, 2)
            if layers and n + 1 in layers:
                maps[n + 1] = x
            if last and n + 1 >= last:
                break
        return x, maps

    def see(self, pictures, layers=()):
        x, maps = self._run(pictures, layers or None)
        return Seen(None if layers else x.mean((2, 3)), maps)

    def logits(self, pictures):
        x, _ = self._run(pictures, None)
        x = F.adaptive_avg_pool2d(x, 7).flatten(1) if self.flat() else x.mean((2, 3))
        return _linear(self.on(pictures.device), "classifier.", x, F.relu)

    def cells(self, pictures):
        x, _ = self._run(pictures, None)
        w = self.on(pictures.device)
        return F.conv2d(x, w["head.weight"], w.get("head.bias"))


def _norm(w, key, x):
    return F.batch_norm(x, w[f"{key}.running_mean"], w[f"{key}.running_var"], w[f"{key}.weight"], w[f"{key}.bias"])


class ResNet(Network):
    """torchvision's ResNet; with a `backbone.` before its keys its FCN."""

    def __post_init__(self):
        super().__post_init__()
        self.fully = "backbone.conv1.weight" in self.weights
        self.prefix = "backbone." if self.fully else ""
        self.layers, self.style_layers, self.feature_layers = (0, 1, 2, 3, 4), (0, 1, 2), (1, 2, 3)
        if self.fully and "classifier.4.weight" not in self.weights:
            raise ValueError("It has a backbone, but not the classifier.0, classifier.1, classifier.4 of torchvision's FCN.")

    def usual_side(self):
        return 0 if "backbone.conv1.weight" in self.weights else 224

    def count(self, of_cells=False):
        return self.weights["classifier.4.weight" if of_cells else "fc.weight"].shape[0]

    def _block(self, w, key, x, stride, dilation):
        def conv(i, x, stride=1, dilation=1):
            kernel = w[f"{key}.conv{i}.weight"]
            x = F.conv2d(x, kernel, None, stride, dilation if kernel.shape[-1] == 3 else 0, dilation if kernel.shape[-1] == 3 else 1, self._groups(kernel, x))
            return _norm(w, f"{key}.bn{i}", x)
        kept = x if f"{key}.downsample.0.weight" not in w else _norm(w, f"{key}.downsample.1", F.conv2d(x, w[f"{key}.downsample.0.weight"], None, stride))
        if f"{key}.conv3.weight" in w:
            out = conv(3, conv(2, conv(1, x).relu(), stride, dilation).relu())
        else:
            out = conv(2, conv(1, x, stride, dilation).relu())
        return (out + kept).relu()

    @staticmethod
    def _groups(kernel, x):
        return x.shape[1] // kernel.shape[1]

    def _run(self, pictures, layers):
        w, maps, last = self.on(pictures.device), {}, max(layers) if layers else 4
        x = F.conv2d(self.prepared(pictures), w[f"{self.prefix}conv1.weight"], None, 2, 3)
        x = F.max_pool2d(_norm(w, f"{self.prefix}bn1", x).relu(), 3, 2, 1)
        maps[0], dilation = x, 1
        for stage in range(1, last + 1):
            dilated, i = self.fully and stage > 2, 0
            stride, first = (2 if stage > 1 and not dilated else 1), dilation
            dilation = 2 * dilation if dilated else dilation
            while f"{self.prefix}layer{stage}.{i}.conv1.weight" in w:
                x = self._block(w, f"{self.prefix}layer{stage}.{i}", x, stride if i == 0 else 1, first if i == 0 else dilation)
                i += 1
            maps[stage] = x
        return x, {n: maps[n] for n in layers or ()}

    def see(self, pictures, layers=()):
        x, maps = self._run(pictures, layers)
        return Seen(None if layers else x.mean((2, 3)), maps)

    def logits(self, pictures):
        w = self.on(pictures.device)
        return F.linear(self._run(pictures, ())[0].mean((2, 3)), w["fc.weight"], w.get("fc.bias"))

    def cells(self, pictures):
        w, x = self.on(pictures.device), self._run(pictures, ())[0]
        x = _norm(w, "classifier.1", F.conv2d(x, w["classifier.0.weight"], None, padding=1)).relu()
        return F.conv2d(x, w["classifier.4.weight"], w.get("classifier.4.bias"))
