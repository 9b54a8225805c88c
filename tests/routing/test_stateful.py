"""Any sequence of ablating, restoring, training, saving, loading and deleting adapters."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from peft import PeftModel
from routing.tiny import logits, mean_loss, randomise, tiny_base, tiny_batch, tiny_routed
from torch import Tensor

from gradroute.models.checkpoint import load_adapters, save_checkpoint
from gradroute.routing.adapters import (
    ablated,
    adapter_parameters,
    adapter_state,
    load_adapter_state,
    route_adapters,
    routed,
)
from gradroute.routing.policy import NAMED_POLICIES, RoutingPolicy

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
RANKS = {"good": 2, "bad": 3}
MODES = {
    ("good", "bad"): ("full", "base", "bad_ablated", "good_ablated", "bad_x2", "good=0.5,bad=-1"),
    ("good",): ("full", "base", "good_ablated", "good_x2", "good=0.5"),
}
modes = st.integers(0, 99)


class Adapters(RuleBasedStateMachine):
    """A model that much is done to, beside a note of what its adapters' weights should be."""

    model: PeftModel
    noted: dict[str, dict[str, Tensor]]

    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        self.model = tiny_routed(RANKS, dtype=torch.float32).eval()
        randomise(self.model, seed)
        self.note()

    def note(self) -> None:
        self.noted = {
            name: {key: value.clone() for key, value in adapter_state(self.model, name).items()}
            for name in adapter_parameters(self.model)
        }

    @property
    def finite(self) -> bool:
        return all(t.isfinite().all() for state in self.noted.values() for t in state.values())

    def fresh(self, *without: str) -> PeftModel:
        """A model that never did anything but load these weights."""
        ranks = {name: RANKS[name] for name in self.noted if name not in without}
        model = tiny_routed(ranks, dtype=torch.float32).eval()
        for name in ranks:
            load_adapter_state(model, name, self.noted[name])
        return model

    def mode(self, number: int) -> str:
        known = MODES[tuple(self.noted)]
        return known[number % len(known)]

    def check(self, mode: str | None) -> None:
        """What the model says now is what a fresh one says, or one that never had the adapter."""
        if mode == "base":
            expected = logits(tiny_base(dtype=torch.float32))
        elif mode is None or mode == "bad_ablated":
            expected = logits(self.fresh("bad" if mode else ""))
        else:
            fresh = self.fresh()
            with ablated(fresh, mode):
                expected = logits(fresh)
        assert torch.equal(*(x.nan_to_num(nan=1e9) for x in (logits(self.model), expected)))

    @invariant()
    def the_weights_are_those_that_were_noted(self) -> None:
        for name, state in self.noted.items():
            own = adapter_state(self.model, name)
            assert own.keys() == state.keys()
            assert all(torch.equal(own[k].nan_to_num(7), state[k].nan_to_num(7)) for k in state)

    @rule()
    def run_as_it_is(self) -> None:
        self.check(None)

    @rule(outer=modes, inner=modes)
    def ablate_in_an_ablation(self, outer: int, inner: int) -> None:
        with ablated(self.model, self.mode(outer)):
            with ablated(self.model, self.mode(inner)):
                self.check(self.mode(inner))
            self.check(self.mode(outer))
        self.check(None)

    @rule(mode=modes)
    def fail_in_an_ablation(self, mode: int) -> None:
        with pytest.raises(ZeroDivisionError), ablated(self.model, self.mode(mode)):
            raise ZeroDivisionError
        self.check(None)

    @rule(table=st.sampled_from(sorted(NAMED_POLICIES)), seed=st.integers(0, 9))
    @precondition(lambda self: len(self.noted) == 2)
    def train_a_step(self, table: str, seed: int) -> None:
        policy = RoutingPolicy.parse(table, tuple(RANKS))
        labels = [policy.labels[(seed + i) % 3] for i in range(6)]
        self.model.train()
        self.model.zero_grad()
        with routed(self.model, policy, labels):
            mean_loss(self.model, tiny_batch(seed=seed)).backward()
        self.model.eval()
        with torch.no_grad():
            for own in adapter_parameters(self.model).values():
                for weight in own:
                    weight -= 0.1 * weight.grad.nan_to_num(0.0)  # pyright: ignore
        self.note()
        self.check(None)

    @rule(name=st.sampled_from(sorted(RANKS)))
    @precondition(lambda self: len(self.noted) == 2)
    def fill_with_nan(self, name: str) -> None:
        with torch.no_grad():
            for weight in adapter_parameters(self.model)[name]:
                weight.fill_(float("nan"))
        self.note()
        self.check(None)
        with ablated(self.model, f"{name}_ablated"):
            self.check(f"{name}_ablated")

    @rule(seed=st.integers(0, 9))
    def load_other_weights(self, seed: int) -> None:
        other = tiny_routed({n: RANKS[n] for n in self.noted}, dtype=torch.float32)
        randomise(other, seed)
        for name in self.noted:
            load_adapter_state(self.model, name, adapter_state(other, name))
        self.note()
        self.check(None)

    @rule()
    def go_through_the_files_of_peft(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            first, *others = self.noted
            base = tiny_base(dtype=torch.float32)
            model = PeftModel.from_pretrained(base, f"{folder}/{first}", adapter_name=first)
            for name in others:
                model.load_adapter(f"{folder}/{name}", adapter_name=name)
        self.model = route_adapters(model).eval()
        self.check(None)

    @rule()
    @precondition(
        lambda self: all(t.isfinite().all() for s in self.noted.values() for t in s.values())
    )
    def go_through_a_checkpoint(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            saved = save_checkpoint(Path(folder), 1, self.model, {}, config_text="", policy={})
            self.model = tiny_routed({n: RANKS[n] for n in self.noted}, dtype=torch.float32).eval()
            load_adapters(saved, self.model)
        self.check(None)

    @rule(back=st.booleans())
    @precondition(lambda self: len(self.noted) == 2)
    def delete_and_perhaps_bring_back(self, back: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            self.model.delete_adapter("bad")
            kept = self.noted.pop("bad")
            self.model = route_adapters(self.model).eval()
            self.check(None)
            if back:
                self.model.load_adapter(f"{folder}/bad", adapter_name="bad")
                self.model = route_adapters(self.model).eval()
                self.noted["bad"] = kept
        self.check(None)


Adapters.TestCase.settings = settings(max_examples=8, stateful_step_count=8, deadline=None)
test_any_sequence_of_what_is_done_to_adapters_ends_like_a_fresh_load = Adapters.TestCase
