import hashlib
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.scorers.rubrics import ACS, ACS_1, APS, SCORE, SCORE_SGLANG, VIDEO_SCORE

ALL = [SCORE, SCORE_SGLANG, ACS, ACS_1, VIDEO_SCORE, APS]
ONE_NUMBER = [SCORE, SCORE_SGLANG, VIDEO_SCORE]
THREE_NUMBERS = [ACS, ACS_1, APS]
OFFICIAL = {
    SCORE.source: "f56f919ce3bc6aab",
    SCORE_SGLANG.source: "d68ab1dcf4dc3a39",
    ACS.source: "75d52d3ae771f89b",
    ACS_1.source: "88d1d1c5f0fba9dc",
    VIDEO_SCORE.source: "514a6343388979f8",
    APS.source: "707411fb9175547e",
}
"""The first digits of the SHA-256 of each question in the official repository, with {prompt} for the prompt."""


def identity(rubric):
    return f"{rubric.name}-{rubric.shown}"


def scores(rubric, text):
    return {name: None if math.isnan(value) else value for name, value in rubric.read(text).items()}


@pytest.mark.parametrize("rubric", ALL, ids=identity)
def test_a_question_is_the_one_that_the_models_were_trained_on(rubric):
    assert hashlib.sha256(rubric.question("{prompt}").encode()).hexdigest()[:16] == OFFICIAL[rubric.source]


@given(prompt=st.text())
def test_a_prompt_goes_in_unchanged(prompt):
    for rubric in ALL:
        assert rubric.question(prompt) == rubric.before + prompt + rubric.after


@pytest.mark.parametrize(
    "prompt", ['a "red" {cube}', "100%", "a\nb\\n", "[x]", "Final Score: 5", "a <b> | c", "<image>"]
)
def test_quotes_braces_and_newlines_are_no_marks_of_a_chat(prompt):
    assert SCORE.refused(prompt) == ""


@pytest.mark.parametrize("prompt", ["a cat<|im_end|>", "<|image_pad|>", "<|vision_start|> dog"])
def test_a_prompt_that_marks_a_chat_is_refused(prompt):
    assert all("marks a chat" in rubric.refused(prompt) for rubric in ALL)


def test_a_word_that_stands_for_an_image_is_refused_where_it_does():
    assert "'<image>'" in SCORE_SGLANG.refused("an <image> of a cat")


@pytest.mark.parametrize(
    ("text", "of_five", "of_ten"),
    [
        ("Final Score: 3", 3.0, 3.0),
        ("Final Score: 4.5", 4.5, 4.5),
        ("Final Score: 10", None, 10.0),
        ("Final Score: 7", None, 7.0),
        ("Final Score: 0", None, None),
        ("Final Score: 0.9", None, None),
        ("Final Score: 5.1", None, 5.1),
        ("Final Score: 11", None, None),
        ("Final Score: 100", None, None),
        ("Final Score: -3", None, None),
        ("Final Score: 4/5", 4.0, None),
        ("Final Score: 8/10", None, 8.0),
        ("Final Score: 4 / 10", None, 4.0),
        ("Final Score: 4 out of 5.", 4.0, None),
        ("Final Score: 3 out of 10", None, 3.0),
        ("Final Score: 3/100", None, None),
        ("**Final Score:** 4", 4.0, 4.0),
        ("**Final Score**: **4**", 4.0, 4.0),
        ("_final score_ : `4`", 4.0, 4.0),
        ("FINAL SCORE:4.", 4.0, 4.0),
        ("Final Score:\n\n4\n", 4.0, 4.0),
        ("Final Score (1-5): 4", 4.0, None),
        ("Final Score (1-10): 4", None, 4.0),
        ("cat (animal): 1\nhat (object): 0\nFinal Score: 2", 2.0, 2.0),
        ("Final Score: 3-4", None, None),
        ("Final Score: 3 to 4", None, None),
        ("Final Score: 3 or 4", None, None),
        ("Final Score: 3,5", None, None),
        ("Final Score: 3, 5 objects of 6 are there", 3.0, 3.0),
        ("Final Score: 4%", None, None),
        ("Final Score: 3e0", None, None),
        ("Final Score: 3.4.5", None, None),
        ("Final Score: four", None, None),
        ("Final Score: X", None, None),
        ("Final Score: nan", None, None),
        ("Final Score: ³", None, None),
        ("Final Score:", None, None),
        ("Final Score", None, None),
        ("Score: 4", None, None),
        ("FinalScores: 4", None, None),
        ("4", None, None),
        ("", None, None),
    ],
)
def test_a_final_score_is_one_number_of_its_own_range(text, of_five, of_ten):
    assert scores(SCORE, text)["final"] == of_five
    assert scores(VIDEO_SCORE, text)["final"] == of_ten


def test_an_echoed_example_is_not_the_score():
    example = VIDEO_SCORE.before
    assert scores(VIDEO_SCORE, f"{example}\n\nvisual quality: 2\nFinal Score: 3")["final"] == 3.0
    assert scores(ACS, f"{ACS.before}\nAlignment Score (1-5): 2")["alignment"] == 2.0
    assert scores(VIDEO_SCORE, "Final Score: 6 was an example. Final Score: 3")["final"] == 3.0


def test_an_echoed_format_after_the_score_fails_rather_than_guesses():
    assert scores(ACS, "Alignment Score (1-5): 2\nAlignment Score (1-5): X")["alignment"] is None


def test_three_scores_are_read_apart_and_their_mean_wants_all():
    text = "Alignment Score (1-5): 2.694700002670288\n**Coherence Score (1-5):** 2\nstyle score: 4"
    found = scores(ACS, text)
    assert (found["alignment"], found["coherence"], found["style"]) == (2.694700002670288, 2.0, 4.0)
    assert found["mean"] == pytest.approx((2.694700002670288 + 2 + 4) / 3)
    lacking = scores(ACS, text.replace("Coherence", "Cohesion"))
    assert lacking == {"mean": None, "alignment": 2.694700002670288, "coherence": None, "style": 4.0}


def test_three_scores_may_share_a_line():
    line = "Alignment Score (1-5): 3, Physics Score (1-5): 2, Style Score (1-5): 5"
    assert scores(APS, line) == {"mean": 10 / 3, "alignment": 3.0, "physics": 2.0, "style": 5.0}


def test_scores_of_words_are_not_read():
    text = 'Word-wise Scores: [["style", 4.0], ["[No_mistakes]", 0.1]]\n\nAlignment Score (1-5): 3.1'
    assert scores(ACS_1, text) == {"mean": None, "alignment": 3.1, "coherence": None, "style": None}


def numbers(rubric):
    return st.floats(rubric.low, rubric.high).map(lambda value: round(value, 4))


decorations = st.sampled_from(["{}: {}", "**{}:** {}", "**{}**: {}", "- *{}*:  {}", "{}:\n{}", "{} : **{}**"])
cases = st.sampled_from([str, str.lower, str.upper, str.title])
prose = st.text(alphabet=string.ascii_lowercase + " .,\n", max_size=40)


@given(data=st.data())
@pytest.mark.parametrize("rubric", ALL, ids=identity)
def test_whatever_stands_around_numbers_of_the_range_they_are_read(rubric, data):
    said = {name: data.draw(numbers(rubric)) for name in rubric.numbers}
    lines = []
    for name, words in rubric.numbers.items():
        old = data.draw(st.lists(numbers(rubric), max_size=2))
        lines += [data.draw(decorations).format(data.draw(cases)(words), value) for value in [*old, said[name]]]
    text = data.draw(prose) + "\n" + "\n".join(lines) + "\n" + data.draw(prose)
    assert {name: value for name, value in rubric.read(text).items() if name != "mean"} == said


@given(value=st.floats(0, 1000).map(lambda value: round(value, 3)), wraps=decorations)
@pytest.mark.parametrize("rubric", ONE_NUMBER, ids=identity)
def test_a_number_is_read_exactly_if_it_lies_in_the_range(rubric, value, wraps):
    found = scores(rubric, wraps.format("Final Score", value))["final"]
    assert found == (value if rubric.low <= value <= rubric.high else None)


@given(text=st.text(alphabet=st.sampled_from("finalscoreFS styl(1-5):*_ \n0123456789./-X"), max_size=80))
def test_no_text_at_all_gives_a_score_out_of_range(text):
    for rubric in ALL:
        for value in rubric.read("Final Score" + text).values():
            assert math.isnan(value) or rubric.low <= value <= rubric.high


@given(text=st.text(max_size=200))
def test_a_text_that_names_no_score_has_none(text):
    for rubric in ALL:
        if "score" not in text.lower():
            assert all(math.isnan(value) for value in rubric.read(text).values())


def test_a_long_run_of_blanks_and_stars_is_read_at_once():
    assert scores(SCORE, "Final Score" + " *_" * 100_000)["final"] is None
    assert scores(SCORE, "Final" + " " * 100_000 + "Score" + "Final Score: " * 3000 + "3")["final"] == 3.0
