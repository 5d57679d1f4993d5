"""The bundled flow network's weights: guidance.loss.flow_network, trained by train_flow.py on moved scenes; its figures are in weights/flow.json. It knows flat and softly textured shapes, not photographs."""
from ..guidance.loss.flow_network import FlowNetwork
from .weights_file import fill, read

WORKS_AT = 64      # pixels of the shorter side at which it was trained


def load():
    """The trained network in float32, without gradients of its weights."""
    network = FlowNetwork()
    fill(network, read("flow"), "flow")
    return network.eval().requires_grad_(False)
