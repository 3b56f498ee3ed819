import json
import shutil

import numpy as np
import pytest

from fastdrive_node.cli import main
from fastdrive_node.families import load_vla
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_node.planning.generator import Answer, Generated, Generator
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_training.data.nuscenes.keyframes import KeyframeDataset
from fastdrive_training.scoring.view_weights import REFUSED_M, PlanningError, best_trial, search_weights
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", scenes=1, keyframes=8)


def test_the_search_starts_with_equal_weights_and_ends_near_the_optimum():
    target = np.array([0.6, 0.3, 0.1])
    trials = search_weights(lambda weights: float(np.abs(weights - target).sum()), 3, 200, progress=False)
    assert trials[0].weights == pytest.approx((1 / 3,) * 3)
    assert all(sum(trial.weights) == pytest.approx(1) and min(trial.weights) >= 0 for trial in trials)
    assert best_trial(trials).weights == pytest.approx(target, abs=0.05)
    assert best_trial(trials).error == min(trial.error for trial in trials)


def test_the_same_seed_gives_the_same_search():
    def objective(weights):
        return weights[0]

    first, again, other = (search_weights(objective, 4, 10, seed, progress=False) for seed in (3, 3, 4))
    assert first == again != other


def test_the_error_is_that_of_the_plans_and_refusals_count_as_far_off(root, tiny_vla, monkeypatch):
    dataset = KeyframeDataset(root)
    future = next(keyframe.future() for keyframe in dataset if keyframe.future() is not None)
    texts = [format_answer(future + np.array([0.0, 0.5]), tiny_vla.spec.answer), "no plan"]
    seen = []

    def generate(self, pruner, contexts, prompts, keep):
        seen.append((pruner.weights, keep))
        answers = [Answer(text, tuple(self.vla.encode_text(text))) for text in texts]
        return [Generated(answers[index], None) for index in range(len(prompts))]

    monkeypatch.setattr(Generator, "generate", generate)
    objective = PlanningError(dataset, tiny_vla, 2, 0.75)
    weights = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
    assert objective(weights) == pytest.approx((0.5 + REFUSED_M) / 2, abs=0.1)
    assert seen == [(weights, 48)]


def test_the_command_writes_weights_that_the_pruner_finds(root, tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "vla")
    arguments = ["--vla", str(tmp_path / "vla"), "--trials", "2", "--limit", "1", "--json", str(tmp_path / "f.json")]
    assert main(["view-weights", str(root), *arguments]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["trials"] == 2 and figures["keyframes"] == 1 and figures["l2_m"] <= figures["l2_equal_weights_m"]
    vla = load_vla(tmp_path / "vla")
    assert make_pruner("prune2drive", vla).weights == tuple(figures["cameras"][camera] for camera in vla.spec.cameras)


def test_wrong_arguments_are_refused(root, tiny_dir, tmp_path, capsys):
    for arguments, message in ((["--trials", "0"], "--trials"), (["--limit", "0"], "--limit")):
        assert main(["view-weights", str(root), "--vla", str(tiny_dir), *arguments]) == 2
        assert message in capsys.readouterr().err
    short = write_dataset(tmp_path / "short", scenes=1, keyframes=3)
    assert main(["view-weights", str(short), "--vla", str(tiny_dir)]) == 1
    assert "has a recorded future of 3 s" in capsys.readouterr().err
