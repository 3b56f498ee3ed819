"""``fastdrive vla`` and ``plan`` on a checkpoint in the Hub's layout with the real tokenizer."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fastdrive_node.cli import main
from fastdrive_node.families import load_vla
from fastdrive_node.families.prompt import build_prompt
from fastdrive_node.families.spec import default_vla_dir
from fastdrive_node.planning.generator import Generator
from fastdrive_node.types import EgoHistory, EgoState
from tests.families.hub_checkpoint import write_checkpoint
from tests.planning.test_impromptu import ANSWER, INTRO, recorded_answers
from tests.real_tokenizer import qwen_tokenizer, reading_tokenizers_once

STATUS = (
    "Provided are the previous ego vehicle status recorded over the last {seconds} seconds (at 0.5-second intervals). "
    "This includes the x and y coordinates of the ego vehicle. Positive x means forward direction while positive y "
    "means leftwards. The data is presented in the format [x, y]:"
)
STATE = (
    "(t-{t}s) [{x}, {y}], Acceleration: X {ax}, Y {ay} m/s^2, Velocity: X {vx}, Steering angle: {steer} (positive: "
    "left turn, negative: right turn)"
)


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer():
    with reading_tokenizers_once():
        yield


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "Impromptu-VLA-3B", qwen_tokenizer())


@pytest.fixture(scope="module")
def one_view(hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("vla") / "impromptu"
    assert main(["vla", "init", str(hub), str(out), "--template", "impromptu-1v"]) == 0
    return out


@pytest.fixture
def front(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (450, 800, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "front.png")
    return tmp_path / "front.png"


@pytest.fixture
def states(tmp_path):
    """Three seconds at 4 m/s straight ahead, with everything that a vehicle may tell."""
    known = {"yaw": 0.0, "speed": 4.0, "ax": 0.12, "ay": -0.03, "vy": 0.0, "yaw_rate": 0.0, "steer": 0.001}
    content = [{"t_s": -0.5 * step, "x": -2.0 * step, "y": 0.0, **known} for step in range(6, -1, -1)]
    (tmp_path / "states.json").write_text(json.dumps(content))
    return tmp_path / "states.json"


def test_a_checkpoint_becomes_a_vla_beside_links_to_its_files(hub, one_view):
    vla = load_vla(one_view)
    assert vla.spec.cameras == ("CAM_FRONT",) and vla.spec.image_size == (392, 672) and vla.tokens == 336
    assert (one_view / "tokenizer.json").is_symlink() and not (hub / "vla.json").exists()
    assert vla.config.text_config.hidden_size == 32 and vla.eos_ids == {151645, 151643}


def test_new_key_names_load_with_the_same_fingerprints(one_view, tmp_path):
    write_checkpoint(tmp_path / "new", qwen_tokenizer(), old_names=False)
    assert main(["vla", "init", str(tmp_path / "new"), str(tmp_path / "new"), "--template", "impromptu-1v"]) == 0
    old, new = load_vla(one_view), load_vla(tmp_path / "new")
    assert old.encoder_fingerprint == new.encoder_fingerprint and old.language_fingerprint == new.language_fingerprint


def test_what_is_there_is_not_overwritten(hub, one_view, capsys):
    assert main(["vla", "init", str(hub), str(one_view), "--template", "tiny"]) == 1
    assert "vla.json: is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, problem",
    [(("absent",), "config.json: missing"), (("HUB", "--template", "impromptu-9v"), "--template impromptu-9v: use")],
)
def test_bad_arguments_of_init_are_named(hub, tmp_path, capsys, arguments, problem):
    source = tmp_path / "absent" if arguments[0] == "absent" else hub
    template = arguments[1:] or ("--template", "tiny")
    assert main(["vla", "init", str(source), str(tmp_path / "out"), *template]) in (1, 2)
    assert problem in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_prompt_is_the_trainers_word_for_word(one_view):
    vla = load_vla(one_view)
    told = EgoState(
        0, 0, 0, 0, 4.2, 0.12, accel_measured=True, accel_y_mps2=-0.03, speed_y_mps=0.0, steer_rad=0.01 / 15
    )
    states = (told, *(EgoState(0, -2.1 * k, -0.001 * k, 0, 4.2, 0.12) for k in range(1, 3)))
    prompt = build_prompt(vla, EgoHistory(states, 0.5))
    lines = [
        STATE.format(t=t, x=x, y=y, ax=0.12, ay=ay, vx=4.2, steer=steer)
        for t, x, y, ay, steer in [("1.0", -4.2, "0.0", "0.0", "0.0"), ("0.5", -2.1, "0.0", "0.0", "0.0")]
    ]
    last = STATE.format(t="0.0", x="0.0", y="0.0", ax=0.12, ay=-0.03, vx=4.2, steer=0.01)
    assert vla.short_prompt(prompt.text) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "You are an autonomous driving agent. You have access to a front view camera image of a vehicle <image>. Your "
        "task is to do your best to predict future waypoints for the vehicle over the next 3 timesteps, given the "
        f"vehicle's intent inferred from the images.{STATUS.format(seconds='1.0')}"
        f"{', '.join([*lines, last])}\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt.derived == ("ax", "ay", "steer"), "the two states before were not told"
    assert len(prompt.visual) == 336


def test_six_views_are_written_in_the_trainers_order(hub, tmp_path):
    assert main(["vla", "init", str(hub), str(tmp_path / "six"), "--template", "impromptu-6v"]) == 0
    vla = load_vla(tmp_path / "six", parts=frozenset())
    text = vla.short_prompt(build_prompt(vla, EgoHistory((EgoState(0, 0, 0, 0, 4.0),), 0.5)).text)
    assert (
        "(1) front view (which you should focus on with the most attention) <image>, (2) front right view <image>, (3) "
        "front left view <image>, (4) back view <image>, (5) back left view <image>, and (6) back right view <image>."
    ) in text
    assert "over the last 0.0 seconds" in text and vla.tokens == 6 * 336


def test_the_waymo_form_writes_its_last_state_as_its_trainer_does(hub, tmp_path):
    assert main(["vla", "init", str(hub), str(tmp_path / "waymo"), "--template", "impromptu-waymo"]) == 0
    vla = load_vla(tmp_path / "waymo", parts=frozenset())
    states = tuple(EgoState(0, -3.0 * k, 0, 0, 6.0) for k in range(4))
    text = build_prompt(vla, EgoHistory(states, 0.5)).text
    motion = "Acceleration: X 0.00, Y 0.00 m/s^2, Velocity: X 6.00, Y 0.00 m/s"
    assert f"[x, y]:\n(t-1.5s) [-9.00, 0.00], {motion}, (t-1.0s) [-6.00, 0.00], {motion}, " in text
    assert text.endswith(f"(t-0.0s) [0.0, 0.0], {motion}\n<|im_end|>\n<|im_start|>assistant\n")
    assert "over the last 1.5 seconds" in text and vla.spec.image_size == (420, 616)


@pytest.mark.parametrize("name", ["reconpruner.safetensors", "reconpruner_lite.safetensors"])
def test_check_names_a_pruner_that_the_node_would_refuse(tmp_path, name):
    folder = shutil.copytree(default_vla_dir(), tmp_path / "vla")
    pruner = folder / name
    out = tmp_path / "check.json"
    assert main(["vla", "check", str(folder), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["problems"] == []
    pruner.write_bytes(pruner.read_bytes()[:1000])
    main(["vla", "check", str(folder), "--json", str(out)])
    (problem,) = json.loads(out.read_text())["problems"]
    assert f"{name}: not a readable safetensors file" in problem


def test_check_counts_tokens_and_names_no_problem(one_view, front, tmp_path, capsys):
    out = tmp_path / "check.json"
    assert main(["vla", "check", str(one_view), str(front), "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["family"] == "qwen2_5_vl" and report["visual_tokens"] == 336 and report["problems"] == []
    assert report["prompt"].count("<image>") == 1 and report["text_tokens"] > 300
    answer = report["answer_tokens"]
    assert answer["total"] == answer["constant"] + answer["forced"] + answer["free"] and answer["constant"] == 62
    assert set(report["memory_gb"]) == {"float32", "bfloat16"}
    assert "62 constant" in capsys.readouterr().out


def test_the_published_answer_has_so_many_tokens(one_view):
    from fastdrive_node.planning.inspection import count_answer_tokens

    vla = load_vla(one_view, parts=frozenset())
    tokens = count_answer_tokens(vla, vla.spec.answer, ANSWER)
    assert (tokens.total, tokens.constant, tokens.forced + tokens.free) == (136, 62, 74)


def test_check_names_what_does_not_fit(one_view, tmp_path, capsys):
    folder = tmp_path / "vla"
    folder.mkdir()
    for file in one_view.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    (folder / "preprocessor_config.json").unlink()
    changed = {"patch_size": 16, "image_mean": [0.5, 0.5, 0.5], "min_pixels": 3136, "max_pixels": 262144}
    (folder / "preprocessor_config.json").write_text(json.dumps(changed))
    Image.new("RGB", (600, 600)).save(tmp_path / "square.png")
    assert main(["vla", "check", str(folder), str(tmp_path / "square.png"), "--json", str(tmp_path / "c.json")]) == 1
    problems = " | ".join(json.loads((tmp_path / "c.json").read_text())["problems"])
    assert "patch_size: 16, but 14 is used" in problems and "image_mean" in problems and "is squeezed to" in problems
    assert "max_pixels: 262144 would make 644x364 px (299 tokens)" in problems


@pytest.fixture
def changed(one_view, tmp_path):
    """A copy of the VLA directory, by links; writes one of its files anew."""

    def make(name, content):
        folder = tmp_path / "changed"
        folder.mkdir()
        for file in one_view.iterdir():
            if file.name != name:
                (folder / file.name).symlink_to(file.resolve())
        (folder / name).write_text(content)
        return folder

    return make


@pytest.mark.parametrize("marker", ["{Speed}", "{speed:.1f}", "{command }", "{image:CAM_FRONT@0.5}", "{x!r}"])
def test_what_looks_like_a_marker_and_is_none_is_refused(one_view, changed, capsys, marker):
    text = (one_view / "prompt.txt").read_text()
    assert main(["vla", "check", str(changed("prompt.txt", text + marker))]) == 1
    assert f"unknown marker {marker}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, problem",
    [
        ({"max_pixels": [1], "min_pixels": 1}, "max_pixels: '[1]' is not a number of pixels"),
        ({"max_pixels": -5}, "max_pixels: '-5' is not a number of pixels"),
        ({"min_pixels": True}, "min_pixels: 'True' is not a number of pixels"),
        ({"size": 7}, "size: '7' is not an object"),
        ({"patch_size": [14]}, "patch_size: [14], but 14 is used"),
        ([], "not readable"),
    ],
)
def test_a_preprocessor_that_makes_no_sense_is_a_problem(changed, capsys, content, problem):
    assert main(["vla", "check", str(changed("preprocessor_config.json", json.dumps(content)))]) == 1
    assert problem in capsys.readouterr().out


@pytest.mark.parametrize("eos", ["x", -1, [], [[1]], 10**400, None])
def test_a_text_that_cannot_end_is_refused(changed, capsys, eos):
    folder = changed("generation_config.json", json.dumps({"eos_token_id": eos}))
    assert main(["vla", "check", str(folder)]) == 1
    assert "eos_token_id" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["", "file", "file/below", "link"])
def test_a_folder_that_cannot_be_made_is_named(hub, tmp_path, capsys, out):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    given = str(tmp_path / out) if out else ""
    assert main(["vla", "init", str(hub), given, "--template", "tiny"]) in (1, 2)
    error = capsys.readouterr().err
    assert "give" in error and "Error" not in error and "--debug" not in error


def test_the_tiny_template_serves_other_tokenizers(hub, tmp_path):
    assert main(["vla", "init", str(hub), str(tmp_path / "tiny"), "--template", "tiny"]) == 0
    assert main(["vla", "check", str(tmp_path / "tiny")]) == 0


def test_inputs_are_looked_at_before_the_model_is_loaded(one_view, front, tmp_path, monkeypatch):
    monkeypatch.setattr("fastdrive_node.planning.loading.load_vla", None)  # a call would be a TypeError
    (tmp_path / "states.json").write_text("[]")
    out = tmp_path / "plan.json"
    arguments = ["plan", str(front), "--vla", str(one_view), "--json", str(out)]
    assert main([*arguments, "--history", str(tmp_path / "states.json")]) == 1
    assert json.loads(out.read_text())["stage"] == "odometry"
    assert main([arguments[0], str(front), *arguments[1:]]) == 1
    assert "2 images for 1 cameras" in json.loads(out.read_text())["reason"]


def test_check_names_an_image_smaller_than_a_token(one_view, tmp_path, capsys):
    Image.new("RGB", (14, 8)).save(tmp_path / "front.png")
    assert main(["vla", "check", str(one_view), str(tmp_path / "front.png")]) == 1
    assert "front.png: 14x8 px is less than the 28x28 px of one visual token" in capsys.readouterr().out


def test_parse_counts_answers_read_and_refused(one_view, tmp_path):
    texts = [text for _, text in recorded_answers()]
    lines = [*(json.dumps(text) for text in texts[:100]), *(json.dumps({"text": text}) for text in texts[100:])]
    (tmp_path / "answers.jsonl").write_text("\n".join([*lines, json.dumps(ANSWER[:-3]), json.dumps("no")]) + "\n")
    out = tmp_path / "parsed.json"
    assert main(["vla", "parse", str(one_view), str(tmp_path / "answers.jsonl"), "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["parsed"], result["refused"]) == (200, 2)
    assert len(result["answers"][0]["waypoints"]) == 6 and "is cut off" in result["answers"][200]["reason"]


@pytest.mark.parametrize(
    "content, reason", [("{", "line 1"), ('{"t": 1}', "line 1"), ("3", "line 1"), ("\n", "holds no answer")]
)
def test_a_line_that_is_no_answer_is_named(one_view, tmp_path, capsys, content, reason):
    (tmp_path / "answers.jsonl").write_text(content)
    assert main(["vla", "parse", str(one_view), str(tmp_path / "answers.jsonl")]) == 1
    assert reason in capsys.readouterr().err


def test_absent_answers_are_not_called_unreadable_text(one_view, tmp_path, capsys):
    assert main(["vla", "parse", str(one_view), str(tmp_path / "absent.jsonl")]) == 1
    error = capsys.readouterr().err
    assert "absent.jsonl: cannot be read (No such file or directory)" in error and "UTF-8" not in error


def test_a_refused_answer_is_written_whole(one_view, front, states, tmp_path, capsys):
    out = tmp_path / "plan.json"
    arguments = [str(front), "--vla", str(one_view), "--history", str(states), "--json", str(out)]
    assert main(["plan", *arguments]) == 1
    result = json.loads(out.read_text())
    assert result["kind"] == "refused" and "does not start with" in result["reason"] and result["waypoints"] is None
    assert len(result["answer_ids"]) == 200 and result["text"] and result["prompt"].count("<image>") == 1
    assert result["total_tokens"] == result["kept_tokens"] == 336 and result["peak_memory_gb"] > 0
    assert result["stage_ms"]["prefill"] > 0 and "Acceleration: X 0.12, Y -0.03 m/s^2" in result["prompt"]


def test_the_beginning_of_the_answer_may_be_given(hub, tmp_path):
    out = tmp_path / "fed"
    arguments = ["vla", "init", str(hub), str(out), "--template", "impromptu-1v", "--preamble-in-prompt"]
    assert main(arguments) == 0
    vla = load_vla(out)
    generator = Generator(vla)
    history = EgoHistory((EgoState(0, 0, 0, 0, 4.0),), 0.5)
    given, alone = generator.prompt(history), build_prompt(vla, history)
    prefix = generator.answer.prefix_ids
    assert len(prefix) == 62 and vla.tokenizer.decode(prefix) == INTRO.removesuffix(" ")
    assert given.input_ids.tolist() == [*alone.input_ids.tolist(), *prefix]
    assert given.next_position == alone.next_position + 62
    rest = vla.encode_text(ANSWER)[62:]
    assert generator.answer.text([*rest, 151645]) == ANSWER
    assert generator.answer.parse([*rest, 151645]).waypoints_m.shape == (6, 2)


def test_a_flat_configuration_exports_its_language_model(one_view, front, tmp_path, capsys):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e .[export]")
    build = ["export", "build", "--vla", str(one_view), "--part", "language", "--backend", "onnxruntime"]
    assert main([*build, "--out", str(tmp_path)]) == 0
    answers = []
    for arguments in ([], ["--language-engine", str(tmp_path / "language.onnx")]):
        assert main(["plan", str(front), "--vla", str(one_view), "--json", "-", *arguments]) == 1
        answers.append(json.loads("{" + capsys.readouterr().out.partition("{")[2])["answer_ids"])
    assert answers[0] == answers[1]


def test_weights_with_a_nan_are_a_fault_of_the_model(one_view, front, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "vla"
    folder.mkdir()
    for file in one_view.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    shard = next(folder.glob("model-00001-*"))
    weights = load_file(shard)
    weights["model.norm.weight" if "model.norm.weight" in weights else sorted(weights)[0]][0] = float("nan")
    shard.unlink()
    save_file(weights, shard, {"format": "pt"})
    assert main(["plan", str(front), "--vla", str(folder)]) == 1
    assert "not finite" in capsys.readouterr().err
