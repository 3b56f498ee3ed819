"""K is what fits into a deadline: on an idle machine, on one that becomes slower, and on one that recovers."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field

import pytest

from fastdrive_node.errors import InputError, ModelError, PlannerError
from fastdrive_node.planning.deadline import Deadline, LatencyModel
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.catalog import ScoreOptions
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.score_pruner import RefinedPruner
from fastdrive_node.types import CAMERAS

WANTED, LEAST = 96, 16
ENCODE_MS, FIXED_MS, EACH_MS = 30.0, 20.0, 0.5  # of an idle machine


@dataclass
class Machine:
    """Plans with times that vary by 3%, under a load that multiplies them."""

    deadline: Deadline
    load: float = 1.0
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def run(self, plans: int) -> list[int | None]:
        """K of each plan; negative where it was late, None where the set was dropped."""
        return [self._plan() for _ in range(plans)]

    def _plan(self) -> int | None:
        def took(ms: float) -> float:
            return ms * self.load * self.random.uniform(0.97, 1.03)

        encode_ms = took(ENCODE_MS)
        try:
            choice = self.deadline.choose(WANTED, encode_ms, encode_ms)
        except PlannerError as error:
            assert error.code == "deadline"
            return None
        total_ms = encode_ms + took(FIXED_MS + EACH_MS * choice.keep)
        met = self.deadline.finish(choice, total_ms, choice.keep)
        assert met == (total_ms <= self.deadline.deadline_ms)
        return choice.keep if met else -choice.keep


def machine(deadline_ms: float) -> Machine:
    deadline = Deadline(deadline_ms, LEAST)
    deadline.learn({keep: FIXED_MS + EACH_MS * keep for keep in (LEAST, 56, WANTED)}, ENCODE_MS)
    return Machine(deadline)


def test_the_model_is_the_line_through_what_was_measured():
    assert LatencyModel.fit({16: 28.0, 56: 48.0, 96: 68.0}).predict(36) == pytest.approx(38.0)
    assert LatencyModel.fit({16: 50.0}).predict(96) == 50.0
    falling = LatencyModel.fit({16: 50.0, 96: 40.0})  # noise: fewer tokens never take longer
    assert falling.predict(16) == falling.predict(96) == 45.0


def test_an_idle_machine_keeps_what_the_pruning_ratio_says():
    assert machine(deadline_ms=130.0).run(50) == [WANTED] * 50


def test_a_doubled_load_costs_tokens_and_the_deadline_is_met_after_ten_plans():
    loaded = machine(deadline_ms=150.0)
    loaded.run(30)
    loaded.load = 2.0
    kept = loaded.run(1000)
    assert sum(keep is None or keep < 0 for keep in kept[10:]) <= 0.01 * 990
    assert all(keep is not None and LEAST <= abs(keep) < WANTED for keep in kept[10:])
    loaded.load = 1.0
    assert loaded.run(10)[-1] == WANTED


def test_sets_are_dropped_while_not_even_the_fewest_tokens_fit_and_planned_again_afterwards():
    loaded = machine(deadline_ms=120.0)
    loaded.run(30)
    loaded.load = 4.0
    kept = loaded.run(1000)
    assert sum(keep is not None for keep in kept) <= 1  # the first, which nothing had announced
    loaded.load = 1.0
    assert loaded.run(10)[-1] == WANTED


@dataclass
class StagedMachine:
    """Plans whose stages vary, one in fifty taking 1.5 times as long. Times are about those of models/tiny."""

    factor: float  # of the deadline: times the usual time of a plan
    seed: int
    load: float = 1.0
    spell: int = 0  # so many sets take ``spell_load`` times as long behind the encoder
    spell_load: float = 2.5
    late: list[bool] = field(default_factory=list)
    kept: list[int | None] = field(default_factory=list)  # None where the set was refused

    WANTED = 144
    BEFORE_MS, ENCODER_MS = (8.0, 9.0), 38.0  # of load and preprocess, and of the encoder
    BEHIND_MS, TOKEN_MS = (5.0, 30.0, 1.0), 0.14  # of pruner, decode and parse, and of a token in prefill

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        usual = sum(self.BEFORE_MS) + self.ENCODER_MS + self.behind_ms(self.WANTED)
        self.deadline = Deadline(self.factor * usual, LEAST)
        times = {keep: 0.8 * self.behind_ms(keep) for keep in (LEAST, 80, self.WANTED)}  # black images: short answers
        self.deadline.learn(times, self.ENCODER_MS)

    def behind_ms(self, keep: int) -> float:
        return sum(self.BEHIND_MS) + self.TOKEN_MS * keep

    def took(self, *stages_ms: float) -> float:
        tails = (1.5 if self.random.random() < 0.02 else 1.0 for _ in stages_ms)
        return sum(
            ms * self.load * self.random.lognormvariate(0.0, 0.05) * tail
            for ms, tail in zip(stages_ms, tails, strict=True)
        )

    def run(self, sets: int) -> StagedMachine:
        for _ in range(sets):
            encode_ms = self.took(self.ENCODER_MS)
            elapsed_ms = self.took(*self.BEFORE_MS) + encode_ms
            behind = self.spell_load if self.spell > 0 else 1.0
            self.spell -= 1
            try:
                choice = self.deadline.choose(self.WANTED, elapsed_ms, encode_ms)
            except PlannerError:
                self.kept.append(None)
                self.late.append(False)
                continue
            total_ms = elapsed_ms + behind * self.took(*self.BEHIND_MS, self.TOKEN_MS * choice.keep)
            self.kept.append(choice.keep)
            self.late.append(not self.deadline.finish(choice, total_ms, choice.keep))
        return self

    def begin(self) -> None:
        """Forget what became of the sets so far."""
        self.late.clear()
        self.kept.clear()

    @property
    def planned(self) -> float:
        return sum(keep is not None for keep in self.kept) / len(self.kept)


@pytest.mark.parametrize("spell", [0, 5])
@pytest.mark.parametrize(("factor", "least_planned"), [(1.6, 0.0), (2.0, 0.1), (2.2, 0.2), (3.0, 0.9)])
def test_twice_the_time_of_every_stage_is_met_with_fewer_tokens_or_refused(factor, least_planned, spell):
    machines = [StagedMachine(factor, seed) for seed in range(20)]
    for machine in machines:
        machine.run(100)
        machine.spell = spell  # another program takes the cores for a moment, then the load begins
        machine.run(spell)
        machine.load = 2.0
        machine.run(10)
        machine.begin()
        machine.run(300)
    late = [sum(machine.late) for machine in machines]
    assert sum(late) <= 0.01 * 300 * len(machines) and max(late) <= 4
    assert min(machine.planned for machine in machines) >= least_planned
    if factor == 1.6:  # not even the fewest tokens fit
        assert max(machine.planned for machine in machines) == 0
    for machine in machines:
        machine.load = 1.0
        machine.run(50)
        machine.begin()
        assert machine.run(50).planned >= 0.9


def test_no_plan_is_late_as_a_load_begins_with_which_nothing_fits():
    for seed in range(20):
        machine = StagedMachine(1.6, seed).run(100)
        machine.load = 2.0
        assert not any(machine.run(10).late)


def test_a_few_long_plans_do_not_refuse_all_sets_from_then_on():
    for seed in range(20):
        machine = StagedMachine(1.6, seed, spell_load=4.0).run(100)
        machine.spell = 5
        machine.begin()
        machine.run(100)
        assert None in machine.kept[:10] and machine.kept[-50:].count(None) <= 5
        assert sum(machine.late) <= 2


def test_a_refusal_says_how_long_the_plan_would_have_taken():
    text = (
        "95 ms have passed and 16 tokens may take 35 ms more, deadline_ms is 100, 5 % of it held in reserve; "
        "the machine may take 1.2 times as long"
    )
    with pytest.raises(PlannerError, match=text):
        machine(100.0).deadline.choose(WANTED, 95.0, 30.0)


def test_the_pipeline_keeps_fewer_tokens_and_tells_why(tiny_vla, pruner, frame_set, ego_history, good_plan):
    pipeline = Pipeline(tiny_vla, pruner, drop=0.5)
    pipeline.set_deadline(1e6, LEAST)
    plan = pipeline.plan(frame_set, ego_history)
    assert (plan.kept.kept, plan.deadline.reason, plan.deadline.wanted) == (96, "drop", 96)
    assert 0 < plan.deadline.elapsed_ms < plan.stage_ms["total"] and not plan.warnings
    pipeline._deadline.model = LatencyModel(0.0, 1e4)  # 76 tokens, wherever a plan takes less than 10 s
    pipeline._deadline._relative.clear()  # so the next plan may take 1.25 times as long
    pipeline._deadline._encoder_load = lambda: 1.0  # the machine is not slower than at the start
    plan = pipeline.plan(frame_set, ego_history)
    assert plan.kept.kept == plan.deadline.keep in (74, 75, 76) and plan.deadline.reason == "deadline"


@pytest.mark.parametrize(("fit", "kept"), [(20, 20), (48, 48), (85, 84)])
def test_pooled_cells_become_fewer_with_the_time(tiny_vla, pruner, frame_set, ego_history, good_plan, fit, kept):
    pooled = RefinedPruner(pruner, ScoreOptions(pooled=True), None, CAMERAS)
    pipeline = Pipeline(tiny_vla, pooled, drop=0.5)
    pipeline.set_deadline(1e6, LEAST)
    choose = pipeline._deadline.choose
    pipeline._deadline.choose = lambda *arguments: dataclasses.replace(choose(*arguments), keep=fit)
    assert pipeline.plan(frame_set, ego_history).kept.kept == kept  # of 48 cells: pooled, and 12 of them whole


def test_a_pipeline_refuses_a_set_that_has_no_time_left(tiny_vla, pruner, frame_set, ego_history, good_plan):
    pipeline = Pipeline(tiny_vla, pruner, drop=0.5)
    pipeline.set_deadline(1e-3, LEAST)
    with pytest.raises(PlannerError) as caught:
        pipeline.plan(frame_set, ego_history)
    assert caught.value.code == "deadline"


def test_a_late_plan_is_warned_of(tiny_vla, pruner, frame_set, ego_history, good_plan):
    pipeline = Pipeline(tiny_vla, pruner, drop=0.5)
    pipeline.set_deadline(1e6, LEAST)
    finish = pipeline._deadline.finish
    pipeline._deadline.finish = lambda choice, total_ms, kept: finish(choice, 2e6, kept)
    (warning,) = pipeline.plan(frame_set, ego_history).warnings
    assert warning.startswith("deadline: the plan took ")


def test_a_deadline_needs_a_pruner(tiny_vla):
    with pytest.raises(ModelError, match="deadline_ms: the model runs without a pruner"):
        Pipeline(tiny_vla).set_deadline(100.0, LEAST)


@pytest.mark.parametrize(("name", "least"), [("tokenpacker", 48), ("matryoshka", 6)])
def test_a_k_min_that_the_pruner_cannot_keep_is_refused_at_once(tiny_vla, name, least):
    pipeline = Pipeline(tiny_vla, make_pruner(name, tiny_vla), drop=0.75)
    with pytest.raises(InputError, match=rf"k_min: {least - 1} with deadline_ms 100, but pruner {name} keeps at least"):
        pipeline.set_deadline(100.0, least - 1)
    pipeline.set_deadline(1e6, least)


def test_a_drop_that_the_pruner_cannot_keep_to_is_refused_at_once(tiny_vla):
    pipeline = Pipeline(tiny_vla, make_pruner("tokenpacker", tiny_vla), drop=0.75)
    told = r"drop: 0.76 keeps 46 of 192 tokens, the pruner keeps at least 48; give a smaller drop"
    for look in (pipeline.check_drop, lambda value: open_pipeline(tiny_vla.path, "tokenpacker", value)):
        with pytest.raises(InputError, match=told):
            look(0.76)
    assert pipeline.check_drop(0.75) == 48
