"""What stops a step: adapters that would not learn, and numbers that are not finite."""

import math

import pytest
import torch
from small_llama import small_llama
from train.test_step import ADAPTERS, batch, routed_model, settings, snapshot
from train.test_trainer import training

from gradroute.config.run_config import AdapterConfig
from gradroute.errors import ConfigError, NumericError
from gradroute.routing.adapters import AdapterSpec, adapter_parameters, attach_adapters
from gradroute.routing.policy import RoutingPolicy
from gradroute.train.optimizer import build_optimizer
from gradroute.train.step import train_step
from gradroute.train.trainer import train

ANCHORED = RoutingPolicy.parse("anchored", ADAPTERS)
SETTINGS = {name: settings() for name in ADAPTERS}


class Bench:
    """A model with its optimizer, and one step of it."""

    def __init__(self, rate: float = 1e-2, dtype: torch.dtype = torch.float32):
        self.model = routed_model(dtype)
        self.optimizer = build_optimizer(self.model, SETTINGS, rate)

    def step(self, labels, policy=ANCHORED, size=None):
        whole = batch(labels, policy=policy)
        size = size or len(labels)
        parts = [
            whole.rows(torch.arange(at, min(at + size, len(labels))))
            for at in range(0, len(labels), size)
        ]
        return train_step(self.model, self.optimizer, parts, policy, loss_mean="token", rate=1.0)

    def weights(self, adapter):
        return adapter_parameters(self.model)[adapter]

    def everything(self):
        return [snapshot(self.model, self.optimizer, name) for name in ADAPTERS]


MIXED = ["bad", "unlabeled", "good", "unlabeled", "bad", "good"]


def freeze_some(bench):
    bench.weights("bad")[3].requires_grad_(False)


def freeze_all(bench):
    for weight in bench.weights("bad"):
        weight.requires_grad_(False)


def switch_off(bench):
    bench.model.base_model.set_adapter("good")


def disable(bench):
    bench.model.base_model.disable_adapter_layers()


def merge(bench):
    bench.model.base_model.merge_adapter(["bad"])


def optimizer_of_good_alone(bench):
    bench.optimizer = build_optimizer(bench.model, {"good": settings()}, 1e-2)


def optimizer_that_lost_a_weight(bench):
    bench.optimizer.param_groups[1]["params"].pop()


def cut_off(bench):
    """No gradient reaches the adapter's weights: None."""
    for layer in bench.model.modules():
        if "lora_A" in dir(layer) and "bad" in layer.lora_A:
            for part in (layer.lora_A["bad"], layer.lora_B["bad"]):
                weight = part.weight
                part.register_forward_pre_hook(lambda module, args: None)  # leaves the fast path
                part.forward = lambda x, weight=weight: x @ weight.detach().t()


def zeroed(bench):
    """A gradient of exactly zero reaches them."""
    for weight in bench.weights("bad"):
        weight.register_hook(torch.zeros_like)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (freeze_some, r"1 of its \d+ weights do not require a gradient"),
        (freeze_all, r"(\d+) of its \1 weights do not require a gradient"),
        (switch_off, r"switched off or merged in (\d+) of its \1 layers"),
        (disable, "switched off or merged"),
        (merge, "switched off or merged"),
        (optimizer_of_good_alone, r"the optimizer does not have (\d+) of its \1 weights"),
        (optimizer_that_lost_a_weight, r"the optimizer does not have 1 of its \d+ weights"),
        (cut_off, "no gradient has reached it"),
        (zeroed, "no gradient has reached it"),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_an_adapter_that_the_table_updates_and_cannot_learn_stops_the_step(fault, words, warm):
    bench = Bench()
    if warm:
        bench.step(MIXED)
    fault(bench)
    before = bench.everything()
    named = r"updates (the )?adapter 'bad' in this step \(4 examples labeled bad or unlabeled\)"
    with pytest.raises(ConfigError, match=named) as caught:
        bench.step(MIXED)
    assert caught.match(words)
    for one, two in zip(before, bench.everything(), strict=True):
        assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("fault", [freeze_some, freeze_all, optimizer_of_good_alone, zeroed])
def test_a_step_that_does_not_update_the_adapter_is_not_stopped(fault):
    bench = Bench()
    fault(bench)
    assert bench.step(["good", "good"]).updated == {"good"}


TABLES = [
    *("anchored", "absorb", "exclusive", "separate", "none"),
    {
        "bad": {"good": "detach", "bad": {"update": 1e-6}},
        "unlabeled": {"good": "update", "bad": {"update": 0}},
        "good": {"good": {"update": 0.25}, "bad": "ablate"},
    },
]


@pytest.mark.parametrize("table", TABLES, ids=str)
@pytest.mark.parametrize("size", [1, 4, 6])
def test_true_first_steps_and_weighted_updates_are_no_false_alarm(table, size):
    policy = RoutingPolicy.parse(table, ADAPTERS)
    for labels in (MIXED, ["bad"], ["good"], ["unlabeled", "unlabeled"]):
        bench = Bench()
        for _ in range(3):
            bench.step(labels, policy, size)


def test_an_example_with_nothing_left_to_teach_is_no_false_alarm():
    """A loss of exactly 0 has a gradient of 0."""
    bench = Bench()
    head = bench.model.get_output_embeddings()
    certain = batch(["bad"], policy=ANCHORED, lengths=[2])
    target = int(certain.targets[0, 0])
    hook = head.register_forward_hook(
        lambda module, args, logits: (
            logits * 0 + 1e4 * torch.nn.functional.one_hot(torch.tensor(target), logits.shape[-1])
        )
    )
    report = train_step(
        bench.model, bench.optimizer, [certain], ANCHORED, loss_mean="token", rate=1.0
    )
    hook.remove()
    assert report.loss == 0.0 and report.gradient_norms == {"bad": 0.0}


def nan_in_base(bench):
    with torch.no_grad():
        bench.model.get_output_embeddings().weight[5] = float("nan")


def inf_in_bad(bench):
    with torch.no_grad():
        bench.weights("bad")[1][0, 0] = math.inf


def huge_bad(bench):
    with torch.no_grad():
        for weight in bench.weights("bad"):
            weight.fill_(1e20)


def huge_base(bench):
    with torch.no_grad():
        bench.model.get_output_embeddings().weight.fill_(3e38)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (nan_in_base, "base model holds weights that are not finite .*lm_head"),
        (inf_in_bad, "weights of adapter 'bad' are not finite"),
        (huge_bad, "comes from adapter 'bad': its weights are finite, but too large"),
        (huge_base, "comes from the base model alone"),
    ],
)
def test_a_loss_that_is_not_finite_names_its_rows_and_where_it_comes_from(fault, words):
    bench = Bench()
    fault(bench)
    before = bench.everything()
    with pytest.raises(NumericError, match=words) as caught:
        bench.step(MIXED, size=2)
    assert caught.match(r"the loss is (nan|inf), not finite for \d examples? \(row-0-0")
    for one, two in zip(before, bench.everything(), strict=True):
        assert all(
            torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, two, strict=True)
        )


def test_only_the_rows_that_are_not_finite_themselves_are_named_five_at_most():
    bench = Bench()
    labels = ["good", "bad"] * 8  # `bad` is set to 0 on rows labeled good
    with torch.no_grad():
        for down in bench.weights("bad")[::2]:
            down.fill_(1e38)  # finite, and too large to be multiplied by
    named = r"not finite for 8 examples \(row-0-1, row-0-3, row-0-5, row-0-7, row-0-9, and 3 more\)"
    with pytest.raises(NumericError, match=named):
        bench.step(labels, size=5)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_names_its_adapter_and_examples(value):
    bench = Bench()
    bench.weights("bad")[2].register_hook(lambda grad: torch.full_like(grad, value))
    before = bench.everything()
    with pytest.raises(
        NumericError,
        match=r"gradient of adapter 'bad' is (inf|nan).* 2 examples \(row-0-0, row-0-2\)",
    ):
        bench.step(["bad", "good", "unlabeled"])
    for one, two in zip(before, bench.everything(), strict=True):
        assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_weight_that_the_update_made_infinite_or_nan_stops_the_same_step(
    adapter, value, monkeypatch
):
    bench = Bench()
    act = bench.optimizer.step

    def spoil(*args):
        act(*args)
        with torch.no_grad():
            bench.weights(adapter)[-1][-1, -1] = value

    monkeypatch.setattr(bench.optimizer, "step", spoil)
    with pytest.raises(NumericError, match=rf"made weights of adapter '{adapter}' \(learning rate"):
        bench.step(MIXED)


@pytest.mark.parametrize("fused", [True, False])
def test_a_rate_that_overflows_the_weights_stops_the_step_before_it_changes_any(fused):
    bench = Bench(rate=1e38)
    bench.optimizer = build_optimizer(bench.model, SETTINGS, 1e38, fused=fused)
    before = bench.everything()
    with pytest.raises(NumericError, match=r"rate 1e\+38 of adapter 'good' overflows the dtype"):
        bench.step(MIXED)
    for one, two in zip(before, bench.everything(), strict=True):
        assert all(map(torch.equal, one, two))


def test_large_weights_are_finite_though_their_squares_are_not():
    bench = Bench(rate=0.0)
    with torch.no_grad():
        for name in ADAPTERS:
            bench.weights(name)[0].fill_(1e19)  # A, and B is 0
    bench.step(MIXED)


@pytest.mark.parametrize("rate", ["1e38", "1e35"])
def test_a_learning_rate_beyond_all_measure_saves_no_broken_weight(rate, tmp_path):
    run, _ = training(tmp_path, f"train.learning_rate={rate}", "train.save_every=1")
    with pytest.raises(NumericError, match=r"x, step (\d+): .*Nothing of this step is saved"):
        train(run)
    for folder in run.folder.checkpoints.glob("step-*"):
        from safetensors.torch import load_file

        for path in folder.rglob("*.safetensors"):
            assert all(bool(torch.isfinite(t).all()) for t in load_file(path).values())


def test_the_last_good_checkpoint_is_kept_and_named(tmp_path):
    run, _ = training(tmp_path, "train.log_gradients_every=0")  # saves after steps 4, 8 and 12
    steps = []

    def spoil(module, args, output):
        steps.append(1)
        if len(steps) == 2 * 5 + 2:  # the second micro-batch of step 6
            output.logits[0, 0, 0] = math.nan
        return output

    run.model.get_base_model().register_forward_hook(spoil)
    with pytest.raises(NumericError, match=r"x, step 6: .*1 example .*checkpoint is from step 4"):
        train(run)
    assert [path.name for path in run.folder.checkpoints.iterdir()] == ["step-000004"]


def test_one_adapter_of_many_is_not_taken_for_another():
    names = ("good", "bad", "third")
    model = attach_adapters(
        small_llama(), dict.fromkeys(names, AdapterSpec(rank=2)), layers="all"
    ).train()
    table = {"bad": {"good": "freeze", "bad": "update", "third": "update"}}
    policy = RoutingPolicy.parse(table, names)
    optimizer = build_optimizer(model, {name: AdapterConfig() for name in names}, 1e-2)
    adapter_parameters(model)["third"][0].requires_grad_(False)
    with pytest.raises(ConfigError, match="adapter 'third'"):
        train_step(
            model, optimizer, [batch(["bad"], policy=policy)], policy, loss_mean="token", rate=1.0
        )
