from dataclasses import replace

import torch

from fastdrive_node.benchmark.agreement import agreement
from fastdrive_node.benchmark.implementations import FastDrive, ForcedDrafter, HfGenerate
from fastdrive_node.benchmark.workload import noise_sample, workload
from fastdrive_node.families import load_vla
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.planning.answer_format import answer_format


class Off(FastDrive):
    """Favours another token at the third step, by a large margin."""

    def forced_logits(self, state, ids):
        logits = super().forced_logits(state, ids)
        logits[2, (ids[2] + 1) % logits.shape[1]] += 1000
        return logits

    def encode(self):
        visual = super().encode()
        return replace(visual, rows=-visual.rows)


def test_a_wrong_side_is_told_from_a_tie(tiny_vla):
    work = workload(tiny_vla, tiny_vla.torch_vision(), noise_sample(tiny_vla))
    found = agreement(Off(work, 4), HfGenerate(work, 4))
    (difference,) = found["differences"]
    assert found["equal_steps"] == 3 and found["steps"] == 4
    assert difference["step"] == 2 and difference["gap_in_spacings"] > 1000
    assert found["max_abs_logit_difference"] > 900
    assert found["encode_cosine"]["mean"] < -0.99


def test_forced_logits_choose_the_tokens_that_are_decoded(tiny_vla):
    work = workload(tiny_vla, tiny_vla.torch_vision(), noise_sample(tiny_vla))
    ours, stock = FastDrive(work, 6), HfGenerate(work, 6)
    with torch.inference_mode():
        mine, theirs = ours.prefill(ours.encode(), torch.arange(tiny_vla.tokens)), stock.prefill(stock.encode())
        for side, state in ((ours, mine), (stock, theirs)):
            for _ in range(2):  # a state may be used again
                ids = side.decode(state)
                assert len(ids) == 6
                assert tuple(side.forced_logits(state, ids).argmax(-1).tolist()) == ids


def test_generate_writes_what_the_bare_loop_writes(tiny_vla):
    work = workload(tiny_vla, tiny_vla.torch_vision(), noise_sample(tiny_vla))
    stock = HfGenerate(work, 6)
    with torch.inference_mode():
        assert stock.end_to_end() == stock.decode(stock.prefill(stock.encode()))


def test_drafts_of_forced_tokens_know_no_number_and_the_answer_is_that_of_plain_decoding():
    vla = load_vla(default_vla_dir())  # trained: its answers follow the format
    work, form = workload(vla, vla.torch_vision(), noise_sample(vla)), answer_format(vla)
    forced = ForcedDrafter(form.drafter, vla.image_token_id)
    with torch.inference_mode():
        answer = HfGenerate(work, form.max_new_tokens).generate(sorted(form.stop_ids))
        plain, held = FastDrive(work, len(answer)), FastDrive(work, len(answer), drafter=forced)
        assert held.end_to_end() == plain.end_to_end()
    draft = forced.write((), work.numbers)
    numbers = [place for _, first, last in draft.spans for place in range(first, last)]
    assert len(numbers) == 12 and all(draft.ids[place] == vla.image_token_id for place in numbers)
    assert vla.image_token_id not in answer
    assert all(draft.ids[place] == answer[place] for place in range(len(answer)) if place not in numbers)
    assert held.forwards == 12 < plain.forwards, "each number costs a forward, and nothing else does"
