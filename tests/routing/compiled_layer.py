"""Run by test_compiled.py in a process of its own: a layer with and without torch.compile.

Prints, for each list of labels, [graphs compiled so far, largest difference of a gradient from the
layer as it is, whether the gradient of `good` differs from that under the labels before].
"""

import json

import torch
from routing.tiny import gradients_of, tiny_routed
from torch._dynamo.testing import CompileCounterWithBackend

from gradroute.routing.adapters import routed
from gradroute.routing.policy import RoutingPolicy

POLICY = RoutingPolicy.parse("absorb", ("good", "bad"))
SHAPE = torch.Size([4, 5])
LABELS = (
    ["bad", "unlabeled", "bad", "unlabeled"],
    ["unlabeled", "bad", "bad", "bad"],  # other examples: nothing is compiled again
    ["unlabeled"] * 4,  # all alike: another kind of gate
    ["bad", "unlabeled", "unlabeled", "bad"],
)


def gradients(model, layer, labels):
    """Of one layer's adapters and its input; the groups are made before the graph runs."""
    x = torch.randn(*SHAPE, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model.zero_grad(set_to_none=True)
    x.requires_grad_()
    with routed(model, POLICY, labels) as scope:
        scope.groups(SHAPE, x.device, ["good", "bad"])
        layer(x).square().sum().backward()
    return {**gradients_of(model), "x": x.grad}


def main():
    model = tiny_routed()
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.o_proj")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    found, before = [], None
    for labels in LABELS:
        wanted, own = (gradients(model, one, labels) for one in (layer, compiled))
        assert wanted.keys() == own.keys() and len(own) == 5
        off = max(float((own[name] - wanted[name]).abs().max()) for name in wanted)
        good = next(gradient for name, gradient in own.items() if "lora_A.good" in name)
        found.append([counter.frame_count, off, before is None or not torch.equal(good, before)])
        before = good
    print(json.dumps(found))


if __name__ == "__main__":
    main()
