// Shows the text that a Lodestar node reports (List Layers, Inspector Plot) on the node.
import { app } from "../../../scripts/app.js";

app.registerExtension({
    name: "lodestar.text",
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (!["LodestarListLayers", "LodestarInspectorPlot"].includes(nodeData.name)) return;
        const executed = nodeType.prototype.onExecuted;
        nodeType.prototype.onExecuted = function (message) {
            executed?.apply(this, arguments);
            if (!this.lodestarText && this.addDOMWidget) {
                this.lodestarText = document.createElement("pre");
                this.lodestarText.style.cssText = "margin:0;padding:6px;overflow:auto;white-space:pre-wrap;font-size:11px;user-select:text";
                this.addDOMWidget("lodestar_text", "text", this.lodestarText, { serialize: false }).serialize = false;
                this.setSize([Math.max(this.size[0], 420), Math.max(this.size[1], 220)]);
            }
            if (this.lodestarText) this.lodestarText.textContent = [message?.text ?? []].flat().join("\n");
        };
    },
});
