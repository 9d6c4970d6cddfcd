"""Schedules, updates, parameter groups and freezing against the original."""

from __future__ import annotations

import pytest

from segclip.models.freezing import frozen_names
from segclip.models.names import released_name
from segclip.models.segclip import SegCLIP
from segclip.trainer.optimizer import freeze, parameter_groups


@pytest.mark.parametrize(
    ("file", "variant", "accumulate"), [("A_trainloop", "fixed", 1), ("A_trainloop_acc2", "acc2_fixed", 2)]
)
def test_updates(file, variant, accumulate, adapter, golden, under, compare, cfg, state) -> None:
    arrays = golden(f"{file}.npz")
    reference = under(arrays, f"{variant}/")
    noise = {key: value for key, value in reference.items() if key.startswith("gumbel")}
    inputs = {**{key: value for key, value in arrays.items() if key.startswith("batch")}, **noise}
    got = adapter.trainloop_outputs(cfg, state, inputs, "fixed", accumulate)
    if accumulate > 1:
        # The original counts the share of a batch in an update as its loss.
        got["epoch_loss"] = got["epoch_loss"] / accumulate
    compare(reference, got, ignore=noise)


def test_schedules(adapter, golden, under, compare) -> None:
    compare(under(golden("optim.npz"), "schedule/"), adapter.schedule_outputs({}))


@pytest.mark.parametrize("name", ["traj", "traj_skip", "traj_const", "traj_startend"])
def test_trajectories(name, adapter, golden, under, compare) -> None:
    reference = under(golden("optim.npz"), f"{name}/")
    compare(reference, adapter.traj_outputs(reference, name))


def test_parameter_groups(adapter, golden_json, cfg) -> None:
    reference = golden_json("A_groups.json")["param_groups"]
    model = SegCLIP(adapter.config_of(cfg))
    names = {parameter: released_name(name) for name, parameter in model.named_parameters()}

    def by_setting(groups):
        found: dict[tuple[float, float], set[str]] = {}
        for group in groups:
            members = {names.get(parameter, parameter) for parameter in group["params"]}
            found.setdefault((group["lr"], group["weight_decay"]), set()).update(members)
        return found

    expected = by_setting(reference)
    # The original hands its optimiser the fixed table too, which never has a gradient.
    expected[4e-3, 0.05].remove("vis_mae_decoder.decoder_pos_embed")
    assert by_setting(parameter_groups(model, adapter.RECIPE)) == expected


def test_frozen_parameters_of_the_small_model(adapter, golden_json, cfg) -> None:
    model = SegCLIP(adapter.config_of(cfg))
    freeze(model, frozen_names(model.config))
    found = {released_name(name): parameter.requires_grad for name, parameter in model.named_parameters()}
    assert found == golden_json("A_groups.json")["requires_grad_after_freeze"]
