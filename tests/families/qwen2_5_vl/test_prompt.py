import dataclasses
import math

import pytest
import torch

from fastdrive_node.errors import InputError
from fastdrive_node.families.prompt import build_prompt, in_ego_frame, prompt_text
from fastdrive_node.planning.answer_format import format_answer
from fastdrive_node.types import Command, EgoHistory, EgoState


def words(text):
    return text.replace("<|image_pad|>", "")


def state(**values):
    return EgoState(**{"stamp_ns": 0, "x_m": 0.0, "y_m": 0.0, "yaw_rad": 0.0, "speed_mps": 0.0, **values})


def test_the_prompt_tells_history_speed_and_command(tiny_vla):
    north = math.pi / 2
    history = EgoHistory(tuple(state(y_m=-3.0 * k, yaw_rad=north, speed_mps=6.0, accel_mps2=-0.26) for k in range(5)))
    text = words(prompt_text(tiny_vla, history, Command.RIGHT))
    assert text.startswith("<|im_start|>user\nCAM_FRONT<|vision_start|><|vision_end|>CAM_FRONT_RIGHT<|vision_start|>")
    assert (
        "Past: [-12.0, +00.0], [-06.0, +00.0], [-03.0, +00.0]. Speed: +06.0, acceleration: -00.3, yaw rate: +0.00. "
        "Command: right.<|im_end|>\n<|im_start|>assistant\n"
    ) in text


def test_a_past_state_is_seen_from_the_current_ego_frame():
    ego = state(x_m=10.0, y_m=5.0, yaw_rad=math.pi / 2)
    assert in_ego_frame(state(x_m=9.0, y_m=3.0), ego) == pytest.approx((-2.0, 1.0))


def test_history_that_is_not_there_is_written_as_unknown(tiny_vla):
    history = EgoHistory((state(speed_mps=1.0), state(x_m=-0.5)))
    assert "Past: [?????, ?????], [?????, ?????], [-00.5, +00.0]." in prompt_text(tiny_vla, history)


def test_the_prompt_has_the_same_length_for_every_state(tiny_vla, ego_history):
    lengths = {
        len(build_prompt(tiny_vla, EgoHistory(ego_history.states[:count]), command))
        for count in (1, 2, 5)
        for command in Command
    }
    assert len(lengths) == 1


def test_every_image_has_its_tokens(tiny_vla, ego_history):
    prompt = build_prompt(tiny_vla, ego_history)
    image = tiny_vla.model.config.image_token_id
    assert prompt.visual.tolist() == (prompt.input_ids == image).nonzero().flatten().tolist()
    assert len(prompt.visual) == tiny_vla.tokens == 6 * 4 * 8


def test_positions_are_those_of_the_models_own_rope_index(tiny_vla, ego_history):
    prompt = build_prompt(tiny_vla, ego_history)
    kinds = (prompt.input_ids == tiny_vla.model.config.image_token_id).int()
    expected, delta = tiny_vla.model.model.get_rope_index(
        prompt.input_ids[None], kinds[None], image_grid_thw=torch.tensor([[1, 8, 16]] * 6)
    )
    assert torch.equal(prompt.position_ids, expected[:, 0])
    assert prompt.next_position == int(expected.max()) + 1 == len(prompt) + int(delta)


def test_the_tokenizer_gives_prompts_and_answers_back(tiny_vla, ego_history):
    answer = format_answer([[3.52, -0.01]] * 6, tiny_vla.spec.answer)
    for text in (prompt_text(tiny_vla, ego_history, Command.LEFT), answer):
        ids = tiny_vla.tokenizer.encode(text, add_special_tokens=False)
        assert tiny_vla.tokenizer.decode(ids) == text
        assert tiny_vla.tokenizer.unk_token_id not in ids


def test_each_digit_and_sign_is_one_token(tiny_vla):
    tokens = tiny_vla.tokenizer.convert_ids_to_tokens(tiny_vla.tokenizer.encode("[+03.52, -00.01], [+"))
    assert tokens == ["[", "+", "0", "3", ".", "5", "2", ", ", "-", "0", "0", ".", "0", "1", "], [", "+"]


def test_text_that_the_tokenizer_does_not_know_becomes_unknown(tiny_vla):
    assert "<unk>" in tiny_vla.tokenizer.decode(tiny_vla.tokenizer.encode("speed zebra 5"))


def test_no_ego_state_is_an_input_error(tiny_vla):
    with pytest.raises(InputError, match="ego history: empty"):
        build_prompt(tiny_vla, EgoHistory(()))


@pytest.mark.parametrize("value", [math.nan, math.inf, 100.0])
def test_a_speed_that_cannot_be_written_is_an_input_error(tiny_vla, value):
    with pytest.raises(InputError, match="ego state: speed_mps"):
        build_prompt(tiny_vla, EgoHistory((state(speed_mps=value),)))


def test_a_history_of_another_interval_is_used_where_it_meets_the_steps(tiny_vla, ego_history):
    fine = EgoHistory(tuple(state(x_m=-0.25 * k) for k in range(9)), interval_s=0.25)
    assert "Past: [-02.0, +00.0], [-01.0, +00.0], [-00.5, +00.0]." in prompt_text(tiny_vla, fine)
    with pytest.raises(InputError, match=r"interval of 0\.4 s does not meet t0 - 1\.0 s"):
        build_prompt(tiny_vla, dataclasses.replace(ego_history, interval_s=0.4))
