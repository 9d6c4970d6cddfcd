from __future__ import annotations

import pytest
from torch import nn

from segclip.models import segclip_quickstart
from segclip.trainer.engine import compile_network


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
