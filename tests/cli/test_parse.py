"""What users type: values in their types, settings of recipes apart, and one sentence for what is wrong."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from sidestep.cli.options import Command, Only, Overrides, command_of
from sidestep.cli.parse import arguments_of, split
from sidestep.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where.

    Args:
        city: its name.
        zip_code: its number.
        street: in it.
    """

    city: str = "here"
    zip_code: int | None = None
    street: str | None = None


def post(
    letter: Path,
    copies: list[Path],
    *,
    place: Annotated[Place, Only("city", "zip_code")],
    overrides: Overrides,
    how: Literal["slow", "fast"] = "slow",
    stamp: list[str],
    weight: float = 1.0,
    insured: bool = False,
    tracked: bool | None = None,
) -> None:
    """Post a letter.

    Args:
        letter: to post.
        copies: of it.
        place: to where.
        overrides: of its recipe.
        how: fast it goes.
        stamp: on it.
        weight: in grams.
        insured: against loss.
        tracked: on its way.
    """


COMMAND = command_of("post", post)
PLAIN = Command(
    name="post", function=post, summary="", details=[], options=COMMAND.options, groups=COMMAND.groups,
    overrides=None,
)  # fmt: skip


def test_values_have_the_types_of_the_signature_and_groups_are_instances() -> None:
    typed = "a.txt b.txt c.txt --zip-code 7 --how=fast --stamp x=1 --stamp y --weight 2"
    assert arguments_of(COMMAND, [*typed.split(), "--insured", "--tracked", "no"]) == {
        "letter": Path("a.txt"),
        "copies": [Path("b.txt"), Path("c.txt")],
        "place": Place(city="here", zip_code=7),
        "overrides": [],
        "how": "fast",
        "stamp": ["x=1", "y"],
        "weight": 2.0,
        "insured": True,
        "tracked": False,
    }


def test_what_is_not_given_is_the_default() -> None:
    arguments = arguments_of(COMMAND, ["a", "b"])
    assert arguments["place"] == Place()
    assert (arguments["how"], arguments["stamp"], arguments["weight"]) == ("slow", [], 1.0)
    assert (arguments["insured"], arguments["tracked"]) == (False, None)


@pytest.mark.parametrize("text", ["1.0", "set #1", "a: b", '"x"', "null and void", "[1]", "true", "-5", ""])
def test_texts_stay_as_they_were_typed(text: str) -> None:
    arguments = arguments_of(COMMAND, ["a", "b", "--city", text, f"--stamp={text}"])
    assert (arguments["place"].city, arguments["stamp"]) == (text, [text])


def test_options_with_a_dot_and_parts_of_recipes_are_the_recipes() -> None:
    typed = "a --method.target 0.4 b --name mine --data.limit=5 --weight 2 --model.depth --insured"
    own, overrides = split(COMMAND, typed.split())
    assert own == ["a", "b", "--weight", "2", "--insured"]
    assert overrides == ["--method.target", "0.4", "--name", "mine", "--data.limit=5", "--model.depth"]


def test_behind_two_dashes_nothing_is_an_option() -> None:
    arguments = arguments_of(COMMAND, ["a", "--", "--method.target", "--insured"])
    assert arguments["copies"] == [Path("--method.target"), Path("--insured")]
    assert not arguments["insured"] and arguments["overrides"] == []


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("", "post needs LETTER and COPIES; see `sidestep post --help`"),
        ("a", "post needs LETTER and COPIES; see `sidestep post --help`"),
        ("a b --wieght 2", "post has no option --wieght; did you mean --weight?"),
        ("a b --wei 2", "post has no option --wei; did you mean --weight?"),
        ("a b --hepl", "post has no option --hepl; did you mean --help?"),
        ("a b --zebra", "post has no option --zebra; a key of a recipe has a dot, such as --method.target"),
        ("a b --stret x", "post has no option --stret; a key of a recipe has a dot, such as --method.target"),
        ("a b -w", "post does not take '-w'; see `sidestep post --help`"),
        ("a b --weight", "--weight needs a value; see `sidestep post --help`"),
        ("a b --weight much", "--weight must be a number, got 'much'; see `sidestep post --help`"),
        ("a b --zip-code 1.5", "--zip-code must be a whole number, got '1.5'; see `sidestep post --help`"),
        ("a b --tracked maybe", "--tracked must be true or false, got 'maybe'; see `sidestep post --help`"),
        ("a b --how fats", "--how must be one of slow, fast, got 'fats'; did you mean fast?"),
        ("a b --insured=yes", "--insured takes no value; see `sidestep post --help`"),
    ],
)
def test_mistakes_get_one_sentence_with_a_way_out(typed: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        arguments_of(COMMAND, typed.split())
    assert str(caught.value) == sentence


def test_a_command_without_recipes_has_no_settings_of_them() -> None:
    with pytest.raises(UsageError, match=r"post has no option --method\.target; see"):
        arguments_of(PLAIN, ["a", "b", "--method.target", "0.4"])


def test_every_option_of_a_command_needs_a_text() -> None:
    def silent(name: str, *, loud: bool = False) -> None:
        """Say nothing.

        Args:
            name: whose.
        """

    with pytest.raises(KeyError, match="loud"):
        command_of("silent", silent)


def test_values_of_the_wrong_type_are_not_python(tmp_path: Path) -> None:
    wrong: Any = "__import__('os')"
    with pytest.raises(UsageError, match="must be a number"):
        arguments_of(COMMAND, ["a", "b", "--weight", wrong])
