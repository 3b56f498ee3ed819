from dataclasses import replace

import torch

from fastdrive_node.benchmark.agreement import agreement
from fastdrive_node.benchmark.implementations import FastDrive, HfGenerate
from fastdrive_node.benchmark.workload import noise_sample, workload


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
