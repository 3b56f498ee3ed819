"""The loop: exact resume, collapse, losses that are no numbers, and that it learns."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fastdrive_node.errors import TrainingError
from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.engine.checkpoint import CHECKPOINT
from fastdrive_training.engine.distributed import Processes
from fastdrive_training.engine.logging import LOG, read_log
from fastdrive_training.engine.loop import learning_rate
from fastdrive_training.pruner.collapse import CollapseError, HealthCheck, HealthLimits, TrainingHealth
from fastdrive_training.pruner.config import ReconRecipe, Schedule
from fastdrive_training.pruner.decoder import ReconDecoder
from fastdrive_training.pruner.losses import LossWeights
from fastdrive_training.pruner.trainer import ReconTrainer
from fastdrive_training.scoring.token_metrics import ranking
from tests.generation import QWEN
from tests.training.pruner.recon_fixtures import CELL, GRID, PaintedBatches, text_config

SHORT = Schedule(
    decoder_pretrain_steps=4, steps=8, lr=1e-3, warmup_steps=2, log_every=1, checkpoint_every=5, evaluate_every=4
)


def _trainer(
    out, schedule=SHORT, batches=None, seed=0, loss=None, health=None, mask="pruner", **options
) -> ReconTrainer:
    torch.manual_seed(seed)
    loss, health = loss or LossWeights(), health or HealthLimits(grace_steps=10**6)
    recipe = ReconRecipe(
        "v", "d", str(out), workers=0, mask=mask, tensorboard=False, loss=loss, schedule=schedule, health=health
    )
    pruner, decoder = ReconPruner(QWEN, text_config()), ReconDecoder(QWEN, text_config(), 1, CELL, loss.channels)
    batches = batches or PaintedBatches(parts=schedule.accumulate)
    return ReconTrainer(recipe, pruner, decoder, batches, Processes("cpu"), **options)


def _losses(out) -> list[tuple[int, float]]:
    return [(row["step"], row["total"]) for row in map(json.loads, (out / LOG).read_text().splitlines())]


class _Cut(Exception):
    pass


class _CutBatches(PaintedBatches):
    """Ends with an error, as a power cut, before the given step."""

    def __init__(self, cut: int, parts: int = 1):
        super().__init__(parts=parts)
        self.cut = cut

    def at(self, step, part=0):
        if step == self.cut:
            raise _Cut
        return super().at(step, part)


@pytest.mark.parametrize("extras", [{}, {"accumulate": 2, "ema_decay": 0.8}], ids=["plain", "ema and accumulation"])
def test_resumed_run_has_the_losses_and_weights_of_an_unbroken_one(tmp_path, extras):
    schedule = replace(SHORT, **extras)
    whole = _trainer(tmp_path / "whole", schedule)
    whole.run()
    with pytest.raises(_Cut):
        _trainer(tmp_path / "cut", schedule, _CutBatches(8, schedule.accumulate)).run()
    assert [step for step, _ in _losses(tmp_path / "cut")] == list(range(8))  # the checkpoint is at step 5
    resumed = _trainer(tmp_path / "cut", schedule, seed=123)  # other initial weights: all come from the checkpoint
    resumed.run(resume=True)
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")
    for name, tensor in whole.pruner.state_dict().items():
        assert torch.equal(tensor, resumed.pruner.state_dict()[name]), name
    for name, tensor in whole.result.state_dict().items():
        assert torch.equal(tensor, resumed.result.state_dict()[name]), name


def test_accumulation_changes_memory_and_not_the_losses(tmp_path):
    _trainer(tmp_path / "one").run()
    _trainer(tmp_path / "four", replace(SHORT, accumulate=4)).run()
    for expected, row in zip(read_log(tmp_path / "one"), read_log(tmp_path / "four"), strict=True):
        for key in {"total", "gradient", "positive_share", "score_std", "foreground_share"} & set(expected):
            assert row[key] == pytest.approx(expected[key], rel=1e-3), (row["step"], key)


def test_the_moving_average_is_what_is_evaluated_and_shipped(tmp_path):
    seen = []
    trainer = _trainer(
        tmp_path,
        replace(SHORT, ema_decay=0.5, evaluate_every=1),
        evaluate=lambda pruner, *_: seen.append(pruner.scorer.weight.detach().clone()) or {},
    )
    raw = []
    for step in range(SHORT.total):
        trainer.train_step(trainer.batches[step])
        trainer.step += 1
        raw.append(trainer.pruner.scorer.weight.detach().clone())
    expected = raw[SHORT.decoder_pretrain_steps]  # the first of the joint phase
    for weight in raw[SHORT.decoder_pretrain_steps + 1 :]:
        expected = 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(trainer.result.scorer.weight.detach(), expected)
    assert not torch.equal(trainer.result.scorer.weight, trainer.pruner.scorer.weight)
    again = _trainer(tmp_path / "again", replace(SHORT, ema_decay=0.5), evaluate=trainer._evaluate)
    again.run()
    torch.testing.assert_close(seen[-1], expected)


def test_resume_without_or_with_a_foreign_or_broken_checkpoint_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint to resume"):
        _trainer(tmp_path).run(resume=True)
    _trainer(tmp_path, identity={"encoder": "a"}).run()
    with pytest.raises(
        TrainingError, match=r"encoder was 'a' in that run, now it is 'b'; set it back or start without --resume"
    ):
        _trainer(tmp_path, identity={"encoder": "b"}).run(resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match="unreadable"):
        _trainer(tmp_path, identity={"encoder": "a"}).run(resume=True)


def test_nan_stops_the_run_names_the_batch_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(
        TrainingError, match=r"step 7: the loss is nan on the batch sample7/0, .*first in sample7/1;"
    ) as caught:
        _trainer(tmp_path, replace(SHORT, accumulate=2), PaintedBatches(poison=7, parts=2)).run()
    assert str(tmp_path / CHECKPOINT) in str(caught.value)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["step"] == 5
    assert all(torch.isfinite(tensor).all() for tensor in state["modules"]["pruner"].values())


def test_collapsed_run_stops_with_its_reason(tmp_path):
    trainer = _trainer(tmp_path, health=HealthLimits(grace_steps=0, patience_steps=3))
    with torch.no_grad():
        trainer.pruner.scorer.bias.fill_(-50.0)
    with pytest.raises(CollapseError, match=r"collapsed at joint step 3: 0\.00% of the tokens are above zero"):
        trainer.run()


def test_a_collapse_can_be_recorded_and_the_run_go_on(tmp_path):
    limits = HealthLimits(grace_steps=0, patience_steps=3, on_collapse="record")
    trainer = _trainer(tmp_path, health=limits)
    with torch.no_grad():
        trainer.pruner.scorer.bias.fill_(-50.0)
    figures = trainer.run()
    assert figures["step"] == SHORT.total - 1
    assert figures["collapsed"]["step"] == 3
    assert "0.00% of the tokens are above zero" in figures["collapsed"]["reason"]
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["trainer"]["health"]["collapsed"] == figures["collapsed"]


def test_random_scores_on_held_out_keyframes_are_a_collapse_too(tmp_path):
    limits = HealthLimits(grace_steps=2)
    with pytest.raises(CollapseError, match=r"held-out AUROC is 0\.510 \(random is 0\.5\)"):
        _trainer(tmp_path, health=limits, evaluate=lambda *_: {"auroc": 0.51}).run()
    figures = _trainer(tmp_path, health=limits, evaluate=lambda *_: {"auroc": 0.9}).run()
    assert figures["collapsed"] is None


def test_health_needs_the_bad_sign_to_last():
    limits = HealthLimits(grace_steps=2, patience_steps=2)
    good, bad = TrainingHealth(0.3, 0.0, 1.0, 1e-3), TrainingHealth(1.0, 9.0, 1.0, 1e-3)
    check = HealthCheck(limits)
    for step, health in enumerate([bad, bad, bad, bad, good, bad, bad]):
        check.update(step, health)
    with pytest.raises(CollapseError, match=r"100\.00%"):
        check.update(7, bad)


@pytest.mark.parametrize("gradient", [0.0, float("nan")])
def test_health_sees_a_scorer_without_gradient(gradient):
    check = HealthCheck(HealthLimits(grace_steps=0, patience_steps=1))
    check.update(0, TrainingHealth(0.3, 1e10, 1.0, gradient))
    with pytest.raises(CollapseError, match="gradient is"):
        check.update(1, TrainingHealth(0.3, 1e10, 1.0, gradient))


def test_the_pruner_is_not_changed_while_the_decoder_trains_alone(tmp_path):
    trainer = _trainer(tmp_path, Schedule(decoder_pretrain_steps=3, steps=1, lr=1e-3, log_every=1))
    before = {name: tensor.clone() for name, tensor in trainer.pruner.state_dict().items()}
    for step in range(3):
        trainer.train_step(trainer.batches[step])
        trainer.step += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.pruner.state_dict().items())
    trainer.train_step(trainer.batches[3])
    assert not torch.equal(trainer.pruner.scorer.weight, before["scorer.weight"])


def test_log_has_health_losses_and_held_out_figures(tmp_path):
    figures = _trainer(tmp_path, evaluate=lambda *_: {"auroc": 0.75}).run()
    assert figures["auroc"] == 0.75
    rows = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["warmup"] * 4 + ["joint"] * 8
    assert {
        "positive_share",
        "score_std",
        "gradient",
        "mse_fore",
        "ssim_back",
        "images_per_s",
        "foreground_share",
    } <= set(rows[-1])
    assert [row["step"] for row in rows if "auroc" in row] == [7, 11]


def test_bfloat16_trains_with_finite_float32_scores(tmp_path):
    trainer = _trainer(tmp_path, precision="bfloat16")
    figures = trainer.run()
    assert 0 < figures["total"] < 1
    assert trainer.pruner.scorer.weight.dtype == torch.float32
    assert figures["total"] != _trainer(tmp_path / "other").run()["total"]  # bfloat16 was used


@pytest.mark.parametrize("mask", ["oracle", "random"])
def test_a_decoder_can_be_trained_on_masks_that_are_given(tmp_path, mask):
    trainer = _trainer(tmp_path, mask=mask)
    before = {name: tensor.clone() for name, tensor in trainer.pruner.state_dict().items()}
    figures = trainer.run()
    assert "positive_share" not in figures and 0 < figures["total"] < 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.pruner.state_dict().items())


def test_the_oracle_mask_costs_less_than_a_random_one(tmp_path):
    schedule = Schedule(decoder_pretrain_steps=40, steps=40, rehearsal=0.0, lr=3e-3, log_every=1, checkpoint_every=1000)
    totals = {}
    for mask in ("oracle", "random"):
        _trainer(tmp_path / mask, schedule, PaintedBatches(batch=8), loss=LossWeights(ssim_weight=0.0), mask=mask).run()
        totals[mask] = sum(total for _, total in _losses(tmp_path / mask)[-20:]) / 20
    assert totals["oracle"] < 0.8 * totals["random"]


@pytest.mark.parametrize("targets", ["mask", "both"])
def test_the_adversary_works_on_masks_too(tmp_path, targets):
    schedule = Schedule(
        decoder_pretrain_steps=30, steps=50, lr=3e-3, pruner_rate=1.0, log_every=50, checkpoint_every=1000
    )
    batches = PaintedBatches(batch=8)
    trainer = _trainer(tmp_path, schedule, batches, loss=LossWeights(ssim_weight=0.0, targets=targets))
    trainer.run()
    assert _auroc(trainer, batches) > 0.9


ADVERSARY = Schedule(30, 50, 0.25, 8, lr=3e-3, pruner_rate=1.0, log_every=50, checkpoint_every=1000)


@pytest.fixture(scope="module")
def adversary(tmp_path_factory) -> tuple[ReconTrainer, PaintedBatches, dict]:
    """A run with the adversary, its batches and its figures."""
    batches = PaintedBatches(batch=8)
    trainer = _trainer(tmp_path_factory.mktemp("adversary"), ADVERSARY, batches, loss=LossWeights(ssim_weight=0.0))
    return trainer, batches, trainer.run()


def test_adversary_finds_the_foreground_on_painted_cells(adversary):
    """Eighty steps on a toy world: the scores rank foreground cells above background ones."""
    trainer, batches, _ = adversary
    assert _auroc(trainer, batches) > 0.9


def test_without_the_adversary_every_token_is_kept_and_with_it_the_foreground(tmp_path, adversary):
    """The paper's ablation: all tokens together rebuild the foreground best, so a high score costs nothing."""
    schedule = replace(ADVERSARY, decoder_pretrain_steps=0, steps=100, rehearsal=0.0)
    loss = LossWeights(ssim_weight=0.0, adversary=False)
    without = _trainer(tmp_path, schedule, PaintedBatches(batch=8), loss=loss).run()
    assert without["positive_share"] > 0.9
    assert 0.2 < adversary[2]["positive_share"] < 0.6  # 0.4 of the cells are foreground


def _auroc(trainer: ReconTrainer, batches: PaintedBatches) -> float:
    held_out = batches.at(10**6)
    with torch.no_grad():
        scores = trainer.pruner.eval()(held_out.tokens, GRID)
    positive = held_out.foreground[:, 0, ::CELL, ::CELL].flatten(1)
    return ranking(scores.numpy(), positive.numpy())["auroc"]


def test_learning_rate_warms_up_holds_and_decays_by_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, rates = learning_rate(optimizer, 5, 110, 0.1, hold_steps=10), []
    for _ in range(111):
        rates.append(schedule.get_last_lr()[0] / 2)
        optimizer.step()
        schedule.step()
    assert [rates[0], rates[4], rates[10], rates[60], rates[110]] == pytest.approx([0.2, 1.0, 1.0, 0.55, 0.1])
