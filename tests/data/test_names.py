"""Names that become directories stay in theirs."""

import pytest

from montessori_pl.data.names import check_name


@pytest.mark.parametrize("name", ["a", "warmup_2", "Lehrer-ä", "gpt-4.1", "9", "a" * 100])
def test_names(name: str) -> None:
    check_name(name, "a teacher")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../../../x", "/etc/x", "a/b", "a\\b", "-rf", ".hidden", "~", "$HOME", "a:b"),
        *("a b", "a\n", "a\0", "\x1b[2J", "a" * 101, "ä" * 51, 3, None),
    ],
)
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(ValueError, match=r"^a teacher cannot be called .* becomes a directory"):
        check_name(name, "a teacher")


def test_names_that_are_taken() -> None:
    with pytest.raises(ValueError, match=r"a stage cannot be called 'base': .*; 'latest' and 'base' are taken"):
        check_name("base", "a stage", taken=("latest", "base"))
