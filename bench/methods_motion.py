"""What is measured for methods of motion, time and hard bounds."""
from .motion import UPPER
from .plan import CAPTION_METRICS, Claim, Comparison, Cost, Entry, Setup, use

FRAME = "loss.solvers.frame:FrameGuidance"
OBSERVED = "loss.solvers.observation:ObservationSelfGuidance"
REFERENCE = "loss.solvers.reference:ReferenceSequenceGuidance"
SOUND = "loss.solvers.sound:SoundGuidance"
CONSTRAINT = "rules.value_constraint:ValueConstraint"
MOTION = "loss.solvers.motion:MotionGuidance"

_upper = ", ".join(f"{v:g}" for v in UPPER)
_bounded = use(CONSTRAINT, upper=_upper, region="$left")
_MOVED = ("place_error", "kept", "frechet", "clipped", "evaluations")
_plain = Setup("CFG, w = 4, no motion", 4.0, prompts="shifted")


def _moved(label, loss, **values):
    return Setup(label, 4.0, sampler=use(MOTION, loss=loss, repeats=2, edit_mask="$moved", latent="$reference", **values), prompts="shifted")


_cfg = Setup("CFG, w = 4", 4.0)
_KNOWN = ("known_error", "accuracy", "frechet", "clipped", "evaluations")
_known = (Claim("known_error", "lower"), Claim("accuracy", "not lower", 0.1))


def _half(node_id, label, sampler):
    """The left half of the wanted picture is known."""
    return Entry(node_id, (Comparison(Setup(f"{label}, left half known, w = 4", 4.0, sampler=sampler), _cfg, _known, _KNOWN, generators=("unet",)),), (Cost(label, sampler=sampler, heavy=False),))


ENTRIES = (
    Entry("LodestarValueConstraint",      # no strong red in the left half
          (Comparison(Setup("left half: red at most 0.6, w = 4", 4.0, (_bounded,)), _cfg, (Claim("violations", "at most", 0.0),), ("violations", *CAPTION_METRICS)),),
          (Cost("Value Constraint", methods=(_bounded,), limit=1.02),)),
    Entry("LodestarMotionGuidance",      # each picture takes a backward pass through the decoder: on one model
          (Comparison(_moved("colours along the flow, 2 repeats, w = 4", "$photometric"), _plain, (Claim("place_error", "lower"), Claim("kept", "higher")), _MOVED, generators=("unet",)),),
          (Cost("Motion Guidance, colours alone", sampler=use(MOTION, loss="$photometric", repeats=1), heavy=False),)),
    Entry("LodestarFrameGuidance",      # the pictures of a batch, each with its own prompt, are to be alike
          (Comparison(Setup("batch as frames that agree, w = 4", 4.0, sampler=use(FRAME, loss="$agree", rate=0.1, rounds=1), prompts="together"), Setup("CFG, w = 4, sampled together", 4.0, prompts="together"),
                      (Claim("apart", "lower"),), ("apart", "palette_together", "accuracy", "frechet", "evaluations"), generators=("unet",)),),
          (Cost("Frame Guidance, 1 round", sampler=use(FRAME, loss="$target", rounds=1), heavy=False),)),
    _half("LodestarReferenceSequenceGuidance", "Reference Sequence Guidance", use(REFERENCE, loss="$rendered", rho=0.5, eta=0.0)),
    _half("LodestarObservationSelfGuidance", "Observation Self-Guidance", use(OBSERVED, loss="$observed")),
    _half("LodestarSoundGuidance", "Sound Guidance", use(SOUND, loss="$known", eta=0.0)),
)
