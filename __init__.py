"""Lodestar for ComfyUI: registration, and nothing else. Hosts with comfy_api get V3 nodes, older ones V1 classes; never both."""
from . import nodes

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY"]

try:
    from comfy_api.latest import ComfyExtension, io
except ImportError:
    NODE_CLASS_MAPPINGS = nodes.v1_classes()
    NODE_DISPLAY_NAME_MAPPINGS = {name: d.title for name, d in nodes.definitions().items() if name in NODE_CLASS_MAPPINGS}
    __all__ += ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
else:
    class Lodestar(ComfyExtension):
        async def get_node_list(self):
            return nodes.v3_classes(io)

    async def comfy_entrypoint():
        return Lodestar()

    __all__ += ["comfy_entrypoint"]
