"""The gradients bench: its page, and its count of passes through a network."""
import torch
from lodestar.bench import gradients
from lodestar.guidance.inversion.chains import pull


def test_page_says_whether_the_limit_is_kept():
    row = {"way": "plain step", "time": 1.0, "time_low": 1.0, "time_high": 1.0, "seconds": 1.0, "activations": 2 ** 20, "peak": 2 ** 22, "left": 0, "forwards": 1, "backwards": 0, "peak_ratio": 1.0,
           "activation_ratio": 1.0}
    for ratio, word in ((1.2, "kept"), (1.8, "not kept")):
        data = {"about": {"device": "CPU", "version": "1"}, "samplers": [], "growth": {"network": {"steps": 100, "most_of_10": 2 ** 20, "most_of_100": 2 ** 20, "left": 0}},
                "networks": {"small": {"weights": 2 ** 21, "shape": [4, 8, 8], "rows": [row, {**row, "way": "checkpoint", "peak_ratio": ratio, "backwards": 1}]}}}
        page = gradients.page(data)
        assert f"at most 1.6: {word} |" in page and "| 10 steps | 100 steps |" in page and "Weights 2.0 MiB" in page


def test_counter_tells_graphs_and_backward_passes():
    network = torch.nn.Linear(4, 4).requires_grad_(False)
    with gradients.Counter(network) as count:
        with torch.no_grad():
            network(torch.ones(1, 4))
        network(torch.ones(1, 4, requires_grad=True))
        pull(network, torch.ones(1, 4), torch.ones(1, 4), lambda checkpoint=False: torch.enable_grad())
    assert (count.forwards, count.graphs, count.backwards) == (3, 2, 1)
    network(torch.ones(1, 4))
    assert count.forwards == 3
