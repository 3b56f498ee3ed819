"""What a VLA directory asks of its model and of the machine, and what does not fit: for ``fastdrive vla check``."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import regex
import torch
from PIL import Image
from torch.nn.functional import linear

from fastdrive_node.devices import free_memory
from fastdrive_node.errors import FastDriveError, InputError, ModelError
from fastdrive_node.families import PARTS, Vla, build_prompt, load_vla
from fastdrive_node.families.common.cpu_linear import has_bfloat16, multiply
from fastdrive_node.families.loading import preprocessor_problems, read_config
from fastdrive_node.families.spec import AnswerSpec, CodebookSpec, VlaSpec
from fastdrive_node.families.weights import stored_parameters, weight_problems
from fastdrive_node.files import SHIPPED_PRUNER, TOKEN_PACKER_FILE
from fastdrive_node.planning.answer_format import answer_format, answer_text, constant_prefix
from fastdrive_node.planning.pairs import pairs_of
from fastdrive_node.pruning.catalog import FILES
from fastdrive_node.pruning.checkpoint import load_pruner
from fastdrive_node.pruning.token_packer import load_packer
from fastdrive_node.types import Command, EgoHistory, EgoState

_SPEED_MPS, _YAW_RATE_RADPS = 4.6, 0.02  # of the example answer and prompt: slow city driving, slightly to the left
_TYPES = {"float32": 4, "bfloat16": 2}
_ASPECT_TOLERANCE = 0.05


@dataclass(frozen=True)
class AnswerTokens:
    """Tokens of an example answer."""

    total: int
    constant: int  # before the first number, the same in every answer
    forced: int  # behind it: the grammar leaves no choice
    free: int


@dataclass(frozen=True)
class Cost:
    """Estimated from this machine's measured speed and the model's size; pruning and the tower are not in it."""

    prefill_s: float
    decode_s: float  # of the example answer, token by token


@dataclass(frozen=True)
class VlaReport:
    """See ``check_vla``."""

    family: str
    prompt: str  # with one ``<image>`` for each image
    example_answer: str
    image_size: tuple[int, int]  # height, width in px
    image_sizes: dict[str, tuple[int, int]]  # of the cameras with another one
    visual_tokens: int
    text_tokens: int
    answer_tokens: AnswerTokens
    parameters: dict[str, int]  # of each part
    memory_gb: dict[str, float]  # of weights and cache, by dtype
    free_memory_gb: float
    cost: dict[str, Cost]  # by dtype, on the CPU or GPU that was named
    problems: list[str]

    def to_dict(self) -> dict:
        return asdict(self)


def check_vla(path: Path, images: Sequence[Path] = (), device: torch.device | None = None) -> VlaReport:
    """Look at a VLA directory without the weights of its tower and language layers.

    Args:
        images: one file of each camera, in order; their sizes are compared with the VLA's.
        device: whose speed and memory are looked at; None for the CPU.

    Raises:
        ModelError: the directory cannot be used at all.
        InputError: another number of images than cameras, or one cannot be read.
    """
    device = device or torch.device("cpu")
    family, config = read_config(path)
    unfit = weight_problems(path, family, config, PARTS)
    if unfit:
        raise ModelError("; ".join(unfit) + "; the weights do not fit config.json")
    vla = load_vla(path, parts=frozenset(), dtype=torch.bfloat16)
    spec = vla.spec
    problems = preprocessor_problems(path, vla.family, vla.config, spec) + _image_problems(vla, images)
    try:
        answer_format(vla)
    except FastDriveError as error:
        problems.append(str(error))
    problems += _pruner_problems(vla)
    state = EgoState(0, 0.0, 0.0, 0.0, _SPEED_MPS, 0.1, _YAW_RATE_RADPS)
    times = [step * spec.history.interval_s for step in range(1, max(spec.history.steps, default=0) + 1)]
    places = [_path(_SPEED_MPS, -_YAW_RATE_RADPS, -time) for time in times]
    past = [EgoState(0, float(x), float(y), 0.0, _SPEED_MPS, 0.1) for x, y in places]
    prompt = build_prompt(vla, EgoHistory((state, *past), spec.history.interval_s), Command.NONE)
    example, answer = _example(vla)
    sizes = vla.family.language_sizes(vla.config)
    parameters = stored_parameters(path, vla.family)
    positions = len(prompt) + spec.answer.max_new_tokens
    cache = 2 * sizes["layers"] * sizes["kv_heads"] * sizes["head_dim"] * positions
    memory = {name: round((sum(parameters.values()) + cache) * size / 1e9, 3) for name, size in _TYPES.items()}
    return VlaReport(
        family=vla.family.model_type,
        prompt=vla.short_prompt(prompt.text),
        example_answer=example,
        image_size=spec.image_size,
        image_sizes=spec.image_sizes,
        visual_tokens=vla.tokens,
        text_tokens=len(prompt) - vla.tokens,
        answer_tokens=answer,
        parameters=parameters,
        memory_gb=memory,
        free_memory_gb=round(free_memory(device) / 1e9, 2),
        cost={name: _cost(parameters["language"], len(prompt), answer, device, name) for name in _TYPES},
        problems=problems,
    )


def _path(speed: float, yaw_rate: float, seconds: float) -> np.ndarray:
    angle = yaw_rate * seconds
    return speed * seconds * np.array([np.cos(angle / 2), np.sin(angle / 2)])


def _example(vla: Vla) -> tuple[str, AnswerTokens]:
    spec = vla.spec.answer
    if isinstance(spec, CodebookSpec):
        return spec.token.replace("{i}", "0") * spec.points, AnswerTokens(spec.points, 0, 0, spec.points)
    points = np.array([_path(_SPEED_MPS, _YAW_RATE_RADPS, spec.interval_s * (k + 1)) for k in range(spec.points)])
    pairs = pairs_of(points, spec.pairs, spec.interval_s, vla.spec.frame, vla.spec.origin_m)
    text = answer_text(pairs, spec)
    return text, count_answer_tokens(vla, spec, text)


def count_answer_tokens(vla: Vla, spec: AnswerSpec, text: str) -> AnswerTokens:
    """The tokens of an answer ``text`` of the grammar, by what decides them."""
    encoded = vla.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [0, *(end for _, end in encoded["offset_mapping"])]  # in ``text``, of each token
    count, constant = len(ends) - 1, len(constant_prefix(vla.encode_text, spec))
    places = _free_places(spec, text)
    free = sum(bool(places & set(range(ends[index], ends[index + 1]))) for index in range(constant, count))
    return AnswerTokens(count, constant, count - constant - free, free)


def _free_places(spec: AnswerSpec, text: str) -> set[int]:
    """Where in an answer the grammar would take another character: in its numbers, and right behind them.

    Whether it would depends on the number so far and on what follows the number, not on the text before.
    """
    number = spec.number.pattern
    pairs = ", ".join([rf"\[(?P<n>{number}), (?P<n>{number})\]"] * spec.points)
    found = regex.fullmatch(regex.escape(spec.preamble) + pairs + regex.escape(spec.closing), text)
    if found is None:
        raise ValueError("text: is no answer of this grammar")
    others = _alternatives(number, frozenset("0123456789+-.,[] ") | frozenset(text))
    return {
        place
        for start, end in found.spans("n")
        for place in range(start, end + 1)
        if others(text[start:place], text[end : end + 1]) - {text[place]}
    }


def _alternatives(number: str, alphabet: frozenset[str]) -> Callable[[str, str], frozenset[str]]:
    """A function: the beginning of a number, and what follows the number -> the characters that may be next."""

    @functools.cache
    def find(beginning: str, following: str) -> frozenset[str]:
        grammar = regex.compile(number + regex.escape(following))
        return frozenset(each for each in alphabet if grammar.fullmatch(beginning + each, partial=True) is not None)

    return find


def _cost(parameters: int, prompt: int, answer: AnswerTokens, device: torch.device, dtype: str) -> Cost:
    flops, bytes_s = _machine_speed(device, getattr(torch, dtype))
    decode = (answer.total + 1) * parameters * _TYPES[dtype] / bytes_s
    return Cost(round(2 * parameters * prompt / flops, 3), round(decode, 3))


def _machine_speed(device: torch.device, dtype: torch.dtype, side: int = 2048) -> tuple[float, float]:
    """Operations a second of a matrix product, and bytes a second that a product with a vector reads."""
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    rows = matrix[: side // 8]
    product = linear if device.type == "cuda" or has_bfloat16() else multiply  # as the model's layers do
    many, one = (_seconds(lambda some=some: product(some, matrix, None), device) for some in (rows, rows[:1]))
    return 2 * rows.numel() * side / many, matrix.numel() * matrix.element_size() / one


def _seconds(work: Callable[[], object], device: torch.device, runs: int = 3) -> float:
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _pruner_problems(vla: Vla) -> list[str]:
    """Of the pruner that the node would take, and of those with a name of their own."""
    found = []
    for name in (SHIPPED_PRUNER, *FILES.values(), TOKEN_PACKER_FILE):
        if not (vla.path / name).is_file():
            continue
        try:
            if name == TOKEN_PACKER_FILE:
                load_packer(vla)
            else:
                load_pruner(vla.path / name, vla)
        except ModelError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))  # the encoder's fingerprint reads every weight file, and fails at the same one


def _image_problems(vla: Vla, images: Sequence[Path]) -> list[str]:
    cameras = vla.spec.cameras
    if images and len(images) != len(cameras):
        raise InputError(f"{len(images)} images for {len(cameras)} cameras; give one each of {', '.join(cameras)}")
    for file in images:
        try:
            with Image.open(file):
                pass
        except Exception as error:  # Pillow raises many kinds for damaged data
            raise InputError(f"{file}: not a readable image ({error})") from error
    return small_images(images, vla.pixels_per_token) + image_problems(images, vla.spec)


def image_problems(images: Sequence[Path], spec: VlaSpec) -> list[str]:
    """Which images have another shape than the VLA reads; those that cannot be read are left to others.

    Args:
        images: in the order of the cameras.
    """
    problems = []
    for file, (height, width) in zip(images, spec.sizes, strict=False):
        try:
            with Image.open(file) as image:
                found = image.size
        except Exception:
            continue
        if abs(found[0] / found[1] / (width / height) - 1) > _ASPECT_TOLERANCE:
            problems.append(
                f"{file}: {found[0]}x{found[1]} px is squeezed to {width}x{height}; give image_size the camera's shape "
                "(`fastdrive vla init --camera-size`)"
            )
    return problems


def small_images(images: Sequence[Path], side: int) -> list[str]:
    """Which images are smaller than one visual token, whose side in px is given; unreadable ones are left to others."""
    problems = []
    for file in images:
        try:
            with Image.open(file) as image:
                width, height = image.size
        except Exception:
            continue
        if min(width, height) < side:
            problems.append(
                f"{file}: {width}x{height} px is less than the {side}x{side} px of one visual token; give a camera's"
            )
    return problems
