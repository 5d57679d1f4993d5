"""The example of UniCon, on the bundled U-Net."""

from __future__ import annotations

from ._examples import CFG, SEED, SIZE, STEPS, Scene


def _unicon(definitions, definition, name):
    scene = Scene(definitions, f"{definition.title}: a depth picture, drawn by hand here, says where two things are and how near, the prompt says what they are. Then the way back: the depth of the picture that was "
                               "made: the small bundled pair finds the places, not the brightness. Last, both at once.", prompt="a large red circle left of a small blue square")
    g = scene.graph
    far = g.add("SolidMask", "Far", value=0.0, width=SIZE, height=SIZE)[0]
    for title, x, y, side, value in (("Near", 14, 50, 46, 0.9), ("Farther", 84, 30, 24, 0.45)):
        white = g.add("SolidMask", title, value=value, width=side, height=side)[0]
        far = g.add("MaskComposite", destination=far, source=white, x=x, y=y, operation="add")[0]
    drawn = g.add("MaskToImage", mask=far)[0]
    depth = g.add("VAEEncode", pixels=drawn, vae=scene.vae)[0]
    model = g.add(definition.node_id, model=scene.model, weights=g.add("LodestarLoadUniConWeights")[0])[0]

    def sampled(title, **values):
        latent = g.add("LodestarJointLatent", title, **values)[0]
        out = g.add("KSampler", title, model=model, seed=SEED, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal", positive=scene.positive, negative=scene.negative, latent_image=latent)[0]
        node = g.add("LodestarSplitJointLatent", samples=out)
        return node[0], node[1]

    image, _ = sampled("Image from depth", mode="image from condition", condition=depth)
    _, back = sampled("Depth from that image", mode="condition from image", image=image)
    scene.save(image, name, "The image of the drawn depth")
    scene.save(back, f"{name}_depth", "The depth of that image")
    both = sampled("Image and depth together", mode="both", image=scene.latent)
    scene.save(both[0], f"{name}_both", "An image")
    scene.save(both[1], f"{name}_both_depth", "And its depth")
    return g


OWN = {"LodestarUniCon": _unicon}
