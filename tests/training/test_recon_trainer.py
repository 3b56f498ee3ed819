"""The loop: exact resume, collapse, losses that are no numbers, and that it learns."""

from __future__ import annotations

import json

import pytest
import torch
from recon_fixtures import CELL, GRID, PaintedBatches, text_config

from fastdrive_node.pruning.recon_pruner import ReconPruner
from fastdrive_training.metrics import ranking
from fastdrive_training.recon_health import CollapseError, HealthCheck, HealthLimits, Vitals
from fastdrive_training.recon_model import LossWeights, ReconDecoder
from fastdrive_training.recon_trainer import CHECKPOINT, LOG, ReconTrainer, Schedule, TrainingError

SHORT = Schedule(warmup_steps=4, steps=8, lr=1e-3, ramp_steps=2, log_every=1, checkpoint_every=5, evaluate_every=4)


def _trainer(out, schedule=SHORT, batches=None, seed=0, **options) -> ReconTrainer:
    torch.manual_seed(seed)
    pruner, decoder = ReconPruner(text_config()), ReconDecoder(text_config(), 1, CELL)
    loss = options.pop("loss", LossWeights())
    health = options.pop("health", HealthLimits(grace_steps=10**6))
    return ReconTrainer(
        pruner, decoder, batches or PaintedBatches(), GRID, out, schedule, loss, health, progress=False, **options
    )


def _losses(out) -> list[tuple[int, float]]:
    return [(row["step"], row["total"]) for row in map(json.loads, (out / LOG).read_text().splitlines())]


class _Cut(Exception):
    pass


class _CutBatches(PaintedBatches):
    """Ends with an error, as a power cut, before the given step."""

    def __init__(self, cut: int):
        super().__init__()
        self.cut = cut

    def at(self, step):
        if step == self.cut:
            raise _Cut
        return super().at(step)


def test_resumed_run_has_the_losses_and_weights_of_an_unbroken_one(tmp_path):
    whole = _trainer(tmp_path / "whole")
    whole.run()
    with pytest.raises(_Cut):
        _trainer(tmp_path / "cut", batches=_CutBatches(8)).run()
    assert [step for step, _ in _losses(tmp_path / "cut")] == list(range(8))  # the checkpoint is at step 5
    resumed = _trainer(tmp_path / "cut", seed=123)  # other initial weights: all must come from the checkpoint
    resumed.run(resume=True)
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")
    for name, tensor in whole.pruner.state_dict().items():
        assert torch.equal(tensor, resumed.pruner.state_dict()[name]), name


def test_resume_without_or_with_a_foreign_or_broken_checkpoint_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        _trainer(tmp_path).run(resume=True)
    _trainer(tmp_path, identity="a").run()
    with pytest.raises(TrainingError, match="another recipe"):
        _trainer(tmp_path, identity="b").run(resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match="unreadable"):
        _trainer(tmp_path, identity="a").run(resume=True)


def test_nan_stops_the_run_names_the_batch_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(TrainingError, match=r"step 7: the loss is nan on the batch sample7/0") as caught:
        _trainer(tmp_path, batches=PaintedBatches(poison=7)).run()
    assert str(tmp_path / CHECKPOINT) in str(caught.value)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["step"] == 5
    assert all(torch.isfinite(tensor).all() for tensor in state["pruner"].values())


def test_collapsed_run_stops_with_its_reason(tmp_path):
    trainer = _trainer(tmp_path, health=HealthLimits(grace_steps=0, patience_steps=3))
    with torch.no_grad():
        trainer.pruner.scorer.bias.fill_(-50.0)
    with pytest.raises(CollapseError, match=r"collapsed at joint step 3: 0\.00% of the tokens are above zero"):
        trainer.run()


def test_health_needs_the_bad_sign_to_last():
    limits = HealthLimits(grace_steps=2, patience_steps=2)
    good, bad = Vitals(0.3, 0.0, 1.0, 1e-3), Vitals(1.0, 9.0, 1.0, 1e-3)
    check = HealthCheck(limits)
    for step, vitals in enumerate([bad, bad, bad, bad, good, bad, bad]):
        check.update(step, vitals)
    with pytest.raises(CollapseError, match=r"100\.00%"):
        check.update(7, bad)


@pytest.mark.parametrize("gradient", [0.0, float("nan")])
def test_health_sees_a_scorer_without_gradient(gradient):
    check = HealthCheck(HealthLimits(grace_steps=0, patience_steps=1))
    check.update(0, Vitals(0.3, 1e10, 1.0, gradient))
    with pytest.raises(CollapseError, match="gradient is"):
        check.update(1, Vitals(0.3, 1e10, 1.0, gradient))


def test_pruner_rests_in_the_warm_up(tmp_path):
    trainer = _trainer(tmp_path, Schedule(warmup_steps=3, steps=1, lr=1e-3, log_every=1))
    before = {name: tensor.clone() for name, tensor in trainer.pruner.state_dict().items()}
    for batch in trainer.batches.steps(0, 3):
        trainer._train_step(batch)
        trainer.step += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.pruner.state_dict().items())
    trainer._train_step(trainer.batches.at(3))
    assert not torch.equal(trainer.pruner.scorer.weight, before["scorer.weight"])


def test_log_has_vitals_losses_and_held_out_figures(tmp_path):
    figures = _trainer(tmp_path, evaluate=lambda: {"auroc": 0.75}).run()
    assert figures["auroc"] == 0.75
    rows = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["warmup"] * 4 + ["joint"] * 8
    assert {"positive_share", "score_std", "gradient", "mse_fore", "ssim_back", "images_per_s"} <= set(rows[-1])
    assert [row["step"] for row in rows if "auroc" in row] == [7, 11]


def test_bfloat16_trains_with_finite_float32_scores(tmp_path):
    trainer = _trainer(tmp_path, precision="bfloat16")
    figures = trainer.run()
    assert 0 < figures["total"] < 1
    assert trainer.pruner.scorer.weight.dtype == torch.float32
    assert figures["total"] != _trainer(tmp_path / "other").run()["total"]  # bfloat16 was used


def test_schedule_ramps_then_decays_by_cosine():
    schedule = Schedule(warmup_steps=10, steps=100, ramp_steps=5, final_rate=0.1)
    assert schedule.rate(0) == pytest.approx(0.2)
    assert schedule.rate(10) == 1.0
    assert schedule.rate(60) == pytest.approx(0.55)
    assert schedule.rate(110) == pytest.approx(0.1)


def test_adversary_finds_the_foreground_on_painted_cells(tmp_path):
    """A few hundred steps on a toy world: the scores rank foreground cells above background ones."""
    schedule = Schedule(warmup_steps=200, steps=250, lr=3e-3, pruner_rate=0.3, log_every=50, checkpoint_every=1000)
    batches = PaintedBatches(batch=16)
    trainer = _trainer(tmp_path, schedule, batches, loss=LossWeights(ssim_weight=0.0))
    trainer.run()
    held_out = batches.at(10**6)
    with torch.no_grad():
        scores = trainer.pruner.eval()(held_out.tokens, GRID)
    positive = held_out.foreground[:, 0, ::CELL, ::CELL].flatten(1)
    assert ranking(scores.numpy(), positive.numpy())["auroc"] > 0.9
