"""Cameras whose image is that of the set before are not encoded again, and no plan depends on it."""

from __future__ import annotations

import itertools
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdrive_node.errors import AnswerError, ImageError, ModelError
from fastdrive_node.families import MODEL_TYPES, VisualTokens, load_vla
from fastdrive_node.families.base import CameraGroup
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_node.planning.deadline import _UNKNOWN, Deadline
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.planning.reuse import TokenReuse
from fastdrive_node.pruning.catalog import ScoreOptions, TemporalSettings
from fastdrive_node.pruning.registry import make_pruner
from fastdrive_node.pruning.score_pruner import RefinedPruner
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.samples import planning_samples
from fastdrive_node.types import CAMERAS, CameraFrame, EgoHistory, EgoState, FrameSet
from tests.families.tiny_vlas import CAMERAS as THREE
from tests.families.tiny_vlas import build_family_vla, with_sizes
from tests.generation import answer_with, read_answers_as

ROOT = Path(__file__).resolve().parents[2]
MS = 1_000_000
FRONT, BACK = "CAM_FRONT", "CAM_BACK"


def image_of(camera: str, seed: int, size: tuple[int, int]) -> np.ndarray:
    """Noise that depends on the camera and the seed."""
    return np.random.default_rng((seed, CAMERAS.index(camera))).integers(0, 256, (*size, 3), dtype=np.uint8)


def frame(camera: str, ms: int, seed: int, size: tuple[int, int] = (90, 160)) -> CameraFrame:
    return CameraFrame(camera, ms * MS, ms * MS, lambda: image_of(camera, seed, size))


def frame_set(ms: int, cameras=CAMERAS, missing=(), **held: CameraFrame) -> FrameSet:
    """A set of new images, but for the frames in ``held``."""
    return FrameSet(tuple(held.get(name) or frame(name, ms, ms) for name in cameras), ms * MS, missing)


def forgetful(pipeline: Pipeline) -> Pipeline:
    """The pipeline, which encodes every camera of every set."""
    pipeline._encoder._separable = None
    return pipeline


def exact(pipeline: Pipeline) -> Pipeline:
    """The pipeline as on a machine where forwards of any number of images round alike."""
    encoder, cameras = pipeline._encoder, len(pipeline.vla.spec.cameras)
    encoder._exact = {(group, number) for group in range(2) for number in range(1, cameras)}
    encoder._threads = torch.get_num_threads()
    return pipeline


@pytest.fixture
def answers(monkeypatch, tiny_vla):
    """What the language model says; a drivable plan unless a test puts another text first."""
    good = format_answer(np.array([[2.5 * k, 0.0] for k in range(1, 7)]), tiny_vla.spec.answer)
    said: list[str] = []
    answer_with(monkeypatch, lambda: said.pop(0) if said else good)
    return said


@pytest.fixture
def watch(monkeypatch):
    """Makes the numbers of images that each call of the encoder gets, and the tokens that each plan reads."""

    def start(pipeline: Pipeline) -> tuple[list[int], list[VisualTokens]]:
        encoded, given = [], []
        encode, context = pipeline.vision.encode, pipeline.generator.context

        def watched(inputs, attention=False):
            encoded.append(len(inputs))
            return encode(inputs, attention=attention)

        monkeypatch.setattr(pipeline.vision, "encode", watched)
        monkeypatch.setattr(
            pipeline.generator,
            "context",
            lambda p, visual, *a, **k: given.append(visual) or context(p, visual, *a, **k),
        )
        return encoded, given

    return start


def history(ms: int) -> EgoHistory:
    return EgoHistory((EgoState(ms * MS, 5.0 * ms / 1000, 0.0, 0.0, 5.0),), 0.5)


def plan(pipeline: Pipeline, frames: FrameSet):
    return pipeline.plan(frames, history(frames.t0_ns // MS))


def same(ours: VisualTokens, theirs: VisualTokens) -> bool:
    pairs = ((ours.rows, theirs.rows), (ours.indices, theirs.indices), (ours.attention, theirs.attention))
    tensors = [*pairs, *zip(ours.layer_features, theirs.layer_features, strict=True)]
    return (ours.grid, ours.grids) == (theirs.grid, theirs.grids) and all(
        a is b is None or torch.equal(a, b) for a, b in tensors
    )


def test_only_the_cameras_that_changed_are_encoded_and_the_plan_says_how_many_did_not(tiny_vla, answers, watch):
    pipeline = exact(Pipeline(tiny_vla))
    encoded, given = watch(pipeline)
    held = {FRONT: frame(FRONT, 0, 7), BACK: frame(BACK, 0, 7)}
    plans = [
        plan(pipeline, frame_set(0, **held)),
        plan(pipeline, frame_set(100, **held)),
        plan(pipeline, frame_set(200, CAM_BACK=held[BACK])),
        plan(pipeline, frame_set(300)),
    ]
    assert encoded == [6, 4, 5, 6] and [each.reused_cameras for each in plans] == [0, 2, 1, 0]
    rows = [visual.rows.unflatten(0, (6, 32)) for visual in given]
    kept = [[torch.equal(a, b) for a, b in zip(before, now, strict=True)] for before, now in itertools.pairwise(rows)]
    assert kept == [[name in (FRONT, BACK) for name in CAMERAS], [name == BACK for name in CAMERAS], [False] * 6]


def test_a_sensor_that_repeats_its_image_with_new_stamps_is_not_encoded_again(tiny_vla, answers, watch):
    pipeline = exact(Pipeline(tiny_vla))
    encoded, _ = watch(pipeline)
    plans = [plan(pipeline, frame_set(ms, CAM_FRONT=frame(FRONT, ms, 7))) for ms in (0, 100, 200)]
    assert encoded == [6, 5, 5] and [each.reused_cameras for each in plans] == [0, 1, 1]


def test_a_set_without_a_new_image_is_not_encoded_at_all(tiny_vla, answers, watch):
    pipeline = Pipeline(tiny_vla)  # whether forwards of fewer images round alike does not matter here
    encoded, given = watch(pipeline)
    frames = frame_set(0)
    assert [plan(pipeline, frames).reused_cameras for _ in range(3)] == [0, 6, 6]
    assert encoded == [6] and same(given[0], given[1]) and same(given[0], given[2])


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8},
        {"seed": 8, "ms": 1},
        {"size": (180, 320)},
        {"seed": 8, "size": (112, 224)},
    ],
    ids=["stamp repeated with other pixels", "stamp and pixels", "another size", "size and pixels"],
)
def test_an_image_with_other_pixels_is_encoded_whatever_its_stamp_is(tiny_vla, answers, watch, other):
    pipeline = exact(Pipeline(tiny_vla))
    encoded, given = watch(pipeline)
    first, second = frame(FRONT, 0, 7), frame(FRONT, **{"ms": 0, "seed": 7, **other})
    plan(pipeline, frame_set(0, CAM_FRONT=first))
    assert plan(pipeline, frame_set(100, CAM_FRONT=second)).reused_cameras == 0
    assert encoded == [6, 6]
    alone = Pipeline(tiny_vla)
    _, expected = watch(alone)
    plan(alone, frame_set(100, CAM_FRONT=second))
    assert same(given[1], expected[0])


def test_pixels_that_were_overwritten_where_they_lie_are_new_pixels(tiny_vla, answers, watch):
    """The planner's process gets every set's images in the same memory."""
    memory = image_of(FRONT, 0, tiny_vla.spec.image_size)  # of the size that is read: nothing resizes it
    pipeline = exact(Pipeline(tiny_vla))
    encoded, _ = watch(pipeline)
    shared = CameraFrame(FRONT, 0, 0, lambda: memory)
    plan(pipeline, frame_set(0, CAM_FRONT=shared))
    memory[:] = image_of(FRONT, 1, tiny_vla.spec.image_size)
    assert plan(pipeline, frame_set(100, CAM_FRONT=shared)).reused_cameras == 0 and encoded == [6, 6]


def test_a_missing_camera_and_its_return_are_encoded(tiny_vla, answers, watch):
    pipeline = exact(Pipeline(tiny_vla, make_pruner("random", tiny_vla), drop=0.5))
    encoded, given = watch(pipeline)
    black = CameraFrame(BACK, 100 * MS, 0, lambda: np.zeros((90, 160, 3), np.uint8))
    real = frame(BACK, 100, 7)
    plan(pipeline, frame_set(0, CAM_BACK=real))
    plan(pipeline, frame_set(100, missing=(BACK,), CAM_BACK=black))
    late = frame_set(200, CAM_BACK=real)
    plan(pipeline, late)
    assert encoded == [6, 6, 6]
    alone = Pipeline(tiny_vla)
    _, expected = watch(alone)
    plan(alone, late)
    assert same(given[-1], expected[0])


def test_after_a_set_that_was_refused_the_last_one_that_was_encoded_counts(tiny_vla, answers, watch):
    pipeline = exact(Pipeline(tiny_vla))
    encoded, given = watch(pipeline)
    old, new = frame(FRONT, 0, 7), frame(FRONT, 100, 8)
    plan(pipeline, frame_set(0, CAM_FRONT=old))
    answers.append("no plan")
    with pytest.raises(AnswerError):
        plan(pipeline, frame_set(100, CAM_FRONT=new))
    with pytest.raises(ImageError):
        plan(pipeline, frame_set(200, CAM_FRONT=old, CAM_BACK=CameraFrame(BACK, 0, 0, lambda: np.zeros(3))))
    last = frame_set(300, CAM_FRONT=new)
    assert plan(pipeline, last).reused_cameras == 1 and encoded == [6, 6, 5]
    assert plan(pipeline, frame_set(400, CAM_FRONT=old)).reused_cameras == 0
    alone = Pipeline(tiny_vla)
    _, expected = watch(alone)
    plan(alone, last)
    assert same(given[2], expected[0])


def test_after_an_encoder_that_failed_every_camera_is_encoded(tiny_vla, answers, watch, monkeypatch):
    pipeline = exact(Pipeline(tiny_vla))
    encoded, _ = watch(pipeline)
    held = frame(FRONT, 0, 7)
    plan(pipeline, frame_set(0, CAM_FRONT=held))
    with monkeypatch.context() as broken:
        broken.setattr(pipeline.vision, "encode", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            plan(pipeline, frame_set(100, CAM_FRONT=held))
    assert plan(pipeline, frame_set(200, CAM_FRONT=held)).reused_cameras == 0 and encoded == [6, 6]


def test_tokens_that_are_not_finite_are_not_used_again(tiny_vla, answers, monkeypatch):
    pipeline = exact(Pipeline(tiny_vla))
    frames, encode = frame_set(0), pipeline.vision.encode

    def damaged(inputs, attention=False):
        visual = encode(inputs, attention=attention)
        return replace(visual, rows=visual.rows * float("nan"))

    with monkeypatch.context() as broken:
        broken.setattr(pipeline.vision, "encode", damaged)
        with pytest.raises(ModelError, match="not finite"):
            plan(pipeline, frames)
    assert plan(pipeline, frames).reused_cameras == 0
    assert plan(pipeline, frames).reused_cameras == 6


def test_a_missing_camera_is_none_whose_image_did_not_change(tiny_vla, answers):
    pipeline = exact(Pipeline(tiny_vla, make_pruner("random", tiny_vla), drop=0.5))
    held = {BACK: CameraFrame(BACK, 0, 0, lambda: np.zeros((90, 160, 3), np.uint8)), FRONT: frame(FRONT, 0, 7)}
    plans = [plan(pipeline, frame_set(ms, missing=(BACK,), **held)) for ms in (0, 100)]
    assert [each.reused_cameras for each in plans] == [0, 1]


def test_the_times_of_a_deadline_are_those_of_all_cameras(tiny_vla, answers, watch):
    pipeline = Pipeline(tiny_vla, make_pruner("random", tiny_vla), drop=0.5)
    encoded, _ = watch(pipeline)
    black = [CameraFrame(name, 0, 0, lambda: np.zeros((*tiny_vla.spec.image_size, 3), np.uint8)) for name in CAMERAS]
    plan(pipeline, FrameSet(tuple(black), 0))
    encoded.clear()
    pipeline.set_deadline(1000.0, 16)
    assert encoded == [6] * 9


def test_one_set_is_held_in_memory(tiny_vla, answers, watch):
    pipeline = exact(Pipeline(tiny_vla))
    _, given = watch(pipeline)
    tensors = []
    for ms in range(0, 400, 100):
        plan(pipeline, frame_set(ms, CAM_FRONT=frame(FRONT, 0, 7)))
        before = pipeline._encoder._before
        tensors.append([weakref.ref(before.groups[0].inputs), weakref.ref(before.visual.rows)])
        del before
        given.clear()
    assert [all(each() is not None for each in pair) for pair in tensors] == [False, False, False, True]


@pytest.mark.parametrize("name", ["vispruner", "prumerge", "matryoshka", "sparsevlm", "cdpruner"])
def test_pruners_choose_as_without_reuse_and_leave_the_held_tokens_alone(tiny_vla, monkeypatch, watch, name):
    read_answers_as(monkeypatch)
    held = frame(FRONT, 0, 7)
    sets = [frame_set(0, CAM_FRONT=held), *(frame_set(100, CAM_FRONT=held),) * 3]
    kept = {}
    for reuse in (True, False):
        pipeline = Pipeline(tiny_vla, make_pruner(name, tiny_vla), drop=0.75)
        pipeline.warm_up()
        _, given = watch(pipeline if reuse else forgetful(pipeline))
        plans = [plan(pipeline, frames) for frames in sets]
        assert bool(plans[-1].reused_cameras) == reuse
        kept[reuse] = [(each.kept.indices.tolist(), each.text) for each in plans], given
    assert kept[True][0] == kept[False][0]
    assert all(map(same, kept[True][1], kept[False][1]))


def test_scores_with_a_memory_are_those_without_reuse(tiny_vla, pruner, answers):
    held = frame(FRONT, 0, 7)
    sets = [frame_set(ms, CAM_FRONT=held) for ms in (0, 100, 200, 300)]
    runs = []
    for reuse in (True, False):
        pipeline = Pipeline(
            tiny_vla, RefinedPruner(pruner, ScoreOptions(temporal=TemporalSettings()), None, CAMERAS), 0.5
        )
        pipeline.warm_up()
        if not reuse:
            forgetful(pipeline)
        runs.append([plan(pipeline, frames).kept for frames in sets])
    assert [kept.temporal for kept in runs[0]] == ["new", "used", "used", "used"]
    for ours, theirs in zip(*runs, strict=True):
        assert np.array_equal(ours.scores, theirs.scores) and np.array_equal(ours.indices, theirs.indices)


def test_a_vla_that_reads_past_images_gets_those_that_it_gets_without_reuse(tiny_dir, tmp_path, answers, watch):
    folder = shutil.copytree(tiny_dir, tmp_path / "vla")
    spec = json.loads((folder / "vla.json").read_text())
    frames = {"count": 2, "interval_s": 0.5, "missing": "leave_out"}
    (folder / "vla.json").write_text(json.dumps({**spec, "frames": frames}))
    vla = load_vla(folder)
    held = frame(FRONT, 0, 7)
    sets = [frame_set(ms, CAM_FRONT=held) for ms in (0, 500, 1000)] + [frame_set(1500)]
    runs = []
    for reuse in (True, False):
        pipeline = Pipeline(vla)
        pipeline.warm_up()
        _, given = watch(pipeline if reuse else forgetful(pipeline))
        pipeline.remember(sets[0])
        reused = [plan(pipeline, each).reused_cameras for each in sets[1:]]
        assert reused[-1] == 0
        runs.append(given)
    assert [visual.total for visual in runs[0]] == [12 * 32] * 3
    assert all(map(same, *runs))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_tokens_of_every_family_are_bit_for_bit_those_of_all_cameras(tmp_path, model_type, dtype):
    """In bfloat16 one image of LLaVA's small tower rounds otherwise than three on an x86 processor."""
    check_every_subset(load_vla(build_family_vla(tmp_path / "vla", model_type), dtype=dtype))


def test_attention_of_the_tower_is_too(tmp_path):
    check_every_subset(load_vla(build_family_vla(tmp_path / "vla", "qwen2_5_vl")), attention=True)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_tokens_of_cameras_of_different_sizes_are_too(tmp_path, model_type):
    folder = build_family_vla(tmp_path / "vla", model_type)
    side = load_vla(folder, parts=frozenset()).pixels_per_token
    check_every_subset(load_vla(with_sizes(folder, {THREE[1]: (2 * side, 4 * side)})))


@torch.inference_mode()
def check_every_subset(vla, attention: bool = False) -> None:
    vision = vla.torch_vision()
    encoder = TokenReuse(vision, attention)
    encoder.verify(vla.spec.sizes)
    for subset in range(2**3):
        sets = []
        for turn in range(2):
            new = [turn and not subset >> camera & 1 for camera in range(3)]
            images = [image_of(name, int(new[i]), vla.spec.sizes[i]) for i, name in enumerate(THREE)]
            sets.append(vision.preprocess(images))
        encoder.encode(sets[0])
        assert same(encoder.encode(sets[1]), encoder.encode_all(sets[1]))
        allowed = {camera for camera in range(3) if subset >> camera & 1}
        assert set(encoder.reused) <= allowed and (len(allowed) < 3 or len(encoder.reused) == 3)


class StandIn:
    """One token an image, its mean; ``changes`` makes others of a batch."""

    cameras, grid, max_keep = 4, (1, 1), 4

    def __init__(self, changes=lambda tokens: tokens):
        self._changes = changes
        self.encoded: list[int] = []

    def preprocess(self, images):
        return torch.stack([torch.from_numpy(image) for image in images])

    def encode(self, inputs, attention=False):
        self.encoded.append(len(inputs))
        means = inputs.double().mean(dim=(1, 2, 3)).float()
        return VisualTokens.from_raster(self._changes(means).view(-1, 1, 1), self.grid)

    def groups(self, inputs):
        return [CameraGroup(self, range(self.cameras), inputs)]


def rounded(tokens: torch.Tensor) -> torch.Tensor:
    """Batches of two round otherwise."""
    return torch.nextafter(tokens, tokens + 1) if len(tokens) == 2 else tokens


def rounded_by_place(tokens: torch.Tensor) -> torch.Tensor:
    """The third image of a batch of three rounds otherwise."""
    return torch.cat([tokens[:2], torch.nextafter(tokens[2:], tokens[2:] + 1)]) if len(tokens) == 3 else tokens


def rounded_first_of_all(tokens: torch.Tensor) -> torch.Tensor:
    """The first image of all rounds otherwise than anywhere else."""
    return torch.cat([torch.nextafter(tokens[:1], tokens[:1] + 1), tokens[1:]]) if len(tokens) == 4 else tokens


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        (lambda tokens: tokens, {1, 2, 3}),
        (rounded, {1, 3}),
        (rounded_by_place, {1, 2}),
        (rounded_first_of_all, set()),
        (lambda tokens: tokens + tokens.mean(), set()),
        (lambda tokens: tokens + torch.arange(len(tokens)), set()),
    ],
    ids=[
        "all alike",
        "two round otherwise",
        "a place rounds otherwise",
        "the first of all does",
        "images attend to others",
        "by place",
    ],
)
def test_numbers_of_images_that_give_other_bits_are_found_and_all_cameras_encoded_then(changes, numbers):
    vision = StandIn(changes)
    encoder = TokenReuse(vision)
    encoder.verify([(8, 8)] * 4)
    images = [np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8) for seed in range(8)]
    for number in (1, 2, 3):
        encoder.encode(vision.preprocess(images[:4]))
        inputs = vision.preprocess(images[4 : 4 + number] + images[number:4])
        visual = encoder.encode(inputs)
        assert vision.encoded[-1] == (number if number in numbers else 4)
        assert len(encoder.reused) == (4 - number if number in numbers else 0)
        assert encoder.encoded == 1 - len(encoder.reused) / 4
        assert same(visual, vision.encode(inputs))


def test_what_an_earlier_check_found_does_not_count_in_the_next_one():
    vision = StandIn()
    encoder = TokenReuse(vision)
    encoder.verify([(8, 8)] * 4)
    assert encoder._exact == {(0, 1), (0, 2), (0, 3)}
    vision._changes = rounded
    encoder.verify([(8, 8)] * 4)
    assert encoder._exact == {(0, 1), (0, 3)}


def test_before_the_check_and_with_another_number_of_threads_all_cameras_are_encoded(monkeypatch):
    vision = StandIn()
    encoder = TokenReuse(vision)
    images = [np.full((8, 8, 3), shade, np.uint8) for shade in range(5)]
    first, second = vision.preprocess(images[:4]), vision.preprocess([images[4], *images[1:4]])

    def encoded() -> int:
        encoder.encode(first)
        encoder.encode(second)
        return vision.encoded[-1]

    assert encoded() == 4
    encoder.verify([(8, 8)] * 4)
    assert encoded() == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert encoded() == 4


def test_answers_of_the_shipped_model_are_equal_on_the_sample_bag():
    pipeline, alone = open_pipeline(ROOT / "models" / "tiny"), forgetful(open_pipeline(ROOT / "models" / "tiny"))
    pipeline.warm_up()
    spec = pipeline.vla.spec
    recording = Recording.open(ROOT / "samples" / "city", None, spec.cameras)
    samples = planning_samples(recording, max(spec.history.steps), spec.history.interval_s, limit=12)[5:]
    before = samples[0].frames
    pipeline.plan(before, samples[0].history, samples[0].command)
    for number, sample in enumerate(samples[1:]):
        held = {(number + step) % 6 for step in range(1 + number % 5)}  # cameras that go on with their last frame
        frames = tuple((before if i in held else sample.frames).frames[i] for i in range(6))
        before = replace(sample.frames, frames=frames)
        ours = pipeline.plan(before, sample.history, sample.command)
        theirs = alone.plan(before, sample.history, sample.command)
        assert (theirs.reused_cameras, ours.text) == (0, theirs.text) and ours.reused_cameras in (0, len(held))
        assert np.array_equal(ours.kept.indices, theirs.kept.indices)
        assert np.array_equal(ours.kept.scores, theirs.kept.scores)


def test_the_encoders_time_of_a_set_with_reused_cameras_does_not_hide_the_machines_load():
    def load(*sets: tuple[float, float]) -> float:
        deadline = Deadline(1e6, 16)
        deadline.learn({16: 28.0, 96: 68.0}, 30.0)
        return [deadline.choose(96, encode_ms, encode_ms, encoded).load for encode_ms, encoded in sets][-1] / _UNKNOWN

    assert load((60.0, 1.0)) == 2.0
    assert load((60.0, 1.0), (0.1, 0.0)) == 2.0, "nothing was encoded: the sets before say how slow the machine is"
    assert load(*[(60.0, 1.0)] * 5, (20.0, 0.5)) == 2.0, "at most 40 ms for all, but that is one set only"
    assert load((30.0, 1.0), (90.0, 0.5)) == 3.0, "all would have taken longer than these"
    assert load((30.0, 1.0), (20.0, 0.5)) == 1.0
    busy = [(120.0, 1.0)] * 5 + [(15.0, 0.5)] * 5
    assert load(*busy) == pytest.approx(1.0), "a machine that is idle again is seen by sets with reused cameras too"
    assert load((0.0, 0.0)) == 1.0
