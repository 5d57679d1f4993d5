"""Nodes around Masked Subject Attention: the adapter's file, and subjects made of pictures."""
from ..guidance.attention.subject_attention import MaskedSubjectAttention
from ._define import Input, NodeDef, Output, category

BUNDLED = "bundled: subjects of the demo U-Net"
LOADER, SUBJECT = "Load Image Adapter", "Adapter Subject"
BEFORE = "LODESTAR_SUBJECTS"


def _files():
    from ..guidance.host.weight_files import ADAPTERS, names
    return [BUNDLED, *names(ADAPTERS)]


def _load(file):
    from ..guidance.attention.image_adapter import parse
    if file == BUNDLED:
        from ..demo.adapter import NAME
        from ..demo.weights_file import read
        return (parse(read(NAME), LOADER, BUNDLED),)
    from ..guidance.host.weight_files import ADAPTERS, load
    return (parse(load(LOADER, "file", file, ADAPTERS), LOADER, file),)


def _seen(adapter, vision, name):
    """The encoder's output that an adapter takes, [n, m, c] or [n, c]."""
    import torch

    from ..guidance.attention.image_adapter import READS
    from ..guidance.method import BadInput
    wanted = READS[adapter.kind]
    found = getattr(vision, wanted, None)
    if not isinstance(found, torch.Tensor):
        raise BadInput(SUBJECT, name, type(vision).__name__, f"{adapter.name} takes {wanted} of an image encoder; connect CLIP Vision Encode with the encoder that the adapter was trained with.")
    if found.shape[-1] != adapter.features:
        raise BadInput(SUBJECT, name, f"features of width {found.shape[-1]}", f"{adapter.name} takes features of width {adapter.features}: use the image encoder that it was trained with.")
    if not torch.isfinite(found).all():
        raise BadInput(SUBJECT, name, "not finite", "The image encoder gave no numbers for this picture; look at the picture.")
    return found if found.ndim < 3 else found.flatten(0, -3)


def _phrase(adapter, phrase):
    import torch

    from ..guidance.method import BadInput
    if phrase is None:
        return None
    if adapter.phrase is None:
        raise BadInput(SUBJECT, "phrase", "connected", f"{adapter.name} takes pictures alone; disconnect it.")
    pooled = [d["pooled_output"].detach().float().cpu()[0].flatten() for _, d in phrase if d.get("pooled_output") is not None]
    found = torch.cat(pooled) if pooled else torch.zeros(0)
    if len(found) != adapter.phrase:
        raise BadInput(SUBJECT, "phrase", f"a pooled text of width {len(found)}", f"{adapter.name} takes width {adapter.phrase}, that of the text encoder which it was trained with (MS-Diffusion: CLIP-L, "
                       "768; LOTS: those of CLIP-L and CLIP-G, 768 + 1280, by Conditioning (Combine)).")
    return found


def _subject(adapter, vision, weight, region, phrase, number, empty, subjects):
    from ..guidance.attention.image_adapter import Subject, Subjects
    from ..guidance.method import BadInput
    if subjects is not None and subjects.adapter is not adapter:
        raise BadInput(SUBJECT, "adapter", adapter.name, f"The subjects before are of {subjects.adapter.name}. Chain subjects of one adapter, and give those of another to a second Masked Subject Attention.")
    if region is not None and (number > len(region) or (number == 0 and len(region) != 1)):
        raise BadInput(SUBJECT, "number", number, f"A subject has one region, {len(region)} are connected: say which by its number, from 1 to {len(region)}.")
    features, blank = _seen(adapter, vision, "vision"), None if empty is None else _seen(adapter, empty, "empty")
    if blank is not None and blank.shape[1:] != features.shape[1:]:
        raise BadInput(SUBJECT, "empty", list(blank.shape), f"It must be encoded like the picture, which gave {list(features.shape)}.")
    made = Subject(features, None if region is None else region.items[max(0, number - 1)], _phrase(adapter, phrase), weight, blank, 0 if region is None else region.length or 0)
    before = subjects.items if subjects is not None else ()
    if adapter.kind == "pairs":
        others = {tuple(s.features.shape[1:]) for s in before} | {tuple(features.shape[1:])}
        if len(features) != 1 or len(others) != 1:
            raise BadInput(SUBJECT, "vision", list(features.shape), f"{adapter.name} takes one sketch for each subject, all encoded at one size.")
    return (Subjects(adapter, (*before, made)),)


FEATURES, SCENES = "features", "scenes and captions"


def _vision(encoder=FEATURES):
    from ..demo.vision import DemoVision, SceneVision
    return (SceneVision() if encoder == SCENES else DemoVision(),)


NODES = (
    NodeDef(
        node_id="LodestarLoadImageAdapter",
        title=LOADER,
        category=category("attention"),
        description="Reads an image adapter (IP-Adapter, MS-Diffusion, LOTS) from a safetensors file in models/ipadapter.",
        inputs=(Input("file", "COMBO", "A file of models/ipadapter, or the small one that comes with the pack.", BUNDLED, choices=_files),),
        outputs=(Output("LODESTAR_IMAGE_ADAPTER", "adapter", "For Adapter Subject."),),
        run=_load,
        aliases=("IP-Adapter", "MS-Diffusion", "LOTS"),
        part_of=MaskedSubjectAttention.node_id,
        help="""IP-Adapter's safetensors files for SD1.5 and SDXL (plain, "plus", "full"; not FaceID) are read as they are published. MS-Diffusion and LOTS publish their weights as pickles: bring
them to safetensors once, with the names of their dictionaries joined by points. Keys:

- image_proj.*: the projection of the image encoder's output (proj, norm; or a perceiver resampler with proj_in, layers.I.0, layers.I.1, proj_out, norm_out and latents; MS-Diffusion: grounding_latents,
  latent_proj, latent_norm in place of latents)
- ip_adapter.N.to_k_ip.weight, ip_adapter.N.to_v_ip.weight [width of the layer, width of the tokens]; ms_adapter.N... in MS-Diffusion's, cross_attn.N.to_k_lots.weight in LOTS' files. N counts the
  attentions of diffusers' U-Net, encoder, decoder, middle, with the self-attentions between them
- dummy_image_tokens [1, n, width of the tokens]: MS-Diffusion's tokens for the background
- text_proj.proj, text_proj.norm, pair_former.*: LOTS

The bundled file is for the demo model "unet" and the encoder of Load Demo Vision. It was trained by demo/train_adapter.py, in MS-Diffusion's layout.
"""),
    NodeDef(
        node_id="LodestarAdapterSubject",
        title=SUBJECT,
        category=category("attention"),
        description="A thing that is to be seen in the picture: what an image encoder saw of it, and where it is to be.",
        inputs=(Input("adapter", "LODESTAR_IMAGE_ADAPTER", "The adapter that makes tokens of it, from Load Image Adapter."),
                Input("vision", "CLIP_VISION_OUTPUT", "The thing's picture through CLIP Vision Encode; several pictures are put together."),
                Input("weight", "FLOAT", "How strongly this subject counts beside the others.", 1.0, 0.0, 10.0, 0.05),
                Input("region", "LODESTAR_REGIONS", "Where it is to be: a Region, or one of several from Prompt with Regions. Everywhere without it.", optional=True),
                Input("phrase", "CONDITIONING", "What it is, in words: \"dog\". MS-Diffusion takes CLIP-L's pooled text, LOTS those of CLIP-L and CLIP-G. The learned queries without it.", optional=True),
                Input("number", "INT", "Which of the regions, counted from 1; 0 takes the only one.", 0, 0, 1000, 1, optional=True, advanced=True),
                Input("empty", "CLIP_VISION_OUTPUT", "An empty (black) picture through the same encoder, for the negative prompt's rows; zeros without it.", optional=True, advanced=True),
                Input("subjects", BEFORE, "Subjects that come before this one.", optional=True)),
        outputs=(Output(BEFORE, "subjects", "For Masked Subject Attention."),),
        run=_subject,
        aliases=("image prompt", "reference image", "subject"),
        part_of=MaskedSubjectAttention.node_id,
        help="""Which output of the encoder is taken follows from the adapter: the embedding (IP-Adapter), the last layer but one ("plus", "full", MS-Diffusion), the last layer (LOTS, whose encoder is DINOv2).
Use the encoder that the adapter was trained with; another width is refused.

Chain the nodes to give several subjects. Without a region a subject is seen everywhere, as with an ordinary image adapter.
"""),
    NodeDef(
        node_id="LodestarLoadDemoVision",
        title="Load Demo Vision",
        category=category("demo"),
        description="A small image encoder that comes with the pack, for the bundled image adapter and for losses: use it like a CLIP Vision model.",
        inputs=(Input("encoder", "COMBO", "features: for the bundled image adapter. scenes and captions: pictures and texts in one space, as CLIP has them, for the losses that look through an encoder.", FEATURES,
                      choices=(FEATURES, SCENES), optional=True),),
        outputs=(Output("CLIP_VISION", "clip_vision", "For CLIP Vision Encode, and for losses."),),
        run=_vision,
        part_of=MaskedSubjectAttention.node_id,
        help="""features: the network that measures the demo models' pictures (demo/measure.py): 16 features of a picture's parts and their mean. It knows coloured shapes, nothing else.

scenes and captions: a network of its own (demo/scene_clip.py), trained so that a picture's embedding is that of its caption by the demo model's text encoder. For CLIP Text Loss and its kin, with the CLIP of Load Demo
Model.
"""),
)
