"""docs/latency.md shows the committed figures."""

from __future__ import annotations

import json

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.studies import prefill_3b


def test_the_latency_page_shows_the_committed_figures():
    page = (ROOT / "docs" / "latency.md").read_text()
    scenes = json.loads((RESULTS / "gpu_models_3b.json").read_text())["sizes"]["3b"]["scenes"]
    one, six = scenes["one_image_1596x1596"], scenes["six_cameras_672x392"]

    def cells(stage, name):
        return " | ".join(f"{scene['stages'][stage][name]['median_ms']:.1f}" for scene in (one, six))

    shown = {
        "transformers, all tokens": "transformers",
        "ours, all tokens": "ours_drop_0",
        "ours, drop 0.75": "ours_drop_0.75",
        "+ drafts": "ours_drop_0.75_drafts",
        "+ CUDA graphs, no drafts": "ours_drop_0.75_graphs",
    }
    for label, name in shown.items():
        assert f"| {label} | {cells('end_to_end', name)} |" in page
    assert f"**{cells('end_to_end', 'ours_drop_0.75_drafts_graphs').replace(' | ', '** | **')}**" in page
    for scene, tokens in ((one, 3249), (six, 2016)):
        times = {name: entry["median_ms"] for name, entry in scene["stages"]["prefill"].items()}
        row = " | ".join(f"{times[name]:.1f}" for name in ("transformers", "ours_drop_0", "ours_drop_0.75"))
        assert f"| prefill, {tokens} tokens | {row} |" in page
    for drop, row in json.loads((RESULTS / "drafts.json").read_text())["rows"].items():
        assert (
            f"| {drop.split()[1]} | {row['answers']} | {row['equal_to_plain']} | {row['forwards_mean']:.2f} |" in page
        )


def test_the_latency_page_shows_forwards_of_other_vlas_tokens_and_first_drafts():
    page = (ROOT / "docs" / "latency.md").read_text()
    figures = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("drafts_wide", "drafts_drive", "draft_tokens", "draft_tokens_recorded", "first_drafts")
    }

    def cells(row):
        return f"{row['forwards_mean']:.2f} | {row['forwards_p90']:.0f} | {row['forwards_max']} |"

    for name in ("drafts_wide", "drafts_drive"):
        for drop, row in figures[name]["rows"].items():
            counts = f"{drop.split()[1]} | {row['answers']} | {row['equal_to_plain']}"
            assert f"| `models/{figures[name]['vla']}` | {counts} | {cells(row)}" in page
    labels = {"as drafted": "as drafted", "corrected": "numbers behind a wrong one are corrected"}
    for name, trajectories in (("draft_tokens", "simulator's expert"), ("draft_tokens_recorded", "recorded scene")):
        for draft, row in figures[name]["rows"].items():
            counts = f"{row['answers']} | {row['tokens_mean']:.1f} | {row['forwards_mean']:.1f}"
            most = f"{row['forwards_p90']:.0f} | {row['forwards_max']} |"
            assert f"| {trajectories} | {labels[draft]} | {counts} | {most}" in page
    for counts in figures["draft_tokens_recorded"]["forwards"].values():
        assert f"{', '.join(map(str, counts[:-1]))} and {counts[-1]}" in " ".join(page.split())
    shown = page.split("**Tried: other first drafts.**")[1].split("\n\n")[1].splitlines()[2:]
    rows = figures["first_drafts"]["rows"].values()
    for line, row in zip(shown, rows, strict=True):
        assert line.endswith(f"| {cells(row)}")
    assert figures["first_drafts"]["different_answers"] == 0


def test_the_latency_page_shows_the_prefill_as_a_graph():
    page = (ROOT / "docs" / "latency.md").read_text()
    scene = json.loads((RESULTS / "gpu_models_3b_h200.json").read_text())["sizes"]["3b"]["scenes"][
        "one_image_1596x1596"
    ]
    stages = {stage: {name: of["median_ms"] for name, of in each.items()} for stage, each in scene["stages"].items()}
    prefill, ratios = stages["prefill"], scene["ratios"]["ours_drop_0_over_ours"]

    def ratio(name):
        return f"{ratios['prefill'][name]:.2f} | {ratios['prefill_with_pruner'][name]:.2f}"

    plain = f"{prefill['transformers']:.1f} | {prefill['ours_drop_0']:.1f} | {prefill['ours_drop_0.75']:.1f}"
    assert f"| prefill without graphs | {plain} | {ratio('ours_drop_0.75')} |" in page
    graphs = f"{prefill['ours_drop_0_graphs']:.1f} | {prefill['ours_drop_0.75_graphs']:.1f}"
    assert f"| prefill as a graph | | {graphs} | {ratio('ours_drop_0.75_graphs')} |" in page
    decode, whole = stages["decode"], stages["end_to_end"]
    both = [
        f"{each['ours_drop_0_drafts_graphs']:.1f} | {each['ours_drop_0.75_drafts_graphs']:.1f}"
        for each in (decode, whole)
    ]
    assert f"| 20 forwards of the answer, by graphs | | {both[0]} | | |" in page
    gain = ratios["end_to_end"]["ours_drop_0.75_drafts_graphs"]
    assert f"| end to end, drafts and graphs | {whole['transformers']:.1f} | {both[1]} | {gain:.2f} | |" in page
    limit = scene["prompt_tokens"] / (
        scene["prompt_tokens"] - scene["visual_tokens"] + scene["kept_tokens"]["ours_drop_0.75"]
    )
    reached = ratios["prefill"]["ours_drop_0.75_graphs"] / limit
    assert f"{limit:.1f} times smaller" in page and f"({100 * reached:.0f} %)" in page
    times = scene["ratios"]["transformers_over_ours"]["end_to_end"]["ours_drop_0.75_drafts_graphs"]
    least = {name: of["min_ms"] for name, of in scene["stages"]["end_to_end"].items()}
    stock, ours = least["transformers"], least["ours_drop_0.75_drafts_graphs"]
    by_both = f"{times:.1f} times faster than transformers by the medians, {stock / ours:.1f} times by the fastest runs"
    assert f"End to end {by_both}" in page and f"the fastest of transformers took {stock:.0f} ms" in page
    before = json.loads((RESULTS / "gpu_models_3b.json").read_text())["sizes"]["3b"]["scenes"]["one_image_1596x1596"]
    single, drafted = (before["stages"]["decode"][f"ours_drop_0{of}_graphs"]["median_ms"] for of in ("", "_drafts"))
    assert f"took {decode['ours_drop_0_graphs']:,.0f} ms at all tokens, where the H100 took {single:.0f} ms" in page
    assert f"({decode['ours_drop_0_drafts_graphs']:.1f} ms, on the H100 {drafted:.1f})" in page


def test_the_latency_page_shows_the_figures_of_the_bench_and_of_the_deadlines():
    page = (ROOT / "docs" / "latency.md").read_text()
    figures = json.loads((RESULTS / "bench_tiny.json").read_text())
    for stage in ("encode", "prefill", "decode", "camera_to_plan"):
        times = figures["stages"][stage]
        assert f"| {stage.replace('_', ' ')} | {times['ours_ms']:.1f} | {times['transformers_ms']:.1f} |" in page
    assert f"From camera to plan {figures['speedup_end_to_end']:.1f} times faster" in page
    for factor, row in json.loads((RESULTS / "deadline.json").read_text())["deadlines"].items():
        loaded = row["loaded"]
        shown = f"{loaded['planned']} | {loaded['met']} | {loaded['met_or_dropped']:.1%}"
        assert f"| {factor} | {row['deadline_ms']:.0f} | {row['before']['planned']} | {shown} |" in page


def test_the_latency_page_shows_the_figures_with_engines():
    page = " ".join((ROOT / "docs" / "latency.md").read_text().split())
    figures = json.loads((RESULTS / "bench_tiny_engines.json").read_text())
    names = {"encode": "encode and score", "prefill": "prefill", "decode": "decode", "camera_to_plan": "camera to plan"}
    rows = {label: figures["stages"][stage] for stage, label in names.items()}
    for label, times in (rows | {"camera to plan, paced at 2 Hz": figures["paced"]}).items():
        assert f"| {label} | {times['ours_ms']:.1f} | {times['transformers_ms']:.1f} |" in page
    paced = figures["paced"]["transformers_ms"] / figures["paced"]["ours_ms"]
    equal, of = figures["equal_answers"]
    ratios = f"{figures['speedup_end_to_end']:.1f} times faster from camera to plan ({paced:.1f} paced)"
    assert f"{ratios}, {figures['speedup_decode']:.1f} in decoding, {equal} of {of} answers equal" in page
    assert f"the {figures['forwards_per_answer']:.1f} forwards" in page
    others = [
        " and ".join(f"{each[name]:.1f}" for each in figures["other_runs"])
        for name in ("speedup_end_to_end", "speedup_decode")
    ]
    assert "Two more runs had {} times from camera to plan, {} in decoding".format(*others) in page
    encode, whole, floor = rows["encode and score"], rows["camera to plan"], figures["floor"]
    assert f"A fifth of transformers' time is {whole['transformers_ms'] / 5:.1f} ms" in page
    assert f"The encoder takes {encode['ours_ms']:.1f} of {whole['ours_ms']:.1f} ms" in page
    assert f"as transformers' does ({encode['transformers_ms']:.1f} ms)" in page
    assert f"its operations alone take {floor['encode']['least_ms']:.1f} ms at the best rate" in page
    assert f"({floor['gflops_per_s']:.0f} GFLOP/s in float32)" in page
    assert f"`{figures['command']}`" in page
    runs = (figures, *figures["other_runs"])
    assert max(each["speedup_end_to_end"] for each in runs) < 5, "the page says that the five times are not reached"
    assert min(each["speedup_decode"] for each in runs) >= 6, "the page says that the six times are reached in all runs"
    elsewhere = ", ".join(f"{each['speedup_end_to_end']:.1f}" for each in figures["another_machine"])
    assert f"had {elsewhere} times from camera to plan in three runs" in page
    for name, row in json.loads((RESULTS / "engine_threads.json").read_text())["rows"].items():
        shown = f"| {name.removesuffix(' (as built)')} | {row['median_ms']:.1f} |"
        assert shown in page.replace("**", "")
    for file in ("node_and_bench.json", "node_and_bench_torch.json", "node_and_bench_two_threads.json"):
        node = json.loads((RESULTS / file).read_text())
        *before, last = (f"{each['ratio']:.2f}" for each in node["rounds"])
        name = "engines" if node["engines"] else "torch"
        ratios = f"{node['median_ratio']:.2f} times | ({', '.join(before)} and {last})"
        faster = "{node:.1f} in the node and {bench:.1f} in the bench".format(**node["times_faster"])
        assert f"| {name} | {node['threads']} | {ratios} | {faster} |" in page


def test_the_latency_page_shows_what_a_vehicle_s_pace_costs():
    page = (ROOT / "docs" / "latency.md").read_text()
    rows = json.loads((RESULTS / "paced.json").read_text())["rows"]
    for name, row in rows.items():
        assert f"| {name} | {row['median_ms']:.1f} | {row['to_loop']:.2f} |" in page
    loop, reads, pause, one, every = (row["to_loop"] for row in rows.values())
    assert reads < 1.05 * loop and loop < one < every < pause, "the page says where the time of a pause goes"


def test_the_pages_show_the_pruned_prefill_at_the_size_of_a_3b_on_a_cpu():
    regimes = json.loads((RESULTS / "prefill_3b.json").read_text())["regimes"]
    page = (ROOT / "docs" / "latency.md").read_text()
    assert prefill_3b.table(regimes) in page
    paper, own = regimes.values()
    assert f"takes {100 * paper['pruner_ms'] / paper['all_ms']:.1f} % of the unpruned prefill" in page
    assert min(paper["reached"], paper["reached_with_pruner"]) >= 0.97, "the page says that these are reached"
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"at Impromptu-VLA's own size, {own['visual']} visual and {own['text']} other tokens, half" in readme
    faster = f"{own['speedup']:.2f} times faster, {own['speedup_with_pruner']:.2f} with the pruner's own time"
    assert f"the prefill of a 3B is {faster}" in readme and own["drop"] == 0.5


def test_the_latency_page_shows_what_a_plan_costs_and_what_comes_before_it():
    page = " ".join((ROOT / "docs" / "latency.md").read_text().split())
    labels = {
        "kept_tokens": "kept visual token",
        "cameras": "camera of 32 tokens, none dropped",
        "visual_tokens": "visual token of six cameras, half of them kept",
        "answer_tokens": "token of the answer",
    }
    for name, curve in json.loads((RESULTS / "curves_tiny.json").read_text())["curves"].items():
        cells = page.split(f"| {labels[name]} | ")[1].split(" |")[:3]
        for cell, stage in zip(cells, ("encode", "prefill", "decode"), strict=True):
            digits = len(cell.partition(".")[2])
            assert float(cell) == pytest.approx(curve["ms_for_one_more"][stage], abs=0.5 * 10**-digits + 1e-9)
    for label, row in json.loads((RESULTS / "images.json").read_text())["rows"].items():
        median, part = f"{row['median_ms']:.1f}", f"{row['preprocess_median_ms']:.1f}"
        assert f"| {label.replace('scaled, on', 'scaled while decoded, on two')} | {median} | {part} |" in page
    sets = json.loads((RESULTS / "reception.json").read_text())
    assert sets["planned_sets"] == sets["sent_sets"]
    assert f"{sets['planned_sets']} of {sets['sent_sets']} sets arrived" in page
    times, runs = sets["complete_ms"], sets["other_runs"]
    for name, label in (("default", "as glibc comes"), ("launch", "kept, as the launch files tell")):
        row = page.split(f"| {label}")[1].split("|")[1:3]
        for cell, figure in zip(row, ("p50", "p99"), strict=True):
            found = [each[figure] for each in [*runs[name], *([times] if name == "launch" else [])]]
            assert sorted(map(float, cell.split(", "))) == sorted(round(value, 1) for value in found)
    reached = [each["p50"] <= 20 for each in (times, *runs["launch"])]
    assert sum(reached) == 2 and len(reached) == 3, "the page says that the 20 ms are reached in two of three runs"
    spread = f"{sets['first_to_last_image_ms_p50']:.1f} ms of the median run ({times['p50']:.1f})"
    assert spread in page


def test_the_page_on_latency_shows_what_decoding_on_arrival_saves():
    results = json.loads((RESULTS / "decode_on_arrival.json").read_text())
    page = " ".join((ROOT / "docs" / "latency.md").read_text().split())
    names = "load", "total", "planning", "latency"
    for cameras, figures in (("one after the other", results["nuscenes"]), ("at once", results["at once"])):
        for way, row in figures["median_ms"].items():
            assert f"| {cameras} | {way} | {' | '.join(f'{row[name]:.1f}' for name in names)} |" in page
        ratios = figures["median_ratio"]
        assert f"| | ratio | {' | '.join(f'{ratios[name]:.2f}' for name in names)} |" in page
        assert ", ".join(f"{each:.2f}" for each in figures["ratios"]["latency"]) in page


def test_the_pages_say_how_equal_engines_with_onnxruntime_s_operators_are():
    page = " ".join((ROOT / "docs/decisions/0017-onnxruntimes-own-operators.md").read_text().split())
    rows = json.loads((RESULTS / "drafts_engine.json").read_text())["rows"].values()
    equal, answers = (sum(row[name] for row in rows) for name in ("equal_to_plain", "answers"))
    assert f"{equal:,} of {answers:,} answers at the drops 0, 0.5 and 0.75 are those of torch" in page
    latency = " ".join((ROOT / "docs" / "latency.md").read_text().split())
    assert f"{equal:,} of {answers:,} drafted answers are those of torch's plain decoding" in latency
    parity = json.loads((RESULTS / "parity_tiny_vision.json").read_text())
    assert f"least cosine of a token {parity['cosine_min']:.6f}, " in page
    assert f"largest error of a score {parity['score_max_abs_error']:.1e}, the same kept sets at three ratios" in page
    assert set(parity["kept_overlap"].values()) == {1.0} and len(parity["kept_overlap"]) == 3
    assert f"{parity['plans_same']} of {parity['plans_compared']} equal answers" in page
    figures = json.loads((RESULTS / "engine_operators.json").read_text())
    rows, others = figures["median_ms"], " and ".join(f"{ratio:.2f}" for ratio in figures["other_runs"])
    shown = f"{rows['standard']:.1f} and {rows['fused']:.1f} ms, {rows['ratio']:.2f} times (two more runs: {others})"
    assert shown in page


def test_the_latency_page_shows_decoders_reused_cameras_and_the_kept_head():
    page = " ".join((ROOT / "docs" / "latency.md").read_text().split())
    decoders = json.loads((RESULTS / "jpeg_decoders.json").read_text())["rows"]
    for name, row in decoders.items():
        times = f"{row['one_by_one_ms']:.1f} | {row['on_threads_ms']:.1f} | {row['ratio_to_pil'][1]:.2f}"
        assert f"| {name} | {times} |" in page and row["difference_max"] == 0
    saved = decoders["PIL, draft"]["on_threads_ms"] - decoders["simplejpeg"]["on_threads_ms"]
    assert f"simplejpeg would save {saved:.1f} ms of a set" in page
    reuse = json.loads((RESULTS / "token_reuse.json").read_text())
    times, plans = ", ".join(f"{row['median_ms']:.1f}" for row in reuse["encode"]), reuse["plans"]
    assert f"the encoder takes {times} ms where none to six of six cameras changed" in page
    assert f"{plans['equal']} of {plans['plans']} plans with {plans['reused_cameras']} reused cameras are equal" in page
    for name, rows in json.loads((RESULTS / "prompt_head.json").read_text())["rows"].items():
        for row in rows.values():
            head = f"{row['head_tokens']} of {row['prompt_tokens']}"
            anew, kept = (row[way]["median_ms"] for way in ("anew", "kept"))
            assert f"| {name} | {head} | {anew:.1f} | {kept:.1f} | {row['anew_over_kept']:.2f} |" in page
    deadlines = json.loads((RESULTS / "deadline.json").read_text())["deadlines"]
    late = {factor: row["loaded"]["planned"] - row["loaded"]["met"] for factor, row in deadlines.items()}
    first = {factor: row["loaded"]["late_of_the_first_ten"] for factor, row in deadlines.items()}
    assert (late, first) == ({"1.6": 0, "2.2": 1, "3": 1}, {"1.6": 0, "2.2": 1, "3": 0}), "the page says so"
