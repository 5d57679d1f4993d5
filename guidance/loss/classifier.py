"""Losses of a classifier: of the whole picture, or of each of its cells."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..method import BadInput, param, socket
from .clip import lines_of
from .encoder import CutoutLoss, EncoderLoss, embedding_of, framed, sized
from .picture import mean

OBJECTIVES = ("log-probability", "probability", "margin", "boundary", "activation")


def chosen(text, network, node, field_name, of_cells=False):
    """[(number, weight)] of "red circle: 2, 5": classes of pictures or of cells by number or name, each with a weight."""
    try:
        count, names = network.count(of_cells), network.labels if of_cells else network.classes
    except LookupError as missing:
        raise BadInput(node, "network" if of_cells else "classifier", network.name, f"It has no classes of {'cells' if of_cells else 'pictures'} ({missing} is missing).") from missing
    found = []
    for part in (p for p in text.split(",") if p.strip()):
        word, colon, weight = part.rpartition(":")
        try:
            found.append((network.pick(word if colon else part, of_cells), float(weight) if colon else 1.0))
        except (LookupError, ValueError) as error:
            named = f" or its name ({', '.join(names[:3])} ...)" if names else ""
            raise BadInput(node, field_name, part.strip(), f"Write a class by its number, 0 to {count - 1}{named}; a weight may follow behind a colon.") from error
    if not found or sum(abs(w) for _, w in found) == 0:
        raise BadInput(node, field_name, text, "Name at least one class, by its number or name, with a weight that is not 0.")
    return found


def shared(t, lines, node, field_name, axis=0):
    """t cut along its pictures into as many equal parts as there are lines: one line is for all, several are one for each."""
    if t.shape[axis] % len(lines):
        raise BadInput(node, field_name, f"{len(lines)} lines", f"Write one line, or one for each of the {t.shape[axis]} pictures.")
    return t.split(t.shape[axis] // len(lines), axis)


@frozen(eq=False)
class ClassifierLoss(CutoutLoss):
    """What a classifier makes of the picture: a class, the border between classes, what two classifiers disagree on, or a neuron.

        f = logits of u (those of `among` alone), p = softmax f, K the classes named, w their weights
        log-probability:  -log sum_{k in K} p_k                          one of them; a single one is the cross-entropy
        probability:      -sum_{k in K} p_k
        margin:           -( max_{k in K} f_k - max_{k not in K} f_k )
        boundary:         -sum_{k in K} w_k log p_k / sum w              all of them at once, as likely as they weigh: samples between classes
        activation:       -mean of channel `neuron` of the map at layer `layer`
        second:           minus the same of another classifier: what the first sees and the second does not
        keep:             + keep mean (u - y)^2, y the picture before: a counterfactual that stays near it

    DiG-IN investigates classifiers so: maximal classes and neurons, disagreements (with probability, log-probability or margin), counterfactuals. Its optimisation over latent and text is another node's work; here each
    step of sampling is led. GUIDE (arXiv 2403.03938) rehearses what a learner forgets: prompt an old class and name the new ones here, with `among` where the learner has classes that do not count yet; its released
    code uses log-probability on the clean estimate through the network (classifier_sample_universal.py).
    The classifier is a file (Load Vision Network): a VGG or ResNet that sees pictures, or linear layers on the embedding of the connected image encoder. Several lines of classes: one for each picture of the batch.
    Paper: Augustin et al., "DiG-IN", arXiv 2311.17833 (released loss_functions.py; its augmentations are the cutouts here).
    Limits: classifiers have adversarial directions; robust ones, cutouts and gradients through the network help. Cost: decoding and classifying with their backward passes.
    """

    node_id = "LodestarClassifierLoss"
    title = "Classifier Loss"
    paper = ("DiG-IN", "GUIDE: Guidance-based Incremental Learning")
    aliases = ("classifier guidance", "counterfactual", "neuron activation", "rehearsal")

    classifier: Any = socket("LODESTAR_NETWORK", "The classifier, from Load Vision Network.")
    classes: str = param("0", "The classes wanted, by number or name: \"3\" or \"red circle, red square\"; a weight behind a colon for the boundary. Several lines: one for each picture of the batch.")
    objective: str = param("log-probability", "What is made small; see the help.", choices=OBJECTIVES)
    among: str = param("", "Classes that count, by number or name; empty: all.", advanced=True)
    second: Any = socket("LODESTAR_NETWORK", "A second classifier that is not to see it.", optional=True)
    clip_vision: Any = socket("CLIP_VISION", "The image encoder whose embedding a head takes.", optional=True)
    image: Any = socket("IMAGE", "The picture before, for a counterfactual; as large as what is sampled.", optional=True)
    keep: float = param(0.0, "Weight of the mean squared distance to that picture.", 0.0, 1e6, 0.1)
    layer: int = param(-1, "activation: the layer by its number, -1 the last.", -1000, 1000, 1, advanced=True)
    neuron: int = param(0, "activation: the channel.", 0, 1000000, 1, advanced=True)

    pointwise = True

    def check(self):
        super().check()
        for name in ("classifier", "second"):
            network = getattr(self, name)
            if network is None:
                continue
            if network.takes == "embedding" and self.clip_vision is None:
                raise BadInput(self.title, "clip_vision", None, f"{network.name} is a head on an image encoder's embedding; connect that encoder.")
            if self.objective == "activation" and network.takes == "embedding":
                raise BadInput(self.title, "objective", self.objective, "A head has no layers of maps; use a VGG or ResNet.")
            if self.objective != "activation":
                self.wanted_classes(network)
        if self.keep and self.target is None:
            raise BadInput(self.title, "image", None, "keep needs the picture that is to be kept.")
        return self

    def wanted_classes(self, network):
        """([[(number, weight)] for each line], [numbers that count])."""
        lines = [chosen(line, network, self.title, "classes") for line in lines_of(self.classes) or [""]]
        among = [n for n, _ in chosen(self.among, network, self.title, "among")] if self.among.strip() else list(range(network.count()))
        for line in lines:
            if any(n not in among for n, _ in line):
                raise BadInput(self.title, "among", self.among, "The wanted classes have to be among those that count.")
        return lines, among

    def measure(self, u, m, context):
        found = self.of(self.classifier, u, m, context)
        if self.second is not None:
            found = found - self.of(self.second, u, m, context)
        if self.keep and self.target is not None:
            found = found + self.keep * mean((u - self.wanted(u)).square(), u.new_ones(u.shape[0], 1, *u.shape[-2:]))
        return found

    def of(self, network, u, m, context):
        """[n]: the objective of one classifier."""
        if self.objective == "activation":
            layer = network.layers[-1] if self.layer == -1 else self.layer
            if layer not in network.layers:
                raise BadInput(self.title, "layer", self.layer, f"{network.name} has the layers {network.layers[0]} to {network.layers[-1]}; -1 is the last.")
            seen = self.seen(network, u, m, context, (layer,)).maps[layer]
            if self.neuron >= seen.shape[1]:
                raise BadInput(self.title, "neuron", self.neuron, f"This layer has {seen.shape[1]} channels.")
            return -seen[:, self.neuron].mean((1, 2))
        logits = self.logits(network, u, m, context)       # [views, n, classes]
        lines, among = self.wanted_classes(network)
        parts = shared(logits, lines, self.title, "classes", 1)
        return torch.cat([self.objective_of(part, line, among) for part, line in zip(parts, lines)], 1).mean(0)

    def logits(self, network, u, m, context):
        """[views, n, classes], once a step."""
        if network.takes == "embedding":
            e = self.embeddings(self.clip_vision, u, m, context) if network.unit or self.cutouts else embedding_of(self.seen(self.clip_vision, u, m, context), self.title)[None]
            if e.shape[-1] != network.width:
                raise BadInput(self.title, "clip_vision", f"embeddings of width {e.shape[-1]}", f"{network.name} takes width {network.width}: connect the encoder that it was trained with.")
            return network.logits(e.flatten(0, 1)).unflatten(0, e.shape[:2])
        if not self.cutouts:
            return context.once(("logits", network.key, None if self.mask is None else id(self.mask)), u, lambda: network.logits(framed(u.float(), m.float(), network.side)))[None]
        return network.logits(self.views(u, m, context, network.side)).unflatten(0, (self.cutouts, -1))

    def objective_of(self, f, wanted, among):
        """[views, n] of logits [views, n, classes]."""
        inside = [among.index(n) for n, _ in wanted]
        f = f[..., among].float()
        if self.objective == "margin":
            others = [i for i in range(len(among)) if i not in inside]
            if not others:
                raise BadInput(self.title, "classes", self.classes, "A margin needs classes that are not wanted.")
            return f[..., others].amax(-1) - f[..., inside].amax(-1)
        log_p = f.log_softmax(-1)[..., inside]
        if self.objective == "boundary":
            w = f.new_tensor([weight for _, weight in wanted])
            return -(log_p * w).sum(-1) / w.sum()
        log_p = log_p.logsumexp(-1)
        return -log_p.exp() if self.objective == "probability" else -log_p


FORMS = ("cross-entropy", "dice")


def _gap(f, inside):
    """log p / (1 - p) [n, 1, h, w] of the classes `inside` together, of logits [n, classes, h, w]."""
    others = [n for n in range(f.shape[1]) if n not in inside]
    return f[:, inside].logsumexp(1, keepdim=True) - f[:, others].logsumexp(1, keepdim=True)


@frozen(eq=False)
class SegmentationLoss(EncoderLoss):
    """Where a segmentation network sees a class: inside a region, and not elsewhere.

        p [h, w]: probability of the class in each cell of the network's grid, r the region on it
        cross-entropy:  mean over the region of -log p   +  outside  mean over the rest of -log(1 - p)
        dice:           1 - 2 sum p r / (sum p + sum r)

    Universal Guidance's segmentation loss is the cross-entropy to a whole label map; here one class and its region, and several nodes added (Combine Losses) make a map. outside 0 leaves the rest free.
    The network is a file (Load Vision Network): torchvision's FCN on ResNet (its VOC weights know 21 labels), or a VGG with a head.
    Paper: Bansal et al., "Universal Guidance", arXiv 2302.07121; its MobileNetV3 is another network. Deviation: the two means are taken apart, so that a small region counts as much as the rest.
    Cost: decoding and segmenting with their backward passes.
    """

    node_id = "LodestarSegmentationLoss"
    title = "Segmentation Loss"
    paper = "Universal Guidance"
    aliases = ("mask loss", "layout", "semantic map")

    network: Any = socket("LODESTAR_NETWORK", "The segmentation network, from Load Vision Network.")
    region: Any = socket("MASK", "Where the class is to be.")
    label: str = param("0", "The class, by number or name; several, separated by commas, count as one. Several lines: one for each picture of the batch.")
    form: str = param("cross-entropy", "cross-entropy: cell by cell; dice: by the overlap.", choices=FORMS)
    outside: float = param(1.0, "cross-entropy: how much the rest of the picture counts; 0 leaves it free.", 0.0, 100.0, 0.05)

    def check(self):
        super().check()
        if self.network.takes != "pictures":
            raise BadInput(self.title, "network", self.network.name, "A head on an embedding sees no cells; connect an FCN, or a VGG with a head.")
        if self.region is None or not bool((self.region > 0).any()):
            raise BadInput(self.title, "region", "empty", "Nothing is marked in the region; paint white where the class is to be.")
        self.labels()
        return self

    def labels(self):
        """[[numbers] for each line]."""
        return [[n for n, _ in chosen(line, self.network, self.title, "label", True)] for line in lines_of(self.label) or [""]]

    def measure(self, u, m, context):
        f = context.once(("cells", self.network.key), u, lambda: self.network.cells(sized(u.float(), self.network.side)))
        lines = self.labels()
        gap = torch.cat([_gap(part.float(), line) for part, line in zip(shared(f, lines, self.title, "label"), lines)])
        r = self.region.to(gap)
        r = self._each(F.interpolate((r if r.ndim == 3 else r[None])[:, None], f.shape[-2:], mode="area"), u, "region")
        if self.form == "dice":
            p = gap.sigmoid()
            return 1 - 2 * (p * r).flatten(1).sum(1) / (p.flatten(1).sum(1) + r.flatten(1).sum(1))
        return mean(-F.logsigmoid(gap), r) + self.outside * mean(-F.logsigmoid(-gap), 1 - r)
