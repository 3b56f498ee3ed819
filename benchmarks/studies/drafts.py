"""How many forwards of the language model a drafted answer takes, and whether it is plain decoding's answer.

    python -m benchmarks.studies.drafts model --dataset data/sim_test --split test --json benchmarks/results/drafts.json
    python -m benchmarks.studies.drafts tokens --vla IMPROMPTU_DIR --dataset data/sim_test --split test
    python -m benchmarks.studies.drafts tokens --vla IMPROMPTU_DIR --bag BAG --topics TOPICS --truth TRUTH.json

``model`` decodes each keyframe of a dataset with a VLA plainly and by drafts, at three pruning ratios, and compares the
tokens. ``--engine`` and ``--language-engine`` draft with the parts of engine files; torch decodes plainly.

``tokens`` needs no weights: only the tokenizer and vla.json of a VLA directory. It counts the forwards that a model
needs behind its prefill, in which the first draft runs, if it answers with the recorded trajectory. That draft is
constant yaw rate and an acceleration that fades. After each forward, what is written so far corrects the numbers behind
it: their difference from the draft goes on as it grew last. A real model's predictions for those numbers are not known
here, so they help nothing. A forward is counted for each token that the drafts have wrong.

``--bag`` and ``--truth`` take a recorded scene instead: ego history as the node has it, futures as
``benchmarks.studies.recorded_scene`` reads them. Where a future is shorter than the answer, so is the answer.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from benchmarks.studies.recorded_scene import Truth
from fastdrive_node.engines.language_engine import LanguageChoice
from fastdrive_node.engines.vision_engine import EngineChoice
from fastdrive_node.errors import FastDriveError, InputError
from fastdrive_node.families import Prompt, VisualTokens
from fastdrive_node.families.spec import AnswerSpec, VlaSpec, load_spec, text_answer
from fastdrive_node.planning.answer_format import answer_text
from fastdrive_node.planning.drafts import TextDrafter, constant_turn
from fastdrive_node.planning.generator import Answer
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pairs import pairs_of
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_node.replay.bag import Recording
from fastdrive_node.replay.samples import planning_samples
from fastdrive_node.ros.topics import load_topic_map
from fastdrive_node.types import CAMERAS, EgoState
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.adapters.base import FUTURE_INTERVAL_S
from fastdrive_training.data.sampling import with_future
from fastdrive_training.data.token_cache import encode_items, load_images

DROPS = (0.0, 0.5, 0.75)
_DAMPING = 0.8  # of the growth of a difference that is extrapolated


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("model", "tokens"))
    parser.add_argument("--vla", type=Path, help="VLA directory (default: the shipped one)")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--limit", type=int, default=500, help="keyframes, evenly spread (default: 500)")
    parser.add_argument("--bag", type=Path, help="recorded scene, for tokens")
    parser.add_argument("--truth", type=Path, metavar="TRUTH.json", help="its futures")
    parser.add_argument("--topics", type=Path, help="topic map of the bag")
    parser.add_argument("--engine", type=Path, help="file of a vision engine, for onnxruntime")
    parser.add_argument("--language-engine", type=Path, help="file of a language engine")
    parser.add_argument("--json", type=Path, help="(default: standard output)")
    args = parser.parse_args(argv)
    if args.what == "tokens" and args.vla is None:
        parser.error("--vla: tokens needs a VLA directory")
    if (args.bag is None) != (args.truth is None):
        parser.error("--bag and --truth: one of them is missing")
    if args.what == "model" and args.bag is not None:
        parser.error("--bag: only tokens takes one; give model a --dataset")
    if (args.dataset is None) == (args.bag is None):
        parser.error("give either --dataset, or --bag and --truth")
    return args


def summary(forwards: list[int], tokens: list[int]) -> dict:
    """Figures of the answers of one row."""
    return {
        "answers": len(forwards),
        "tokens_mean": round(float(np.mean(tokens)), 2),
        "forwards_mean": round(float(np.mean(forwards)), 3),
        "forwards_p90": round(float(np.percentile(forwards, 90)), 1),
        "forwards_max": int(max(forwards)),
    }


@torch.inference_mode()
def run_model(args: argparse.Namespace) -> dict:
    """The study ``model``."""
    vision = None if args.engine is None else EngineChoice("onnxruntime", args.engine)
    language = None if args.language_engine is None else LanguageChoice(args.language_engine)
    plainly = open_pipeline(args.vla, drop=0.5)
    drafting = plainly
    if vision is not None or language is not None:
        drafting = open_pipeline(args.vla, drop=0.5, engine=vision, language_engine=language)
    vla = plainly.vla
    source = open_source(args.dataset, args.split)
    own, _ = with_future(source, args.limit)
    counts = {drop: ([], [], []) for drop in DROPS}
    for item, tokens in encode_items([source[index] for index in own], vla, "drafts"):
        history, spec = item.known_history, vla.spec.answer
        prompt = plainly.generator.prompt(history, item.command)
        visual = VisualTokens(tokens.flatten(0, 1), torch.arange(vla.tokens), (len(tokens), *vla.grid))
        seen = visual
        if vision is not None:
            images = load_images(item, vla.spec.cameras)
            seen = drafting.vision.encode(drafting.vision.preprocess(images))
        draft = plainly.generator.answer.numbers(constant_turn(history.now, spec.points, spec.interval_s))
        for drop, (forwards, lengths, equal) in counts.items():
            plain = drafted_answer(plainly, visual, prompt, drop)
            drafted = drafted_answer(drafting, seen, prompt, drop, draft)
            forwards.append(drafted.forwards)
            lengths.append(len(plain.ids))
            equal.append(plain.ids == drafted.ids)
    rows = {
        f"drop {drop:g}": {**summary(forwards, lengths), "equal_to_plain": sum(equal)}
        for drop, (forwards, lengths, equal) in counts.items()
    }
    parts = {
        name: "torch" if part is None else "onnxruntime" for name, part in (("encoder", vision), ("language", language))
    }
    return {"vla": vla.path.name, "dataset": args.dataset.name, "drafted_with": parts, "rows": rows}


def drafted_answer(
    pipeline: Pipeline, visual: VisualTokens, prompt: Prompt, drop: float, draft: Sequence[float] | None = None
) -> Answer:
    """What a pipeline's pruner and language model write, by drafts where one is given."""
    generator, keep = pipeline.generator, pipeline.check_drop(drop)
    pruner = pipeline.pruner if drop else NoPruner()
    kept = [pruner.choose(generator.context(pruner, visual, prompt), keep).indices]
    return generator.decode(generator.prefill(pruner, [prompt], [visual], kept, keep, draft), draft)[0]


def run_tokens(args: argparse.Namespace) -> dict:
    """The study ``tokens``."""
    vla = load_spec(args.vla)
    form = text_answer(vla)
    source: Path = args.bag or args.dataset
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(args.vla)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    futures = recorded_futures(args, form) if args.bag is not None else dataset_futures(args, form)
    drafters: dict[int, TextDrafter] = {}
    lengths: list[int] = []
    rows: dict[str, list[int]] = {"as drafted": [], "corrected": []}
    points: list[int] = []
    for now, future in tqdm(futures, desc="answers", unit="answer"):
        spec = replace(form, points=len(future))
        if len(future) not in drafters:
            drafters[len(future)] = TextDrafter(spec, encode, lambda token: str(tokenizer.decode([token])))
        drafter = drafters[len(future)]
        truth, draft = (_stated(path, vla) for path in (future, constant_turn(now, len(future), form.interval_s)))
        ids = encode(answer_text(truth, spec))
        for name, forwards in rows.items():
            forwards.append(count_forwards(drafter, ids, truth, draft, spec, tokenizer, name == "corrected"))
        lengths.append(len(ids) + 1)
        points.append(len(future))
    if not points:
        raise InputError(f"{source}: no keyframe with ego motion and a future of {form.points} points")
    each = {"points": points, "tokens": lengths, "forwards": rows} if args.bag else {}
    return {
        "vla": args.vla.name,
        "dataset": source.name,
        "definition": " ".join(str(__doc__).split("VLA directory. It counts")[1].split("\n\n")[0].split()),
        "rows": {name: summary(forwards, lengths) for name, forwards in rows.items()},
        **each,
    }


def _stated(path: np.ndarray, vla: VlaSpec) -> np.ndarray:
    """The pairs [points, 2] that an answer states for a path."""
    spec = text_answer(vla)
    return pairs_of(path, spec.pairs, spec.interval_s, vla.frame, vla.origin_m)


def dataset_futures(args: argparse.Namespace, form: AnswerSpec) -> Iterator[tuple[EgoState, np.ndarray]]:
    """The ego state and the future [points, 2] of the keyframes that have both."""
    source = open_source(args.dataset, args.split)
    for index in range(0, len(source), max(1, len(source) // args.limit)):
        item = source[index]
        future = item.future(form.points, form.interval_s)
        if future is not None and item.history is not None:
            yield item.history.now, future


def recorded_futures(args: argparse.Namespace, form: AnswerSpec) -> Iterator[tuple[EgoState, np.ndarray]]:
    """The ego state of each frame set of a recorded scene, and its future, of the answer's points or fewer.

    Raises:
        InputError: bag and futures do not fit each other or the answer.
    """
    topics = None if args.topics is None else load_topic_map(args.topics)
    futures = Truth.load(args.truth).futures
    samples = planning_samples(Recording.open(args.bag, topics, CAMERAS), 0, form.interval_s, len(futures) + 1)
    if len(samples) != len(futures):
        raise InputError(f"{args.truth}: frames: {len(futures)}, but {args.bag} has {len(samples)} with odometry")
    if form.interval_s != FUTURE_INTERVAL_S:
        raise InputError(f"{args.vla}: points every {form.interval_s:g} s; {args.truth} has them every 0.5 s")
    for sample, future in zip(samples, futures, strict=True):
        if len(future):
            yield sample.history.now, future[: form.points]


def count_forwards(
    drafter: TextDrafter,
    ids: list[int],
    truth: np.ndarray,
    draft: np.ndarray,
    spec: AnswerSpec,
    tokenizer: PreTrainedTokenizerFast,
    correct: bool,
) -> int:
    """Forwards behind the prefill, in which the first draft runs, until an answer ``ids`` and its end are written."""
    known, count, numbers = 0, -1, draft
    while known <= len(ids):
        drafted = drafter.write(ids[:known], numbers.flatten().tolist()).ids
        while known < len(ids) and known < len(drafted) and drafted[known] == ids[known]:
            known += 1
        known += 1  # what the model writes behind the last right one
        count += 1
        if correct:
            text = str(tokenizer.decode(ids[:known]))[len(spec.preamble) :]
            numbers = corrected(draft, truth, len(re.findall(r"[-0-9.]+(?=[,\]])", text)))
    return count


def corrected(draft: np.ndarray, truth: np.ndarray, known: int) -> np.ndarray:
    """A draft [points, 2] whose first ``known`` numbers are those of ``truth``; the difference goes on behind them."""
    result = draft.copy()
    for column in (0, 1):
        rows = (known + 1 - column) // 2
        if not rows:
            continue
        gone = np.concatenate([[0.0, 0.0], truth[:rows, column] - draft[:rows, column]])
        step, before = gone[-1] - gone[-2], gone[-2] - gone[-3]
        growth = (step - before if rows > 1 else step / 2) * _DAMPING
        ahead = np.arange(1, len(draft) - rows + 1)
        result[:rows, column] = truth[:rows, column]
        result[rows:, column] += gone[-1] + step * ahead + growth * ahead * (ahead + 1) / 2
    return result


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        figures = run_model(args) if args.what == "model" else run_tokens(args)
    except FastDriveError as error:
        sys.exit(f"drafts: {error}")
    text = json.dumps(figures, indent=2) + "\n"
    if args.json is None:
        sys.stdout.write(text)
    else:
        args.json.write_text(text)


if __name__ == "__main__":
    main()
