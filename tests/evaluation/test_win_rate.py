"""The win rate against another side, with a scripted judge and by hand."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from stage_runs import Killed
from tiny_models import save_tiny_reward_model

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Message, read_records
from montessori_pl.evaluation import WinRate, win_rate
from montessori_pl.evaluation.outputs import read_outputs
from montessori_pl.evaluation.pairwise import (
    Judgement,
    arena_hard_score,
    load_pairwise_prompt,
    parse_verdict,
    render_pair,
    win_rates,
)
from montessori_pl.evaluation.win_rate import JUDGEMENTS
from montessori_pl.generation import (
    ClassroomJudge,
    Completion,
    GenerationBackend,
    Request,
    Sampling,
    TransformersBackend,
)
from montessori_pl.generation.reward_model import Reward, RewardModel, RewardModelSource
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.fingerprint import pinned
from montessori_pl.stats import length_controlled

JUDGE = ModelSource("the-judge")
STUDENT = ModelSource("mine")


class Student(GenerationBackend):
    """Answers with its name and the question; has no room for what is longer than ten characters."""

    loaded: list[str]

    def __init__(self) -> None:
        Student.loaded = []

    def load(self, source: ModelSource) -> None:
        self.source = source
        Student.loaded.append(source.backbone)

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return len(messages[-1]["content"]) <= 10

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        assert sampling.temperature == 0
        name = self.source.backbone
        return [Completion(text=f"{name} {r.messages[-1]['content']}", finished=True, num_tokens=1) for r in requests]

    def close(self) -> None:
        del self.source


class Judge(GenerationBackend):
    """Says of each item what a table has for both orders, the student's answer first and then second."""

    def __init__(self, table: Mapping[str, tuple[str, str]], dies_at: int = -1) -> None:
        self.table, self.dies_at = table, dies_at
        self.events: list[str] = []
        self.asked: list[Request] = []

    def set_cache_dir(self, directory: Path) -> None:
        self.events.append(f"keep {directory.name}")

    def load(self, source: ModelSource) -> None:
        self.events.append(f"load {source.backbone}")

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return "<instruction>\ntoo long\n" not in messages[-1]["content"]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        return [self._judge(request) for request in requests]

    def close(self) -> None:
        self.events.append("close")

    def _judge(self, request: Request) -> Completion:
        if len(self.asked) == self.dies_at:
            raise Killed
        self.asked.append(request)
        prompt = request.messages[-1]["content"]
        item, a = (prompt.split(f"<{tag}>\n")[1].split(f"\n</{tag}>")[0] for tag in ("instruction", "answer_a"))
        verdict = self.table[item][not (a.startswith("mine") or not a)]
        return Completion(text=f"Well.\n[[{verdict}]]", finished=True, num_tokens=5)


def rows_of(*instructions: str) -> list[dict[str, str]]:
    return [{"instruction": text, "response": f"theirs {text}"} for text in instructions]


def sources(directory: Path, rows: Sequence[Mapping[str, str]]) -> DataSources:
    path = directory / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSources(seed_tasks=str(path), reference=str(path), test=str(path))


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested elsewhere; a thousand fits take a second."""
    monkeypatch.setattr(length_controlled, "NUM_RESAMPLES", 50)


ITEMS = ("won", "lost", "tie", "first", "half tie", "unread", "too long", "far too long", "same")
TABLE = {
    "won": ("A", "B"),
    "lost": ("B", "A"),
    "tie": ("C", "C"),
    "first": ("A", "A"),  # whoever stands first: both orders disagree
    "half tie": ("A", "C"),
    "unread": ("A", "?"),
    "far too long": ("B", "A"),  # no room for an answer: an empty one
}


@pytest.fixture
def data(tmp_path: Path) -> DataSources:
    return sources(tmp_path, [*rows_of(*ITEMS[:-1]), {"instruction": "same", "response": "mine same"}])


def test_orders_ties_and_what_cannot_be_read_by_hand(data: DataSources, tmp_path: Path) -> None:
    """1, 0, 1/2, 1/2, 1/2, two left out, 0, and 1/2 for the same text: 3 of 7."""
    judge = Judge(TABLE)
    evaluator = WinRate(JUDGE, judge)
    evaluator.requests, evaluator.directory = tmp_path / "requests", tmp_path / "trained" / "WinRate"
    found = evaluator.evaluate(STUDENT, data, Student)
    assert found["win_rate"] == pytest.approx(3 / 7)
    variance = ((4 / 7) ** 2 + 2 * (3 / 7) ** 2 + 4 * (1 / 14) ** 2) / 6
    assert found["win_rate_standard_error"] == pytest.approx(math.sqrt(variance / 7))
    assert 0 < found["win_rate_low"] < 3 / 7 < found["win_rate_high"] < 1
    assert found["judged_rate"] == 7 / 9
    assert found["unparsed_judgements"] == 3  # one of `unread`, and both of what the judge has no room for
    assert found["order_agreement_rate"] == 5 / 7
    assert judge.events == ["keep judge", "load the-judge", "close"]
    assert len({request.seed for request in judge.asked}) == len(judge.asked) == 14
    annotations = json.loads((evaluator.directory / "annotations.json").read_text())
    assert [one["preference"] for one in annotations] == [2, 1, 1.5, 1.5, 1.5, None, None, 1, 1.5]
    assert annotations[0] == {
        "instruction": "won",
        "output_1": "theirs won",
        "generator_1": "test set",
        "output_2": "mine won",
        "generator_2": "mine",
        "annotator": "the-judge",
        "preference": 2,
    }


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    silent = Judge(dict.fromkeys("ab", ("?", "A")))
    with pytest.raises(ValueError, match=r"the-judge gave no item .* verdict .* in both orders; .*found, .*Well"):
        WinRate(JUDGE, silent).evaluate(STUDENT, sources(tmp_path, rows_of("a", "b")), Student)


@pytest.mark.parametrize("dies_at", [pytest.param(0, marks=pytest.mark.slow), 5])
def test_a_killed_judgement_goes_on(data: DataSources, tmp_path: Path, dies_at: int) -> None:
    """Nothing that was committed is asked again, and the files are those of an undisturbed evaluation."""

    def evaluator(judge: Judge, name: str) -> WinRate:
        made = WinRate(JUDGE, judge, items_per_batch=2)
        made.directory = tmp_path / name
        return made

    whole = evaluator(Judge(TABLE), "whole")
    expected = whole.evaluate(STUDENT, data, Student)
    with pytest.raises(Killed):
        evaluator(Judge(TABLE, dies_at), "killed").evaluate(STUDENT, data, Student)
    again = Judge(TABLE)
    assert evaluator(again, "killed").evaluate(STUDENT, data, Student) == expected
    assert Student.loaded == ["mine"], "answers were there before the judge was asked"
    assert len(again.asked) == 14 - dies_at // 4 * 4
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()}
    assert len(read_records(tmp_path / "whole" / JUDGEMENTS, Judgement)) == len(ITEMS)


def test_against_another_student_of_the_recipe(tmp_path: Path) -> None:
    judge = Judge({"a": ("A", "B"), "b": ("B", "A")})
    evaluator = WinRate(JUDGE, judge, against="warmup")
    assert evaluator.other_students() == ["warmup"]
    evaluator.other_sources = {"warmup": ModelSource("early")}
    found = evaluator.evaluate(STUDENT, sources(tmp_path, rows_of("a", "b")), Student)
    assert found["win_rate_against_warmup"] == 0.5
    assert "early a" in judge.asked[0].messages[-1]["content"]
    found = evaluator.evaluate(ModelSource("early"), sources(tmp_path, rows_of("a", "b")), Student)
    assert (found["win_rate_against_warmup"], len(judge.asked)) == (0.5, 4), "itself: nothing is asked"


class TestAgainstFile:
    """Outputs in AlpacaEval's form."""

    def test_by_instruction(self, tmp_path: Path) -> None:
        rows = [{"instruction": f"{one}\n", "output": f"o{one}", "generator": "g"} for one in "bac"]
        (tmp_path / "other.json").write_text(json.dumps(rows))
        judge = Judge({"a": ("A", "B"), "b": ("B", "A")})
        evaluator = WinRate(JUDGE, judge, against=str(tmp_path / "other.json"))
        assert evaluator.other_students() == []
        assert (
            evaluator.evaluate(STUDENT, sources(tmp_path, rows_of("a", "b")), Student)["win_rate_against_other"] == 0.5
        )
        assert "<answer_b>\noa\n" in judge.asked[0].messages[-1]["content"]

    def test_in_arena_hards_form(self, tmp_path: Path) -> None:
        rows = [
            {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": {"answer": f"o{one}"}}]}
            for one in "ba"
        ]
        (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        items = sources(tmp_path, rows_of("a", "b")).read("test")
        assert read_outputs(str(tmp_path / "other.jsonl"), items) == ["oa", "ob"]

    def test_half_of_a_surrogate_pair_is_no_end_of_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "other.json").write_text('[{"instruction": "a", "output": "\\ud83d"}]')
        evaluator = WinRate(JUDGE, Judge({"a": ("A", "B")}), against=str(tmp_path / "other.json"))
        evaluator.directory = tmp_path / "WinRate"
        evaluator.evaluate(STUDENT, sources(tmp_path, rows_of("a")), Student)
        (annotation,) = json.loads((tmp_path / "WinRate" / "annotations.json").read_text())
        assert annotation["output_1"] == "\N{REPLACEMENT CHARACTER}"

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ([{"instruction": "a", "output": "x"}], r"other.json has no output for 1 of the 2 items .* 'b'; .* has 1"),
            (
                [{"instruction": "a", "completion": "x"}],
                r"row 1: expected the texts instruction and output, found",
            ),
            (["a"], "row 1: expected the texts instruction and output, found str"),
        ],
    )
    def test_that_does_not_fit(self, tmp_path: Path, rows: list[object], said: str) -> None:
        (tmp_path / "other.json").write_text(json.dumps(rows))
        evaluator = WinRate(JUDGE, Judge({}), against=str(tmp_path / "other.json"))
        with pytest.raises(ValueError, match=f"^against: .*{said}"):
            evaluator.evaluate(STUDENT, sources(tmp_path, rows_of("a", "b")), Student)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[A]]", "A"),
        ("because\n**[[B]]**\n", "B"),
        ("My final verdict is: [[C]]", "C"),
        ("[[A]] would be wrong\n[[B]]", "B"),
        ("[[B]]\nThis is because of the facts.", "B"),
        ("[[A]]\n[[A]] or [[B]]", None),
        ("[[D]]", None),
        ("[A]", None),
        ("A", None),
        ("", None),
        ("<think>[[A]]</think>\n[[B]]", "B"),
        ("<think>[[A]]", None),
        ("[[A>>B]]", "A>>B"),
        ("[[B<<A]]", "A>>B"),
        ("[[B>A]]", "B"),
        ("[[A<B]]", "B"),
        ("[[A=B]]", "C"),
        ("[[B>>A]]", "B>>A"),
        ("[[A>A]]", None),
        ("[[A>>B]] or [[A>B]]", None),
        ("[[A>B]], or [[B<A]]", "A"),
    ],
)
def test_verdicts(text: str, verdict: str | None) -> None:
    assert parse_verdict(text) == verdict


def test_a_verdict_on_a_line_that_was_cut_does_not_count() -> None:
    assert parse_verdict("so\n[[A]]", finished=False) is None
    assert parse_verdict("[[A]]\nfor", finished=False) == "A"


def graded(*verdicts: tuple[str, str]) -> list[Judgement]:
    return [Judgement(id=str(n), verdicts=both, texts=("x", "y")) for n, both in enumerate(verdicts)]  # type: ignore[arg-type]


def test_arena_hards_score_by_hand() -> None:
    """Three votes for, one for; three against, a half: 4.5 of 8, where the win rate is half.

    The last item is left out by both.
    """
    judgements = graded(("A>>B", "B"), ("B>>A", "C"), ("A", None))  # type: ignore[arg-type]
    assert arena_hard_score(judgements) == {"arena_hard_score": 4.5 / 8}
    assert win_rates(judgements, ["a"] * 3, ["b"] * 3)["win_rate"] == 0.75  # the second item is a tie of two orders
    many = arena_hard_score(graded(*[("A>>B", "B>>A"), ("B", "A"), ("C", "C")] * 20), "_against_base")
    assert many["arena_hard_score_against_base"] == pytest.approx((6 + 0 + 1) / (6 + 2 + 2))
    low, high = (many[f"arena_hard_score_against_base_{end}"] for end in ("low", "high"))
    assert 0.5 < low < 0.7 < high < 0.9


def test_arena_hards_score_is_that_of_its_code(tmp_path: Path) -> None:
    """Its rule, written down as its code has it, on the file that it reads."""
    weight = 3
    scores = {"A>B": [1], "A>>B": [1] * weight, "A=B": [0.5], "B>A": [0], "B>>A": [0] * weight}
    verdicts = [(a, b) for a in ("A", "B", "C", "A>>B", "B>>A") for b in ("A", "B", "C", "A>>B", "B>>A")]
    evaluator = WinRate(JUDGE, Judge({str(n): both for n, both in enumerate(verdicts)}), prompt="graded")
    evaluator.directory = tmp_path / "WinRate"
    data = sources(tmp_path, rows_of(*map(str, range(len(verdicts)))))
    found = evaluator.evaluate(STUDENT, data, Student)
    votes: list[float] = []
    for line in (tmp_path / "WinRate" / "model_judgment.jsonl").read_text().splitlines():
        first, second = json.loads(line)["games"]
        votes += scores[second["score"]] + [1 - one for one in scores[first["score"]]]
    assert found["arena_hard_score"] == pytest.approx(sum(votes) / len(votes))
    assert "[[B>>A]]" in evaluator.template


def test_longer_answers_are_not_better_at_equal_lengths() -> None:
    """The judge likes what is longer, and the student is longer in three of four items: half, not three quarters."""
    judgements = [Judgement(id=str(n), verdicts=("A", "B") if n % 4 else ("B", "A"), texts=("", "")) for n in range(80)]
    found = win_rates(judgements, ["long answer" if n % 4 else "x" for n in range(80)], ["middle"] * 80)
    assert found["win_rate"] == 0.75
    assert found["length_controlled_win_rate"] == pytest.approx(0.5, abs=0.1)
    assert found["length_controlled_win_rate_low"] <= found["length_controlled_win_rate"]


def test_a_reward_model_judges(tmp_path: Path) -> None:
    """The answer with the higher reward wins; the same text is a tie."""
    source = RewardModelSource(save_tiny_reward_model(tmp_path / "rewards"), batch_size=2)
    rows = [*rows_of("a", "b", "c", "d"), {"instruction": "e", "response": "mine e"}]
    evaluator = WinRate(reward_model=source)
    evaluator.directory = tmp_path / "WinRate"
    evaluator.check_environment()
    data = sources(tmp_path, rows)
    found = evaluator.evaluate(STUDENT, data, Student)
    model, expected = RewardModel(source, torch.device("cpu")), 0.5
    for example in data.read("test")[:4]:
        texts = (f"mine {example.instruction}", example.response)
        ours, theirs = model.rewards(
            [[*example.messages()[:-1], {"role": "assistant", "content": text}] for text in texts]
        )
        expected += ours.value > theirs.value
    assert found["win_rate"] == expected / 5
    assert (found["judged_rate"], found["unparsed_judgements"]) == (1, 0)
    for arguments in ({}, {"judge": JUDGE, "reward_model": source}):
        with pytest.raises(ValueError, match="set judge, or reward_model, and not both"):
            WinRate(**arguments)


def test_rewards_that_are_no_numbers_are_no_verdicts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One answer in each of the first two pairs has none; the third pair is won."""
    values = {"theirs a": math.nan, "mine b": math.nan, "mine c": 1.0}

    class Broken:
        def __init__(self, *settings: object) -> None:
            pass

        def rewards(self, conversations: Sequence[Sequence[Message]]) -> list[Reward]:
            return [Reward(values.get(messages[-1]["content"], 0.0), 0) for messages in conversations]

        def close(self) -> None:
            pass

    monkeypatch.setattr(win_rate, "RewardModel", Broken)
    evaluator = WinRate(reward_model=RewardModelSource("rewards"))
    found = evaluator.evaluate(STUDENT, sources(tmp_path, rows_of("a", "b", "c")), Student)
    assert (found["win_rate"], found["judged_rate"]) == (1, pytest.approx(1 / 3))
    with pytest.raises(ValueError, match=r"the judge rewards gave no item .*; its rewards must be numbers, found, for"):
        evaluator.evaluate(STUDENT, sources(tmp_path, rows_of("a", "b")), Student)


def test_few_verdicts_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of two is half of them; one of three is less, and a single one has no standard error."""
    judge = Judge({"a": ("A", "B"), "b": ("?", "B"), "c": ("?", "B")})
    WinRate(JUDGE, judge).evaluate(STUDENT, sources(tmp_path, rows_of("a", "b")), Student)
    assert not caplog.text
    found = WinRate(JUDGE, judge).evaluate(STUDENT, sources(tmp_path, rows_of("a", "b", "c")), Student)
    assert "the judge the-judge gave 1 of 3 items a verdict in both orders; the win rate is that of" in caplog.text
    assert found["win_rate"] == 1
    assert "win_rate_standard_error" not in found


@pytest.mark.parametrize(
    ("against", "name"),
    [
        ("answers/gpt-4.1.json", "win_rate_against_gpt-4.1"),
        ("llama-3.1-8b.jsonl.gz", "win_rate_against_llama-3.1-8b"),
        ("gpt-4.parquet", "win_rate_against_gpt-4"),
        ("base", "win_rate_against_base"),
        (None, "win_rate"),
    ],
)
def test_names_of_the_other_side(against: str | None, name: str) -> None:
    """Versions are no endings."""
    assert f"win_rate{WinRate(JUDGE, against=against)._suffix}" == name


def test_a_file_of_outputs_is_known_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    for against, known in ((str(tmp_path / "other.json"), "other.json (content "), ("warmup", "warmup")):
        settings = {"class_path": "montessori_pl.evaluation.WinRate", "init_args": {"against": against}}
        assert known in pinned(settings)["init_args"]["against"]
    assert "content" not in pinned(settings)["init_args"]["against"]


def test_prompt_of_ones_own(tmp_path: Path, data: DataSources) -> None:
    path = tmp_path / "judge.txt"
    path.write_text("Q {instruction} 1 {answer_a} 2 {answer_b}")
    (example, *_) = data.read("test")
    assert render_pair(load_pairwise_prompt(str(path)), example, "{answer_b}", "y") == "Q won 1 {answer_b} 2 y"
    path.write_text("Q {instruction} 1 {answer_a}")
    with pytest.raises(ValueError, match=r"lacks \{answer_b\}: write it"):
        WinRate(JUDGE, prompt=str(path))
    with pytest.raises(
        ValueError, match="unknown judge prompt 'additive': expected one of pairwise, graded, or the path"
    ):
        WinRate(JUDGE, prompt="additive")


def test_the_classrooms_teacher_wins_no_more_than_half_against_right_answers() -> None:
    """It answers nearly as the test set does; the student base, which knows half of the tasks, wins less often."""
    data = DataSources("classroom/seed_tasks", "classroom/reference", "classroom/test[:60]")
    evaluator = WinRate(ModelSource("classroom/judge"), ClassroomJudge(), max_tokens=24)
    rates = {
        name: evaluator.evaluate(ModelSource(f"classroom/{name}"), data, TransformersBackend)["win_rate"]
        for name in ("teacher", "student")
    }
    assert 0.4 < rates["teacher"] < 0.6
    assert rates["student"] < rates["teacher"] - 0.1
