from __future__ import annotations

import pytest
import torch
from torch import nn

from segclip.models.sizes import segclip_quickstart
from segclip.trainer.engine import _ZerosInsteadOfRandom, compile_network


@pytest.mark.parametrize("what", ["none", "blocks", "towers"])
def test_compiling_leaves_names_as_they_are(what: str) -> None:
    model = segclip_quickstart()
    before = list(model.state_dict())
    compile_network(model, what)
    assert list(model.state_dict()) == before
    compiled = {name for name, module in model.named_modules() if module._compiled_call_impl is not None}
    blocks = {
        f"{name}.{number}"
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for number in range(len(module))
    }
    assert len(blocks) > 5
    towers = {name for name, _ in model.named_children()}
    assert {"vision", "text"} <= towers
    assert compiled == {"none": set(), "blocks": blocks, "towers": towers}[what]


def test_a_network_that_a_checkpoint_will_fill_draws_no_weights() -> None:
    before = torch.get_rng_state()
    with _ZerosInsteadOfRandom():
        model = segclip_quickstart()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("fc1.weight"))
    segclip_quickstart()
    assert not torch.equal(torch.get_rng_state(), before)
