"""How a prompt in AUTOMATIC1111's syntax is read."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models._prompt_weights import LIMIT, parse

NEGATIVE = (
    "nsfw, ng_deepnegative_v1_75t, badhandv4, (worst quality:2), (low quality:2), (normal quality:2), lowres, "
    "((monochrome)), ((grayscale)), watermark"
)


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("a cat", [("a cat", 1)]),
        ("", []),
        ("a (cat:1.3) runs", [("a ", 1), ("cat", 1.3), (" runs", 1)]),
        ("(cat)", [("cat", 1.1)]),
        ("((cat))", [("cat", 1.21)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("[[cat]]", [("cat", 1 / 1.21)]),
        ("(a, b:2)", [("a, b", 2)]),
        ("((a:2) b:3)", [("a", 6), (" b", 3)]),
        ("(cat:-1)", [("cat", -1)]),
        ("(cat:.5)", [("cat", 0.5)]),
        ("(cat:2.)", [("cat", 2)]),
        ("( cat : 1.5 )", [(" cat ", 1.5)]),
        ("(cat:0)", [("cat", 0)]),
        (r"\(cat\) \[x\] \\", [("(cat) [x] \\", 1)]),
        (r"(a \(b\):2)", [("a (b)", 2)]),
        ("a (cat", [("a ", 1), ("cat", 1.1)]),
        ("a [cat", [("a ", 1), ("cat", 1 / 1.1)]),
        ("((cat)", [("cat", 1.21)]),
        ("cat) runs]", [("cat) runs]", 1)]),
        ("cat:1.3)", [("cat:1.3)", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("(cat:1.2.3)", [("cat:1.2.3", 1.1)]),
        ("(cat:1e3)", [("cat:1e3", 1.1)]),
        ("ratio 16:9, at 12:30", [("ratio 16:9, at 12:30", 1)]),
        ("()[](:3)", []),
        ("(cat:1000)", [("cat", 10)]),
        ("(cat:-" + "9" * 400 + ")", [("cat", -10)]),
        ("(" * 500 + "cat", [("cat", 10)]),
    ],
)
def test_brackets_become_weights(prompt, fragments):
    [section] = parse(prompt)

    assert [text for text, _ in section] == [text for text, _ in fragments]
    assert [weight for _, weight in section] == pytest.approx([weight for _, weight in fragments])


def test_the_negative_prompt_of_novitas_example_is_read_as_it_is_meant():
    [section] = parse(NEGATIVE)

    assert [(text, round(weight, 2)) for text, weight in section] == [
        ("nsfw, ng_deepnegative_v1_75t, badhandv4, ", 1),
        ("worst quality", 2),
        (", ", 1),
        ("low quality", 2),
        (", ", 1),
        ("normal quality", 2),
        (", lowres, ", 1),
        ("monochrome", 1.21),
        (", ", 1),
        ("grayscale", 1.21),
        (", watermark", 1),
    ]


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a cat BREAK a dog", [[("a cat", 1)], [("a dog", 1)]]),
        ("a cat\nBREAK\n  a dog", [[("a cat", 1)], [("a dog", 1)]]),
        ("(a BREAK b:2) c", [[("a", 2)], [("b", 2), (" c", 1)]]),
        ("a BREAK BREAK b", [[("a", 1)], [], [("b", 1)]]),
        ("BREAK", [[], []]),
        ("BREAKFAST, a break", [[("BREAKFAST, a break", 1)]]),
    ],
)
def test_break_starts_a_new_section(prompt, sections):
    assert parse(prompt) == sections


@given(st.text(alphabet=st.one_of(st.sampled_from(r"()[]\:.,-+ 0129aBREAK"), st.characters()), max_size=60))
def test_any_text_is_read_and_its_weights_are_finite_and_limited(prompt):
    for section in parse(prompt):
        for text, weight in section:
            assert text
            assert math.isfinite(weight)
            assert abs(weight) <= LIMIT


PLAIN = st.characters(exclude_characters="()[]\\")


@given(st.text(alphabet=PLAIN, min_size=1).filter(lambda text: "BREAK" not in text))
def test_text_without_this_syntax_is_one_fragment_as_it_was(text):
    assert parse(text) == [[(text, 1)]]


@given(st.text(min_size=1).filter(lambda text: "BREAK" not in text))
def test_escaped_text_is_one_fragment_as_it_was(text):
    escaped = "".join("\\" + letter if letter in "()[]\\" else letter for letter in text)

    assert parse(escaped) == [[(text, 1)]]


@pytest.mark.parametrize("piece", ["(a", "(", " ", ":", "BREAK ", "\\", ": 1", "(1:1", "(:1" + "1" * 98])
def test_the_longest_prompt_is_read_at_once(piece):
    """10,000 characters, of the pieces that would make a careless parser quadratic."""
    start = time.process_time()
    parse(piece * (10_000 // len(piece)))

    assert time.process_time() - start < 5  # a quadratic one takes minutes
