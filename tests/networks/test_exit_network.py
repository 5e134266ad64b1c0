from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from sidestep.cost.macs import measure_cost
from sidestep.evaluation.thresholds import solve_thresholds
from sidestep.execution.execution import cascade
from sidestep.layers.rows import take_rows
from sidestep.networks.exit_network import ExitNetwork, State
from sidestep.routing.exit_rule import ExitRule
from tests import strategies
from tests.doubles import EXIT_NETWORKS, make_exit_network, shared_exit_network
from tests.reference.macs import CountedMacs

ALL = pytest.mark.parametrize("name", EXIT_NETWORKS)
SIZE = 16


def images(batch: int, seed: int = 0) -> Tensor:
    return strategies.images(batch, seed, size=SIZE)


def stepwise(network: ExitNetwork, state: State, start: int = 0) -> list[Tensor]:
    """Return the logits of the exits from `start` on."""
    logits = []
    for index in range(start, network.num_exits):
        state = network.advance(index, state)
        logits.append(network.classify(index, state))
    return logits


@ALL
def test_all_images_leave_at_the_last_of_the_exits(name: str) -> None:
    network, config = shared_exit_network(name), EXIT_NETWORKS[name]
    with torch.no_grad():
        output = network(images(3))
        steps = stepwise(network, network.begin(images(3)))
    assert output.exit_logits.shape == (network.num_exits, 3, config.num_classes)
    assert torch.equal(output.exit_logits, torch.stack(steps))
    assert torch.equal(output.logits, output.exit_logits[-1])
    assert output.decisions.weights.shape == (3, 0, 2)
    assert output.decisions.exits.argmax(dim=1).tolist() == [network.num_exits - 1] * 3
    assert output.decisions.logits is None


@ALL
def test_exits_differ_and_so_do_images(name: str) -> None:
    with torch.no_grad():
        logits = shared_exit_network(name)(images(8)).exit_logits
    assert logits.std(dim=1).amax(dim=1).min() > 1e-2
    assert (logits[1:] - logits[:-1]).abs().amax(dim=(1, 2)).min() > 1e-2


@given(st.sampled_from(list(EXIT_NETWORKS)), st.data())
def test_taking_rows_and_advancing_commute(name: str, data: st.DataObject) -> None:
    network, batch = shared_exit_network(name), 5
    leaves_before = data.draw(st.integers(0, network.num_exits - 1))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, unique=True)))
    with torch.no_grad():
        state = network.begin(images(batch, data.draw(strategies.seeds)))
        for index in range(leaves_before):
            state = network.advance(index, state)
        expected = [logits[rows] for logits in stepwise(network, state, leaves_before)]
        actual = stepwise(network, take_rows(state, rows), leaves_before)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@given(st.sampled_from(list(EXIT_NETWORKS)), st.permutations(range(4)), strategies.seeds)
def test_permuting_the_batch_permutes_the_output(name: str, order: list[int], seed: int) -> None:
    network, x = shared_exit_network(name), images(4, seed)
    with torch.no_grad():
        expected, actual = network(x).exit_logits[:, order], network(x[order]).exit_logits
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@ALL
def test_every_tensor_of_a_state_has_one_row_per_image(name: str) -> None:
    network = shared_exit_network(name)
    with torch.no_grad():
        state = network.begin(images(3))
        for index in range(network.num_exits):
            assert {len(leaf) for leaf in tree_leaves(state)} == {3}
            state = network.advance(index, state)
    # At the end only the features that the last exit reads are left.
    assert len(tree_leaves(state)) == 1


@ALL
def test_a_step_leaves_the_state_before_as_it_was(name: str) -> None:
    network = shared_exit_network(name)
    with torch.inference_mode():
        state = network.begin(images(2))
        for index in range(network.num_exits):
            before = [leaf.clone() for leaf in tree_leaves(state)]
            following = network.advance(index, state)
            network.classify(index, following)
            assert all(map(torch.equal, tree_leaves(state), before))
            state = following


@ALL
def test_channels_last_survives_steps_and_rows(name: str) -> None:
    network = copy.deepcopy(shared_exit_network(name)).to(memory_format=torch.channels_last)
    x = images(4).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        state = network.begin(x)
        for index in range(network.num_exits):
            state = take_rows(network.advance(index, state), torch.tensor([1, 0]))
            leaves = tree_leaves(state)
            assert all(leaf.is_contiguous(memory_format=torch.channels_last) for leaf in leaves)


@ALL
def test_features_keep_the_precision_of_autocast(name: str) -> None:
    network = make_exit_network(EXIT_NETWORKS[name])
    with torch.autocast("cpu", torch.bfloat16):
        state = network.begin(images(4))
        for index in range(network.num_exits):
            state = network.advance(index, state)
            assert {leaf.dtype for leaf in tree_leaves(state)} == {torch.bfloat16}
            assert network.classify(index, state).dtype == torch.bfloat16


def test_rows_are_taken_from_any_nest_of_tensors() -> None:
    state = {"a": [torch.arange(3), (torch.arange(6).view(3, 2),)], "b": ()}
    taken = take_rows(state, torch.tensor([2, 0]))
    assert taken["a"][0].tolist() == [2, 0]
    assert taken["a"][1][0].tolist() == [[4, 5], [0, 1]]
    assert taken["b"] == ()
    kept = take_rows(state, torch.tensor([True, False, True]))
    assert kept["a"][0].tolist() == [0, 2]


def test_a_tensor_in_several_places_is_taken_once() -> None:
    x = torch.arange(3)
    first, (second,) = take_rows((x, [x]), torch.tensor([1]))
    assert first is second


@ALL
def test_no_module_works_twice_and_all_exits_together_do_the_work_of_the_network(name: str) -> None:
    network = copy.deepcopy(shared_exit_network(name))
    parts = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
    calls: Counter[nn.Module] = Counter()
    for part in parts:
        part.register_forward_hook(lambda module, *_: calls.update([module]))
    with torch.no_grad(), CountedMacs() as stepped:
        state = network.begin(images(1))
        for index in range(network.num_exits):
            state = network.advance(index, state)
            network.classify(index, state)
            assert set(calls.values()) == {1}
    assert set(calls) == set(parts)
    with torch.no_grad(), CountedMacs() as whole:
        network(images(1))
    assert sum(stepped.macs) == sum(whole.macs)


@ALL
def test_the_price_of_an_exit_is_what_calls_count_on_the_way_there(name: str) -> None:
    network = shared_exit_network(name)
    cost = measure_cost(network, (SIZE, SIZE))
    assert cost.exits.shape == (network.num_exits,)
    assert cost.options.shape == (0, 2) and cost.exit_units.tolist() == [0] * network.num_exits
    with torch.no_grad(), CountedMacs() as counted:
        state = network.begin(images(1))
        for index in range(network.num_exits):
            state = network.advance(index, state)
            network.classify(index, state)
            assert cost.fixed + cost.exits[index] == sum(counted.macs)
        assert cost.full == sum(counted.macs)
        assert torch.equal(cost.per_sample(network(images(2)).decisions), torch.full((2,), float(cost.full)))
    assert bool((cost.exits.diff() > 0).all())


@ALL
def test_pricing_exits_leaves_the_network_untouched(name: str) -> None:
    network = make_exit_network(EXIT_NETWORKS[name])
    before = copy.deepcopy(network.state_dict())
    measure_cost(network, (SIZE, SIZE))
    assert network.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@ALL
def test_losses_of_the_exits_together_reach_every_parameter(name: str) -> None:
    network = make_exit_network(EXIT_NETWORKS[name])
    labels = torch.arange(8) % EXIT_NETWORKS[name].num_classes
    output = network(images(8))
    sum(F.cross_entropy(logits, labels) for logits in output.exit_logits).backward()
    missing = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@ALL
def test_an_exit_teaches_nothing_to_what_only_later_exits_need(name: str) -> None:
    network = make_exit_network(EXIT_NETWORKS[name])
    network(images(4)).exit_logits[0].sum().backward()
    untouched = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert any(key.startswith("heads.1.") for key in untouched)
    assert any(not key.startswith("heads.") for key in untouched)


@ALL
@pytest.mark.parametrize("size", [(8, 12), (17, 15), (32, 32)])
def test_images_of_other_sizes_pass(name: str, size: tuple[int, int]) -> None:
    network = shared_exit_network(name)
    with torch.no_grad():
        logits: Any = network(torch.randn(2, 3, *size)).exit_logits
    assert logits.isfinite().all()


@ALL
def test_weights_are_drawn_by_fan_out_and_biases_of_exits_are_zero(name: str) -> None:
    network = make_exit_network(EXIT_NETWORKS[name])
    draws = []
    for key, module in network.named_modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
            assert module.weight.abs().max() <= module.in_features**-0.5
        if isinstance(module, nn.Conv2d) and not key.startswith("first."):
            height, width = module.kernel_size
            draws.append(module.weight.flatten() / (2 / (height * width * module.out_channels)) ** 0.5)
    assert torch.cat(draws).std().item() == pytest.approx(1, rel=0.02)


def middle_rule(network: ExitNetwork, x: Tensor) -> ExitRule:
    """Return a rule with which about the same number of images leaves at every exit."""
    scores = network(x).exit_logits.softmax(dim=2).amax(dim=2)
    shares = torch.full((network.num_exits,), 1 / network.num_exits)
    # Below the scores that they are made of, which differ by rounding in batches of other sizes.
    return ExitRule(thresholds=(solve_thresholds(scores, shares) - 1e-4).tolist())


@ALL
def test_a_cascade_equals_the_masked_network_and_costs_what_it_computes(name: str) -> None:
    network, x = shared_exit_network(name), images(12)
    cost = measure_cost(network, (SIZE, SIZE))
    with torch.no_grad():
        rule = middle_rule(network, x)
        masked = network(x, rule=rule)
        with CountedMacs() as counted:
            leaving = network(x, rule=rule, execution=cascade)
        alone = [network(image.unsqueeze(0), rule=rule, execution=cascade) for image in x]
    assert len(masked.decisions.exits.argmax(dim=1).unique()) > 1
    torch.testing.assert_close(leaving.logits, masked.logits, rtol=0, atol=1e-5)
    assert torch.equal(leaving.decisions.exits, masked.decisions.exits)
    torch.testing.assert_close(torch.cat([out.logits for out in alone]), masked.logits, rtol=0, atol=1e-5)
    assert sum(counted.macs) == cost.per_sample(masked.decisions).sum()


@ALL
def test_images_that_leave_everywhere_or_nowhere(name: str) -> None:
    network, x = shared_exit_network(name), images(3)
    early, late = 0, network.num_exits - 1
    for threshold, exit in ((0.0, early), (2.0, late)):
        rule = ExitRule(thresholds=[threshold] * (network.num_exits - 1))
        with torch.no_grad():
            output = network(x, rule=rule, execution=cascade)
            expected = network(x).exit_logits[exit]
        assert output.decisions.exits.argmax(dim=1).tolist() == [exit] * 3
        torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-5)


@ALL
def test_a_cascade_of_a_permuted_batch_is_permuted(name: str) -> None:
    network, x, order = shared_exit_network(name), images(9), torch.tensor([4, 8, 0, 2, 6, 1, 7, 3, 5])
    with torch.no_grad():
        rule = middle_rule(network, x)
        expected, actual = (network(batch, rule=rule, execution=cascade) for batch in (x, x[order]))
    torch.testing.assert_close(actual.logits, expected.logits[order], rtol=0, atol=1e-5)
    assert torch.equal(actual.decisions.exits, expected.decisions.exits[order])
