"""Train Restoration Prior (RAP-SR) without a host: what is drawn, the loss, and what a training learns in closed form."""
import pytest
import torch

from lodestar.guidance.method import BadInput
from lodestar.guidance.training.restoration_prior import EMPTY, RestorationExamples, TrainRestorationPrior, error, file_of, fresh

pytestmark = pytest.mark.method("LodestarTrainRestorationPrior")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def group(good=2, bad=3, name="a", channels=4):
    return random(good, channels, 4, 4), random(bad, channels, 4, 4, seed=1), [[f"good {name}"]], [[f"degraded {name}"]]


def sigma_of(percent):
    return 0.05 + 2.0 * (1 - percent)


def test_good_and_degraded_pictures_come_with_their_words():
    method = TrainRestorationPrior(examples=RestorationExamples((group(6, 2), group(2, 6, "b"))), empty=[["none"]], good_share=0.7, empty_share=0.2)
    assert method.names() == {"0 good": [["good a"]], "0 degraded": [["degraded a"]], "1 good": [["good b"]], "1 degraded": [["degraded b"]], EMPTY: [["none"]]}
    g, drawn = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        drawn.append(method.drawn(g))
    share = lambda wanted: sum(map(wanted, drawn)) / len(drawn)
    for found, wanted in ((share(lambda d: d[1] == 0), 0.7), (share(lambda d: d[2] == EMPTY), 0.2), (share(lambda d: d[:2] == (0, 0)) / share(lambda d: d[1] == 0), 0.75), (share(lambda d: d[:2] == (0, 1)) / share(lambda d: d[1] == 1), 0.25)):
        assert abs(found - wanted) < 0.07      # four standard deviations of 600 draws, the fewest, are 0.07
    assert all(name in (EMPTY, f"{i} {('good', 'degraded')[kind]}") for i, kind, name in drawn)
    alone = TrainRestorationPrior(examples=RestorationExamples((group(),)), empty_share=1.0)      # no empty prompt is connected
    assert all(alone.drawn(g)[2] != EMPTY for _ in range(50)) and EMPTY not in alone.names()


def test_the_loss_is_the_noises_error():
    x0, n, sigma = random(3, 4, 5, 5), random(3, 4, 5, 5, seed=1), torch.tensor([0.1, 1.0, 5.0])
    guess = random(3, 4, 5, 5, seed=2)
    s = sigma.view(-1, 1, 1, 1)
    x = x0 + s * n
    torch.testing.assert_close(error(guess, x0, sigma), (((x - guess) / s) - n).square().mean())      # eps
    t = sigma / 6
    s = t.view(-1, 1, 1, 1)
    x = (1 - s) * x0 + s * n
    torch.testing.assert_close(error(guess, x0, t), ((x - guess) / s - (n - x0)).square().mean())      # the velocity of flow models


@pytest.mark.parametrize("flow", [False, True])
def test_each_word_learns_its_own_pictures(flow):
    """Constant pictures, a denoiser that gives one number for each prompt: they come to the good and the degraded picture's, and the empty prompt's between, by their shares."""
    good, bad = torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), -1.0)
    method = TrainRestorationPrior(examples=RestorationExamples(((good, bad, "g", "d"),)), empty="e", steps=500, batch=4, rate=0.1, good_share=0.75, empty_share=0.4)
    guess = {name: torch.zeros(1, requires_grad=True) for name in method.names()}

    def denoise(x, sigma, name):
        return guess[name].view(1, 1, 1, 1) + sum(g.sum() * 0 for g in guess.values()) + torch.zeros_like(x)
    seen = []
    before, after = method.run([(good, bad)], denoise, list(guess.values()), (lambda p: 0.2 + 0.6 * (1 - p)) if flow else sigma_of, flow, lambda i, n, loss: seen.append((i, n)))
    values = {name: float(g.detach()) for name, g in guess.items()}
    assert abs(values["0 good"] - 2) < 0.1 and abs(values["0 degraded"] + 1) < 0.1
    assert abs(values[EMPTY] - (0.75 * 2 - 0.25)) < 0.5      # about 200 steps; their weights differ by the level
    assert after < before and seen[-1] == (500, 500) and len(seen) == 500


def test_no_step_and_no_rate_change_nothing():
    for values in ({"steps": 0}, {"steps": 5, "rate": 0.0}):
        method = TrainRestorationPrior(examples=RestorationExamples((group(),)), **values)
        p = torch.ones(1, requires_grad=True)
        method.run([group()[:2]], lambda x, sigma, name: p * x, [p], sigma_of)
        assert float(p.detach()) == 1.0


def test_a_training_repeats_itself():
    found = []
    for seed in (1, 1, 2):
        method, p = TrainRestorationPrior(examples=RestorationExamples((group(),)), steps=5, seed=seed), torch.zeros(1, requires_grad=True)
        method.run([group()[:2]], lambda x, sigma, name, p=p: p * x, [p], sigma_of)
        found.append(float(p.detach()))
    assert found[0] == found[1] != found[2]


def test_the_lora_has_the_layout_that_hosts_read():
    pairs = fresh({"blocks.0.to_q": (6, 4), "blocks.0.to_k": (6, 12)}, 5, torch.Generator().manual_seed(0))
    assert not any(up.any() for _, up in pairs.values()) and pairs["blocks.0.to_q"][0].shape == (4, 4)      # a rank above the layer's width would be idle
    found = file_of(pairs)
    assert {k: tuple(v.shape) for k, v in found.items() if "to_k" in k} == {"diffusion_model.blocks.0.to_k.lora_down.weight": (5, 12), "diffusion_model.blocks.0.to_k.lora_up.weight": (6, 5), "diffusion_model.blocks.0.to_k.alpha": ()}
    assert float(found["diffusion_model.blocks.0.to_k.alpha"]) == 5 and found["diffusion_model.blocks.0.to_k.lora_up.weight"].dtype == torch.float16


def test_what_cannot_be_is_named():
    with pytest.raises(BadInput, match="4 and 16 channels"):
        TrainRestorationPrior(examples=RestorationExamples((group(), group(channels=16)))).validate()
    with pytest.raises(BadInput, match="no latents of pictures"):
        TrainRestorationPrior(examples=RestorationExamples(((torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), "g", "d"),))).validate()
    with pytest.raises(BadInput, match="good_share"):
        TrainRestorationPrior(examples=RestorationExamples((group(),)), good_share=2.0).validate()
