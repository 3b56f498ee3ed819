"""How many forwards of the language model a drafted answer takes, and whether it is plain decoding's answer.

    python -m benchmarks.studies.drafts model --dataset data/sim_test --split test --json benchmarks/results/drafts.json
    python -m benchmarks.studies.drafts tokens --vla IMPROMPTU_DIR --dataset data/sim_test --split test

``model`` decodes each keyframe of a dataset with a VLA plainly and by drafts, at three pruning ratios, and compares the
tokens. ``--engine`` and ``--language-engine`` draft with the parts of engine files; torch decodes plainly.

``tokens`` needs no weights: only the tokenizer and vla.json of a VLA directory. It counts the forwards that a model
needs behind its prefill, in which the first draft runs, if it answers with the recorded trajectory. That draft is
constant yaw rate and an acceleration that fades. After each forward, what is written so far corrects the numbers behind
it: their difference from the draft goes on as it grew last. A real model's predictions for those numbers are not known
here, so they help nothing. A forward is counted for each token that the drafts have wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from fastdrive_node.engines.language_engine import LanguageChoice
from fastdrive_node.engines.vision_engine import EngineChoice
from fastdrive_node.families import Prompt, VisualTokens
from fastdrive_node.families.spec import AnswerSpec, load_spec, text_answer
from fastdrive_node.planning.answer_format import answer_text
from fastdrive_node.planning.drafts import TextDrafter, constant_turn
from fastdrive_node.planning.generator import Answer
from fastdrive_node.planning.loading import open_pipeline
from fastdrive_node.planning.pairs import pairs_of
from fastdrive_node.planning.pipeline import Pipeline
from fastdrive_node.pruning.baselines.simple import NoPruner
from fastdrive_training.data.adapters import open_source
from fastdrive_training.data.sampling import with_future
from fastdrive_training.data.token_cache import encode_items, load_images

DROPS = (0.0, 0.5, 0.75)
_DAMPING = 0.8  # of the growth of a difference that is extrapolated


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("model", "tokens"))
    parser.add_argument("--vla", type=Path, help="VLA directory (default: the shipped one)")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--split")
    parser.add_argument("--limit", type=int, default=500, help="keyframes, evenly spread (default: 500)")
    parser.add_argument("--engine", type=Path, help="file of a vision engine, for onnxruntime")
    parser.add_argument("--language-engine", type=Path, help="file of a language engine")
    parser.add_argument("--json", type=Path, help="(default: standard output)")
    args = parser.parse_args(argv)
    if args.what == "tokens" and args.vla is None:
        parser.error("--vla: tokens needs a VLA directory")
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
            plain = _answer(plainly, visual, prompt, drop)
            drafted = _answer(drafting, seen, prompt, drop, draft)
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


def _answer(
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
    spec = text_answer(vla)
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(args.vla)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    drafter = TextDrafter(spec, encode, lambda token: str(tokenizer.decode([token])))
    source = open_source(args.dataset, args.split)
    own = range(0, len(source), max(1, len(source) // args.limit))
    rows: dict[str, tuple[list[int], list[int]]] = {"as drafted": ([], []), "corrected": ([], [])}
    for index in tqdm(own, desc="answers", unit="answer"):
        item = source[index]
        future = item.future(spec.points, spec.interval_s)
        if future is None or item.history is None:
            continue

        def stated(path: np.ndarray) -> np.ndarray:
            return pairs_of(path, spec.pairs, spec.interval_s, vla.frame, vla.origin_m)

        truth, draft = stated(future), stated(constant_turn(item.history.now, spec.points, spec.interval_s))
        ids = encode(answer_text(truth, spec))
        for name, (forwards, tokens) in rows.items():
            forwards.append(count_forwards(drafter, ids, truth, draft, spec, tokenizer, name == "corrected"))
            tokens.append(len(ids) + 1)
    return {
        "vla": args.vla.name,
        "dataset": args.dataset.name,
        "definition": " ".join(str(__doc__).split("VLA directory. It counts")[1].split()),
        "rows": {name: summary(*row) for name, row in rows.items()},
    }


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
    text = json.dumps(run_model(args) if args.what == "model" else run_tokens(args), indent=2) + "\n"
    if args.json is None:
        sys.stdout.write(text)
    else:
        args.json.write_text(text)


if __name__ == "__main__":
    main()
