import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdrive_node.errors import AnswerError
from fastdrive_node.families.numbers import NumberFormat
from fastdrive_node.families.spec import AnswerSpec
from fastdrive_node.planning.answer_format import example_answer, format_answer, parse_answer

FIXED = AnswerSpec("<PLANNING>Trajectory [x, y]: ", 6, 0.5, "</PLANNING>", 96, NumberFormat(2, 2))
PLAIN = AnswerSpec(
    "<PLANNING>Predicted future movement details for the next 3 seconds (x forward, y left) [x, y]: ",
    6,
    0.5,
    "</PLANNING>",
    256,
)
SPECS = pytest.mark.parametrize("spec", [FIXED, PLAIN], ids=["fixed", "plain"])
hundredths = st.integers(-9999, 9999).map(lambda n: n / 100)
trajectories = st.lists(st.tuples(hundredths, hundredths), min_size=6, max_size=6).map(np.array)


def text_of(spec, body):
    return f"{spec.preamble}{body}{spec.closing}"


def points(spec, count, point=None):
    zero = spec.number.write(0)
    return ", ".join([point or f"[{zero}, {zero}]"] * count)


def test_the_fixed_form_has_constant_width():
    near, far = np.zeros((6, 2)), np.array([[99.99, -99.99]] * 6)
    assert len(format_answer(near, FIXED)) == len(format_answer(far, FIXED))
    assert format_answer(near + 3.518, FIXED).startswith("<PLANNING>Trajectory [x, y]: [+03.52, +03.52], [")


def test_the_plain_form_is_that_of_full_size_models():
    waypoints = np.array([[3.52, 0.01], [7, -0.5], [10.5, 0], [14, 0], [17.5, 0], [121, -0.001]])
    assert format_answer(waypoints, PLAIN).endswith(
        "[x, y]: [3.52, 0.01], [7.00, -0.50], [10.50, 0.00], [14.00, 0.00], [17.50, 0.00], [121.00, 0.00]</PLANNING>"
    )


@SPECS
@given(waypoints=trajectories)
def test_a_written_trajectory_is_read_back(spec, waypoints):
    parsed = parse_answer(format_answer(waypoints, spec), spec)
    assert parsed.dtype == np.float64 and parsed.shape == (6, 2)
    assert np.array_equal(parsed, waypoints)


@SPECS
@given(waypoints=trajectories, place=st.integers(0, 400), new=st.text(max_size=3), removed=st.integers(0, 3))
def test_a_changed_answer_is_refused_or_read_as_written(spec, waypoints, place, new, removed):
    text = format_answer(waypoints, spec)
    place = place % (len(text) + 1)
    changed = text[:place] + new + text[place + removed :]
    try:
        parsed = parse_answer(changed, spec)
    except AnswerError:
        return
    assert format_answer(parsed, spec) == changed or "-0" in changed  # a text may say -0.00, we never write it


@SPECS
@given(text=st.text(alphabet="[], +-.0123456789<>/PLANIGeinf\n", max_size=200))
def test_other_text_is_refused(spec, text):
    with pytest.raises(AnswerError):
        parse_answer(text_of(spec, text[:40]), spec)
    with pytest.raises(AnswerError):
        parse_answer(text, spec)


@SPECS
@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_another_number_of_points_is_refused_with_the_count(spec, count):
    with pytest.raises(AnswerError, match=f"has {count} readable points of 6"):
        parse_answer(text_of(spec, points(spec, count)), spec)


@SPECS
@pytest.mark.parametrize(
    "number", ["nan", "inf", "-inf", "1e3", "0x10", "1_0.00", "", " 1.00", "1,00", "٣.٥٢", "1.0", "1.000", "--1.00"]
)
def test_what_is_no_plain_decimal_number_is_refused(spec, number):
    body = f"[{number}, {spec.number.write(0)}], {points(spec, 5)}"
    with pytest.raises(AnswerError, match="has 5 readable points"):
        parse_answer(text_of(spec, body), spec)


@SPECS
def test_a_cut_off_answer_is_refused(spec):
    text = example_answer(spec)
    with pytest.raises(AnswerError, match="is cut off before '</PLANNING>'"):
        parse_answer(text[:-1], spec)


@SPECS
@pytest.mark.parametrize("extra", [" ", "\n", "x", "<|im_end|>", "</PLANNING>"])
def test_text_behind_the_answer_is_refused(spec, extra):
    with pytest.raises(AnswerError, match="has text after"):
        parse_answer(example_answer(spec) + extra, spec)


@SPECS
@pytest.mark.parametrize("before", ["\n", "The plan: "])
def test_text_before_the_answer_is_refused(spec, before):
    with pytest.raises(AnswerError, match="does not start with '<PLANNING>"):
        parse_answer(before + example_answer(spec), spec)


@pytest.mark.parametrize("separator", [",", ",  ", "; ", " "])
def test_another_separator_is_refused(separator):
    with pytest.raises(AnswerError, match="other text between its points"):
        parse_answer(example_answer(FIXED).replace("], [", f"]{separator}["), FIXED)


def test_the_reason_quotes_a_long_answer_in_part():
    with pytest.raises(AnswerError) as refused:
        parse_answer("x" * 10**6, FIXED)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("bad", [np.nan, np.inf, 100.0, -99.996])
def test_a_coordinate_that_does_not_fit_is_not_written(bad):
    waypoints = np.zeros((6, 2))
    waypoints[2, 1] = bad
    with pytest.raises(ValueError, match=r"not a finite number|does not fit '\+00\.00'"):
        format_answer(waypoints, FIXED)


def test_another_number_of_waypoints_is_not_written():
    with pytest.raises(ValueError, match=r"expected shape \(6, 2\), got \(5, 2\)"):
        format_answer(np.zeros((5, 2)), FIXED)


@given(value=st.floats(-99, 99), decimals=st.integers(0, 4), digits=st.integers(2, 4))
def test_a_fixed_number_has_its_width_and_matches_its_pattern(value, decimals, digits):
    import re

    form = NumberFormat(decimals, digits)
    text = form.write(value)
    assert len(text) == form.width and re.fullmatch(form.pattern, text)
    assert abs(float(text) - value) <= 0.5 * 10**-decimals + 1e-9
    assert len(form.unknown("?")) == form.width
