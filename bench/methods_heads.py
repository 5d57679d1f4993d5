"""What is measured for the losses that look inside the network or at the noisy state."""
from .methods_regions import placed
from .plan import Claim, Cost, Entry, use

SELF = "attention.self_guidance:SelfGuidance"

ENTRIES = (
    Entry("LodestarSelfGuidance",
          (placed("Self-Guidance, position, scale 1", use(SELF, terms="$places", scale=1.0), (Claim("in_box", "higher"), Claim("iou", "higher"))),),
          (Cost("Self-Guidance, position", methods=(use(SELF, terms="$places", alternate_from=1.0),), heavy=False, peer=r"(?i)self.?guid"),)),
)
