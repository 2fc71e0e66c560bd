"""The page in a browser: no error, nothing loaded, hostile texts shown as texts, lists that work, both themes."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Tab, find_browser, tab
from hand_made_runs import HOSTILE, write_run

from montessori_pl.__main__ import main

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt install chromium")


@dataclasses.dataclass
class Pages:
    """Pages of `report`, and a tab to open them in."""

    tab: Tab
    hostile: Path
    """On a run all of whose texts are hostile."""
    two: Path
    """On two runs."""

    def text(self, selector: str) -> str:
        """What an element says."""
        found: str = self.tab.run(f"document.querySelector({selector!r}).innerText")
        return found

    def count(self, selector: str) -> int:
        """How many elements there are."""
        found: int = self.tab.run(f"document.querySelectorAll({selector!r}).length")
        return found

    def choose(self, selector: str, value: str) -> None:
        """Choose an option, as a reader does."""
        place = f"document.querySelector({selector!r})"
        self.tab.run(f"{place}.value = {value!r}; {place}.dispatchEvent(new Event('change'))")

    def click(self, selector: str) -> None:
        """Click on an element."""
        self.tab.run(f"document.querySelector({selector!r}).click()")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    assert BROWSER is not None
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "hostile <b>", text=HOSTILE, count=8, warning=HOSTILE[:200])
    main(["report", str(root / "hostile <b>"), "--output", str(root / "hostile.html")])
    for seed, name in enumerate(("ours", "theirs")):
        write_run(root / name, seed, count=40, lr=seed)
    main(
        ["report", str(root / "ours"), str(root / "theirs"), "--baseline", "theirs", "--output", str(root / "two.html")]
    )
    with tab(BROWSER, tmp_path_factory.mktemp("profile")) as one:
        yield Pages(one, root / "hostile.html", root / "two.html")


@pytest.fixture(autouse=True)
def nothing_goes_wrong(pages: Pages) -> Iterator[None]:
    """No error on the console, and nothing is asked for but the pages themselves."""
    pages.tab.errors.clear()
    pages.tab.requests.clear()
    yield
    pages.tab.call("Runtime.evaluate", expression="1")  # what was said before it has been heard then
    assert pages.tab.errors == []
    assert set(pages.tab.requests) <= {page.absolute().as_uri() for page in (pages.hostile, pages.two)}


def test_hostile_texts_are_texts(pages: Pages) -> None:
    pages.tab.open(pages.hostile)
    assert pages.tab.run("window.hacked") is None
    assert pages.count("img, iframe, object, b") == 0
    assert pages.count("script") == 2, "the data and the page's own"
    shown = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'></script><!--"
    assert pages.text("h1") == "Report: hostile <b>"
    for place in (
        "[data-list=items]",
        "[data-list=scored]",
        "[data-list=pairs]",
        "[data-list=samples]",
        "[data-list=rejections]",
        ".warnings",
    ):
        assert shown in pages.text(place), place
    assert r"\u202eright to left\u202c" in pages.text("[data-list=rejections]")
    assert r"\x1b[2J \ud83d =1+1 {{x}} ${x}" in pages.text("[data-list=rejections]")
    assert "more characters)" in pages.text("[data-list=rejections] .row pre")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(pages: Pages, width: int) -> None:
    pages.tab.open(pages.hostile, width=width)
    assert pages.tab.run("document.documentElement.scrollWidth") <= width


def test_themes(pages: Pages) -> None:
    colours = []
    for dark in (False, True):
        pages.tab.open(pages.hostile, dark=dark)
        style = "getComputedStyle(document.querySelector({!r})).{}"
        colours.append(
            [pages.tab.run(style.format(*one)) for one in (("body", "backgroundColor"), (".chart .line", "stroke"))]
        )
    assert colours[0][0] == "rgb(255, 255, 255)"
    assert all(light != dark for light, dark in zip(*colours, strict=True))


def test_items_that_got_worse(pages: Pages) -> None:
    """From base to trained one item got worse, and two from warm-up to trained got better."""
    pages.tab.open(pages.two)
    items = "#run-0 [data-list=items]"
    assert pages.text(f"{items} .count") == "items: 8, page 1 of 2"
    assert pages.count(f"{items} .row") == 5
    pages.click(f"{items} button:nth-of-type(2)")
    assert pages.text(f"{items} .count") == "items: 8, page 2 of 2"
    assert pages.count(f"{items} .row") == 3
    pages.choose(f"{items} label:nth-of-type(1) select", "worse")
    assert pages.text(f"{items} .count") == "items: 1, page 1 of 1"
    assert "base: right" in pages.text(f"{items} .row")
    pages.choose(f"{items} label:nth-of-type(1) select", "better")
    pages.choose(f"{items} label:nth-of-type(2) select", "warmup")
    assert pages.text(f"{items} .count") == "items: 2, page 1 of 1"


def test_pairs_are_searched_and_ordered(pages: Pages) -> None:
    pages.tab.open(pages.two)
    pairs = "#run-0 [data-list=pairs]"
    assert pages.text(f"{pairs} .row h4").startswith("margin 39")
    pages.choose(f"{pairs} label:nth-of-type(2) select", "small")
    assert pages.text(f"{pairs} .row h4").startswith("margin 1,")
    assert pages.text(f"{pairs} .cell.good mark") == "1", "the word in which chosen and rejected differ"
    assert "iteration_1/influence: -2 ± 0.5" in pages.text(f"{pairs} .cell.good")
    search = f"document.querySelector({f'{pairs} input'!r})"
    pages.tab.run(f"{search}.value = 'AGAIN 12<'; {search}.dispatchEvent(new Event('input'))")
    assert pages.text(f"{pairs} .count") == "pairs: 1, page 1 of 1"


@pytest.mark.parametrize(
    ("ours", "theirs", "marks"),
    [
        ("sort 3 1", "sort 3 2", ["1"]),
        ("<a>one</a>", "<a>two</a>", ["one"]),
        ("你好世界", "你好人界", ["世"]),
        ("a b c", "a b c", []),
        ("", "a", []),
        ("café, naïve", "cafe, naïve", ["café"]),
        ("x " * 5000, "y", []),
    ],
)
def test_words_that_differ_are_marked(pages: Pages, ours: str, theirs: str, marks: list[str]) -> None:
    """All of the text stays; above the limit of length nothing is marked."""
    pages.tab.open(pages.two)
    made = pages.tab.run(
        f"(() => {{ const made = marked({json.dumps(ours)}, {json.dumps(theirs)}); "
        "return [made.textContent, ...[...made.querySelectorAll('mark')].map((one) => one.textContent)]; })()"
    )
    assert made == [ours, *marks]


def test_rejections_of_a_reason(pages: Pages) -> None:
    pages.tab.open(pages.two)
    place = "#run-0 [data-list=rejections]"
    assert pages.text(f"{place} .count") == "samples: 4, page 1 of 1"
    pages.choose(f"{place} div .controls label:nth-of-type(1) select", "near duplicate")
    assert pages.text(f"{place} .count") == "samples: 2, page 1 of 1"


def test_runs_are_chosen(pages: Pages) -> None:
    pages.tab.open(pages.two)
    assert pages.text(".all .verdict").startswith("ours and theirs are not told apart in accuracy")
    shown = "[...document.querySelectorAll('.run')].map((one) => !one.hidden)"
    assert pages.tab.run(shown) == [True, False]
    pages.choose("#run", "1")
    assert pages.tab.run(shown) == [False, True]


@pytest.mark.slow
def test_figures_have_names_and_stay_within_their_frames(pages: Pages) -> None:
    pages.tab.open(pages.two)
    assert pages.tab.run("[...document.querySelectorAll('svg.chart')].every((one) => one.getAttribute('aria-label'))")
    outside = """[...document.querySelectorAll('#run-0 svg.chart, .all svg.chart')].flatMap((chart) => {
        const frame = chart.getBoundingClientRect();
        return [...chart.querySelectorAll('text, circle, rect')].filter((one) => {
            const box = one.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1
                || box.top < frame.top - 1;
        }).map((one) => chart.getAttribute('aria-label') + ': ' + one.textContent);
    })"""
    assert pages.tab.run(outside) == []
