"The course reads easily, in the time that its notebooks state and in less than a working day."

import json
import re

import pytest
from project import NBS

COURSE = {path.stem: path for path in sorted((NBS / "course").glob("*.ipynb"))}
EACH = pytest.mark.parametrize("name", COURSE)
WORDS_A_MINUTE = 200


def cells(name: str) -> list[tuple[str, str]]:
    "Kind and source of each cell."
    found = json.loads(COURSE[name].read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in found]


def text_of(name: str) -> str:
    "The text of a notebook."
    return "\n\n".join(source for kind, source in cells(name) if kind == "markdown")


def prose(text: str) -> str:
    "What is read in sentences: no formula, code, table, heading, tag or address."
    text = re.sub(r"^```.*?^```|^\$\$.*?\$\$", " ", text, flags=re.M | re.S)
    text = re.sub(r"^ *[|#].*$", "\n", text, flags=re.M)
    text = re.sub(r"`[^`]*`|\$[^$]*\$|<[^>]*>", " it ", text)
    return re.sub(r"\]\([^)]*\)|https?:\S+", " ", text)


def syllables(word: str) -> int:
    "Groups of vowels; an e at the end is silent, but not that of -le."
    word = re.sub(r"(?<=[^laeiouy])e$|(?<=[^dt])ed$|(?<=[aeiouy]l)e$", "", word.lower())
    return max(1, len(re.findall(r"[aeiouy]+", word)))


def grade(text: str) -> float:
    "The years at school that a text asks for, by Flesch and Kincaid."
    sentences = re.split(
        r"[.!?]+(?=\W*\s|\W*$)|\n\s*\n|^ *(?:[-*>]|\d+\.) ", prose(text), flags=re.M
    )
    sentences = [re.findall(r"[A-Za-z]+(?:['’][a-z]+)?", sentence) for sentence in sentences]
    words = [word for sentence in sentences for word in sentence]
    count = sum(1 for sentence in sentences if sentence)
    return 0.39 * len(words) / count + 11.8 * sum(map(syllables, words)) / len(words) - 15.59


def stated(text: str) -> tuple[int, int]:
    "The minutes to read and the seconds to run that a notebook states."
    found = re.search(r"\*\*Time:\*\* (\d+) minutes to read, (\d+) seconds to run", text)
    return int(found[1]), int(found[2])


def minutes_to_read(parts: list[tuple[str, str]]) -> float:
    "Text and code at one speed, and a minute more for each exercise."
    words = sum(len(source.split()) for _, source in parts)
    exercises = sum(len(re.findall(r"\*\*Exercise \d+ ★", source)) for _, source in parts)
    return words / WORDS_A_MINUTE + exercises


def is_near(said: float, found: float) -> bool:
    "Whether a stated time is off by half at most."
    return found / 1.5 <= said <= found * 1.5


@EACH
def test_the_course_is_easy_to_read(name):
    assert grade(text_of(name)) <= 10


def test_hard_prose_is_found():
    easy = "The slots look at the image. Each one takes a part of it."
    hard = (
        "Normalization considerably facilitates the generalization of competitive representations."
    )
    assert grade(easy) < 4 and grade(hard) > 20
    # a notebook whose sentences are strung together by commas is too hard
    strung = re.sub(r"[.!?:]+\s|\n\s*\n|^ *(?:[-*>]|\d+\.) ", ", ", text_of("02_slot_attention"))
    assert grade(strung) > 10
    # formulas and code are no prose
    assert grade(f"{easy}\n\n$$\\operatorname{{softmax}}(x)$$\n\n```\nmultiplication()\n```") < 4
    assert [syllables(word) for word in ("slot", "image", "table", "trained", "attention")] == [
        *(1, 2, 2, 1, 3)
    ]


@EACH
def test_a_notebook_takes_as_long_as_it_says(name):
    said, found = stated(text_of(name))[0], minutes_to_read(cells(name))
    assert is_near(said, found), f"{name} says {said} minutes, and has words for {found:.0f}"


def test_a_wrong_time_is_found():
    parts = [
        ("markdown", "word " * 3000),
        ("code", "x = 1\n" * 500),
        ("markdown", "**Exercise 1 ★"),
    ]
    found = minutes_to_read(parts)
    assert 23 < found < 24
    assert is_near(20, found) and not is_near(15, found) and not is_near(40, found)
    with pytest.raises(TypeError):
        stated("**Time:** an hour.")


def test_the_course_is_read_in_eight_hours():
    read = sum(minutes_to_read(cells(name)) for name in COURSE)
    said, run = map(sum, zip(*(stated(text_of(name)) for name in COURSE)))
    assert len(COURSE) >= 15 and max(read, said) + run / 60 <= 8 * 60
