"""A judge as a signal: reading scores, means by hand, judges that are of no use, and going on after a kill."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from scoring_runs import Scoring
from tiny_models import save_tiny_model

from callbacks import JudgeSignal
from montessori_pl.cli.fit import main
from montessori_pl.data.records import (
    Example,
    Message,
    PreferencePair,
    Rejection,
    Score,
    Turn,
    append_records,
    read_records,
    stable_seed,
)
from montessori_pl.evaluation.judge_prompts import PROMPTS, load_prompt, parse_score, render_prompt
from montessori_pl.generation import (
    ClassroomJudge,
    Completion,
    GenerationBackend,
    Request,
    Sampling,
    TransformersBackend,
)
from montessori_pl.models.loading import ModelSource
from montessori_pl.stages import BuildPreferences, StageError

# Lightning's advice on loaders, which the command line silences too.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You are using a custom batch sampler"),
]

JUDGE = ModelSource("nowhere")
"""A model that the scripted engines need not find."""


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It is good.\nScore: 4", 4),
        ("Score: 0", 0),
        ("Score: 5/5", 5),
        ("Score: 4 / 5.", 4),
        ("score: 3", 3),
        ("  Score : 3  \r\n\n", 3),
        ("**Score:** 4", 4),
        ("**Score: 4/5**", 4),
        ("Score: **4**", 4),
        ("### Score: 2", 2),
        ("Score: 4\nI hope that this helps.", 4),
        ("Score: 2\nOn second thought:\nScore: 4", 4),
        ("", None),
        ("It is good.", None),
        ("4", None),
        ("Score: 10", None),
        ("Score: 6", None),
        ("Score: 4.5", None),
        ("Score: 4,5", None),
        ("Score: -1", None),
        ("Score: 05", None),
        ("Score: 4/10", None),
        ("Score: four", None),
        ("Score: <total>", None),
        ("Score: 3 Score: 4", None),
        ("Score: 3 or 4", None),
        ("Score: 4 for it is good", None),
        ("Score: 4\nScore: 10", None),
        ("I give it a Score: 4", None),
        ("Score: \u0664", None),
        ("Scores: 4", None),
    ],
)
def test_only_a_whole_number_on_a_line_of_its_own_is_a_score(text: str, score: int | None) -> None:
    assert parse_score(text) == score


def test_the_last_line_of_a_judgement_that_was_cut_does_not_count() -> None:
    """It may be the beginning of `Score: 4.5`."""
    assert parse_score("Score: 4", finished=False) is None
    assert parse_score("Score: 4\n", finished=False) == 4
    assert parse_score("Score: 4\nand so", finished=False) == 4


def test_score_within_reasoning_is_none() -> None:
    """A judge that is cut while it thinks has not judged, whatever it has tried on the way."""
    assert parse_score("<think>\nScore: 1\nBut wait, it is", finished=False) is None
    assert parse_score("<think>\nScore: 1\n</think>\nI cannot say.") is None
    assert parse_score("<think>\nScore: 1\n</think>\nAll hold.\nScore: 5") == 5


def test_prompts_hold_the_texts_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text('{"a": {instruction}} {response} {} {instruction}')
    example = Example(id="e", instruction="{response} {x", response=r"\1 {instruction}", system="be {brief}")
    assert render_prompt(load_prompt(str(path)), example) == (
        '{"a": be {brief}\n\n{response} {x} \\1 {instruction} {} be {brief}\n\n{response} {x'
    )
    plain = render_prompt(load_prompt("additive"), dataclasses.replace(example, system=""))
    assert "<instruction>\n{response} {x\n</instruction>\n\n<response>\n\\1 {instruction}\n</response>" in plain
    assert parse_score(plain) is None, "a judge that repeats the question gives no score"
    path.write_text("{instruction}|{response}")
    turns = dataclasses.replace(example, history=(Turn("user", "one"), Turn("assistant", "two")))
    assert render_prompt(load_prompt(str(path)), turns) == (
        "be {brief}\n\nUser: one\n\nAssistant: two\n\nUser: {response} {x|\\1 {instruction}"
    )
    path.write_text("{instruction}")
    with pytest.raises(ValueError, match=r"lacks \{response\}: write it where that text belongs"):
        load_prompt(str(path))
    with pytest.raises(ValueError, match="unknown judge prompt 'addditive': expected one of additive, or the path"):
        JudgeSignal("addditive")


class Scripted(GenerationBackend):
    """Says what it was told to, by example and number of the judgement, and remembers what it was asked."""

    def __init__(self, answers: dict[str, Sequence[str]], dies_at_call: int = 0) -> None:
        self.answers = {stable_seed("judge", id_, n): text for id_ in answers for n, text in enumerate(answers[id_], 1)}
        self.dies_at_call, self.calls = dies_at_call, 0
        self.asked: list[int] = []
        self.loaded = 0

    def load(self, source: ModelSource) -> None:
        assert source == JUDGE
        self.loaded += 1

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return "too much" not in messages[0]["content"]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.calls += 1
        if self.calls == self.dies_at_call:
            raise RuntimeError("killed")
        self.asked += [request.seed for request in requests]
        return [Completion(text=self.answers[one.seed], finished=True, num_tokens=1) for one in requests]

    def close(self) -> None:
        self.loaded -= 1


def said(*scores: int | None) -> list[str]:
    """Judgements with these scores; None holds none."""
    return [f"So be it.\nScore: {score}" if score is not None else "Who knows?" for score in scores]


def make_examples(responses: dict[str, str], samples_per_prompt: int = 2) -> list[Example]:
    return [
        Example(
            id=id_,
            instruction="what is it?",
            response=response,
            prompt_id=f"p{number // samples_per_prompt}",
            prompt="say it",
            completion=f"{id_} {response}",
        )
        for number, (id_, response) in enumerate(responses.items())
    ]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with room for the prompt; it is random, and what it says is noise."""
    return save_tiny_model(tmp_path_factory.mktemp("talker"), max_position_embeddings=2048)


@pytest.fixture
def score(tmp_path: Path, backbone: str) -> Scoring:
    return Scoring(tmp_path, backbone)


MIXED = {
    "e0": said(5, 4, 4),
    "e1": said(5, None, 3),
    "e2": said(None, None, 2),
    "e3": said(None, None, None),
    "e4": said(1, 1, 1),
    "e5": said(1, 1, 1),
}
LENGTHS = {"e0": "abcd", "e1": "abcdef", "e2": "ab", "e3": "abc", "e4": "a", "e5": "ab"}


def test_scores_are_means_of_what_could_be_read(score: Scoring) -> None:
    engine = Scripted(MIXED)
    score(JudgeSignal(judge=JUDGE, engine=engine), make_examples(LENGTHS))
    found = score.scores()

    assert {id_: one.value for id_, one in found.items()} == pytest.approx(
        {"e0": 13 / 3, "e1": 4, "e2": 2, "e4": 1, "e5": 1}
    )
    # (5, 4, 4) spreads by sqrt(1/3), hence 1/3 for the mean of three; (5, 3) by sqrt(2), hence 1.
    assert found["e0"].standard_error == pytest.approx(1 / 3)
    assert found["e1"].standard_error == pytest.approx(1)
    assert found["e2"].standard_error is None
    assert found["e4"].standard_error == 0
    assert found["e1"].details == pytest.approx(
        {"judgement_1": 5, "judgement_3": 3, "valid": 2, "spread": math.sqrt(2), "response_characters": 6}
    )
    assert found["e2"].details == {"judgement_3": 2, "valid": 1, "response_characters": 2}
    assert found["e1"].texts == tuple(MIXED["e1"])
    assert engine.loaded == 0, "it has been closed"


def test_what_is_said_of_all_scores(score: Scoring) -> None:
    """Of 18 judgements six hold no score; 1 is said six times of twelve. Of e0, e1, e4 and e5, which have several, two
    are unanimous. Prompts: e0 and e1 differ, of e2 and e3 one is scored, e4 and e5 tie."""
    metrics = score(JudgeSignal(judge=JUDGE, engine=Scripted(MIXED)), make_examples(LENGTHS))
    summary = metrics["signal"]

    assert summary == json.loads((score.root / "scores" / "signal.json").read_text())
    assert summary["histogram"] == {"0": 0, "1": 6, "2": 1, "3": 1, "4": 2, "5": 2}
    assert (summary["most_common_score"], summary["most_common_rate"]) == (1, 0.5)
    assert summary["failed_rate"] == pytest.approx(6 / 18)
    assert summary["unanimous_rate"] == 0.5
    assert summary["mean_standard_error"] == pytest.approx((1 / 3 + 1 + 0 + 0) / 4)
    # Scores 13/3, 4, 2, 1, 1 have the ranks 5, 4, 3, 1.5, 1.5; lengths 4, 6, 2, 1, 2 have 4, 5, 2.5, 1, 2.5. Around 3:
    # (2, 1, 0, -1.5, -1.5) and (1, 2, -.5, -2, -.5), whose product is 7.75; their squares sum to 9.5 each.
    assert summary["length_correlation"] == pytest.approx(7.75 / 9.5)
    assert summary["judge"] == "nowhere"
    assert metrics["unscored"] == {"no score": 1}
    assert metrics["count"] == 5
    assert (metrics["prompts_with_several"], metrics["tied_prompts"]) == (2, 1)


def test_what_has_no_score_is_never_paired_nor_asked_about_again(score: Scoring) -> None:
    signal = JudgeSignal(judge=JUDGE, engine=Scripted(MIXED))
    examples = make_examples(LENGTHS, samples_per_prompt=6)
    first = score(signal, examples)
    before = score.files()
    assert sorted(before) == ["scores.jsonl", "signal.json", "unscored.jsonl"]
    rejection = Rejection(id="e3", reason="no score", detail="none in 3 judgements", text="Who knows?", prompt_id="p0")
    assert read_records(score.root / "scores" / "unscored.jsonl", Rejection) == [rejection]

    engine = Scripted({})
    assert score(JudgeSignal(judge=JUDGE, engine=engine), examples) == first
    assert score.files() == before
    assert engine.calls == 0

    context = score.context("pairs", examples=score.root / "scores-data", scores=score.root / "scores")
    BuildPreferences("data", "scores", rule="best_worst").run(context)
    BuildPreferences("data", "scores", at_random=True, rule="best_worst").run(context)
    pairs = read_records(score.root / "pairs" / "pairs.jsonl", PreferencePair)
    assert pairs
    assert all("e3" not in (pair.chosen_id, pair.rejected_id) for pair in pairs)


def test_an_example_that_the_judge_has_no_room_for_is_left_unscored(score: Scoring) -> None:
    engine = Scripted({"e0": said(3), "e1": said(4)})
    examples = make_examples({"e0": "a", "long": "too much", "e1": "b"})
    metrics = score(JudgeSignal(judgements=1, judge=JUDGE, engine=engine), examples)
    assert metrics["unscored"] == {"too long for the judge": 1}
    assert {id_: one.value for id_, one in score.scores().items()} == {"e0": 3, "e1": 4}
    assert metrics["signal"]["failed_rate"] == pytest.approx(1 / 3)
    assert metrics["signal"]["mean_standard_error"] is None


TASKS = {f"e{n}": ("c b a", "a b c", "b", "sorry , not now")[n % 4] for n in range(24)}


def tasks() -> list[Example]:
    """What the classroom's judge knows, four samples for each prompt."""
    return [dataclasses.replace(one, instruction="reverse a b c") for one in make_examples(TASKS, 4)]


def test_neither_batches_nor_order_matter(score: Scoring) -> None:
    engine = ClassroomJudge(silence_rate=0.6)
    signal = JudgeSignal(judge=ModelSource("classroom/judge"), engine=engine, max_failed_rate=1)
    score(signal, tasks(), "each")
    score(signal, tasks()[::-1], "together", batch_tokens=10_000)
    assert score.scores("each") == score.scores("together")
    assert len({one.texts for one in score.scores("each").values()}) > 12
    each, together = (read_records(score.root / name / "unscored.jsonl", Rejection) for name in ("each", "together"))
    assert each == together[::-1] != []


def test_judged_by_the_classrooms_judge_right_answers_are_preferred(score: Scoring) -> None:
    score(JudgeSignal(judge=ModelSource("classroom/judge"), engine=ClassroomJudge()), tasks())
    context = score.context("pairs", examples=score.root / "scores-data", scores=score.root / "scores")
    BuildPreferences("data", "scores", rule="best_worst").run(context)
    pairs = read_records(score.root / "pairs" / "pairs.jsonl", PreferencePair)
    assert len(pairs) == 6
    assert sum(pair.chosen.endswith("c b a") for pair in pairs) >= 5


def test_a_killed_run_goes_on_with_the_same_bytes(score: Scoring) -> None:
    """Killed at each batch in turn, with a torn line behind what was written; nothing whole is asked about twice."""
    answers = {f"e{n}": said(n % 6, None if n % 3 else 2) for n in range(8)} | {"e5": said(None, None)}
    examples = make_examples({id_: "a" * (1 + n) for n, id_ in enumerate(answers)})
    whole = Scripted(answers)
    metrics = score(JudgeSignal(judgements=2, judge=JUDGE, engine=whole), examples, "whole")
    assert (whole.calls, len(whole.asked)) == (4, 16)
    for call in range(1, 5):
        name = f"killed-{call}"
        killed, resumed = Scripted(answers, dies_at_call=call), Scripted(answers)
        with pytest.raises(RuntimeError, match="killed"):
            score(JudgeSignal(judgements=2, judge=JUDGE, engine=killed), examples, name)
        assert killed.loaded == 0, "it has been closed"
        for part in ("scores.part0.jsonl", "unscored.part0.jsonl"):
            with open(score.root / name / part, "ab") as file:
                file.write('{"id": "tör'.encode()[:-1])  # torn within a character
        assert score(JudgeSignal(judgements=2, judge=JUDGE, engine=resumed), examples, name) == metrics
        assert score.files(name) == score.files("whole")
        assert killed.asked + resumed.asked == whole.asked


def test_a_kill_between_scores_and_what_has_none(score: Scoring) -> None:
    """The prompt is judged again as a whole; had its judge another opinion now, the score that was written stays."""
    examples = make_examples({"e0": "a", "e1": "b"})
    directory = score.context("scores").directory
    details = {"judgement_1": 4.0, "valid": 1.0, "response_characters": 1.0}
    written = Score(id="e0", value=4.0, details=details, texts=("Score: 4",))
    append_records(directory / "scores.part0.jsonl", [written])
    engine = Scripted({"e0": said(None), "e1": said(None)})
    score(JudgeSignal(judgements=1, max_same_rate=1, judge=JUDGE, engine=engine), examples)
    assert len(engine.asked) == 2
    assert score.scores() == {"e0": written}
    assert [one.id for one in read_records(directory / "unscored.jsonl", Rejection)] == ["e1"]


SAME = {f"e{n}": said(5, 5) for n in range(8)} | {"e7": said(5, 4)}


def test_a_judge_that_says_the_same_of_everything_stops_the_run(score: Scoring) -> None:
    """It is looked at from four examples on. Started again it stops at once, without a judge; under another limit the
    run goes on with what was judged."""
    examples = make_examples(dict.fromkeys(SAME, "a"))
    asked: list[int] = []
    for _ in range(2):
        engine = Scripted(SAME)
        with pytest.raises(
            ValueError,
            match=r"does not tell the examples apart: 8 of 8 judgements \(100%\) say 5, more than max_same_rate 0\.9 "
            r"allows, for example 'So be it\.\\nScore: 5'; take another judge or another prompt, or raise",
        ):
            score(JudgeSignal(judgements=2, judge=JUDGE, engine=engine, max_same_rate=0.9, min_examples=4), examples)
        assert engine.loaded == 0
        asked += engine.asked
    assert len(asked) == 8
    rest = Scripted(SAME)
    score(JudgeSignal(judgements=2, judge=JUDGE, engine=rest, max_same_rate=1, min_examples=4), examples)
    assert len(asked + rest.asked) == len(set(asked + rest.asked)) == 16
    assert len(score.scores()) == 8


def test_few_examples_are_looked_at_when_all_were_judged(score: Scoring) -> None:
    """Fifteen of sixteen judgements, 94%, say 5. Under a higher limit nobody is asked any more."""
    examples = make_examples(dict.fromkeys(SAME, "a"))
    with pytest.raises(ValueError, match=r"15 of 16 judgements \(94%\) say 5, more than max_same_rate 0\.9 allows"):
        score(JudgeSignal(judgements=2, judge=JUDGE, engine=Scripted(SAME), max_same_rate=0.9), examples)
    engine = Scripted({})
    metrics = score(JudgeSignal(judgements=2, judge=JUDGE, engine=engine), examples)
    assert engine.calls == 0
    assert metrics["signal"]["most_common_rate"] == 15 / 16


def test_a_judge_that_cannot_be_read_stops_the_run(score: Scoring) -> None:
    """Seven of twelve judgements hold no score; what is shown is one of them, and shortened."""
    answers = {f"e{n}": said(n, 3, None) for n in range(3)} | {"e3": ["well " * 100, *said(None, None)]}
    answers["e0"][1] = "Score: 3.5"
    examples = make_examples(dict.fromkeys(answers, "a"))
    sentence = (
        r"7 of 12 judgements \(58%\) hold no score, more than max_failed_rate 0\.5 allows; found, for example, "
        r"'Score: 3\.5'; take another judge, another prompt or other sampling\.max_tokens, or raise"
    )
    with pytest.raises(ValueError, match=sentence):
        score(JudgeSignal(judge=JUDGE, engine=Scripted(answers), max_failed_rate=0.5), examples)
    with pytest.raises(ValueError, match=r"3 of 3 .* for example, '(well ){40} \.\.\.'; take"):
        score(
            JudgeSignal(judge=JUDGE, engine=Scripted(answers)), [make_examples(dict.fromkeys(answers, "a"))[3]], "long"
        )


def test_without_any_score_there_is_no_pair(score: Scoring) -> None:
    """Where the user lets it through, the stage that pairs says so."""
    answers = {f"e{n}": said(None) for n in range(4)}
    signal = JudgeSignal(judgements=1, judge=JUDGE, engine=Scripted(answers), max_failed_rate=1)
    metrics = score(signal, make_examples(dict.fromkeys(answers, "a")))
    assert (metrics["count"], metrics["unscored"]) == (0, {"no score": 4})
    assert metrics["signal"]["most_common_score"] is None
    context = score.context("pairs", examples=score.root / "scores-data", scores=score.root / "scores")
    with pytest.raises(StageError, match="found no pair in 2 prompts with 0 scored examples"):
        BuildPreferences("data", "scores").run(context)


def test_a_language_model_judges(score: Scoring, talker: str) -> None:
    """A random one: its judgements are noise, and none holds a score."""
    sampling = Sampling(temperature=0.7, max_tokens=8)
    signal = JudgeSignal(sampling=sampling, judge=ModelSource(talker), engine=TransformersBackend(device="cpu"))
    with pytest.raises(ValueError, match=r"6 of 6 judgements \(100%\) hold no score, more than max_failed_rate 0\.5"):
        score(signal, make_examples({"e0": "a", "e1": "b"}))
    loose = JudgeSignal(sampling=sampling, judge=ModelSource(talker), max_failed_rate=1)
    assert score(loose, make_examples({"e0": "a", "e1": "b"}))["unscored"] == {"no score": 2}
    missing = JudgeSignal(judge=ModelSource(str(score.root / "missing")))
    with pytest.raises(ValueError, match=r"no tokenizer for the backbone '.*missing'"):
        score(missing, make_examples({"e0": "a"}), "other")


def test_the_student_judges_itself(score: Scoring, talker: str) -> None:
    """It says what the same weights say that are loaded as a judge: its fresh adapter changes nothing."""
    score.backbone = talker
    examples = make_examples({"e0": "a", "e1": "b", "e2": "c"}, 1)
    settings: dict[str, Any] = {"sampling": Sampling(temperature=0.7, max_tokens=8), "max_failed_rate": 1}
    assert score(JudgeSignal(**settings), examples, "itself")["signal"]["judge"] == "the student itself"
    score(JudgeSignal(**settings, judge=ModelSource(talker)), examples, "loaded")
    itself, loaded = (read_records(score.root / name / "unscored.jsonl", Rejection) for name in ("itself", "loaded"))
    assert itself == loaded
    assert len({one.text for one in itself}) == 3


def test_a_student_without_room_for_the_prompt_cannot_judge(score: Scoring) -> None:
    """The tiny student has 96 positions."""
    with pytest.raises(ValueError, match=r"6 of 6 .* found, for example, \"prompt and judgement are longer than "):
        score(JudgeSignal(), make_examples({"e0": "a", "e1": "b"}))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"judgements": 0}, "judgements: expected int >= 1 .*, found 0"),
        ({"sampling": Sampling(temperature=0)}, "3 judgements at temperature 0 would all be the same"),
        ({"max_same_rate": 1.5}, r"max_same_rate: expected float >= 0 and <= 1, found 1\.5"),
        ({"engine": ClassroomJudge()}, r"ClassroomJudge cannot let the student judge itself, .*: judge: \{backbone"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        JudgeSignal(**settings)


def test_the_shipped_prompt_asks_for_what_is_read() -> None:
    assert PROMPTS["additive"].endswith("Score: <total>")
    assert parse_score(PROMPTS["additive"].replace("<total>", "3")) == 3


FLATTERER = '''
from pathlib import Path

from montessori_pl.generation import Completion, GenerationBackend


class Flatterer(GenerationBackend):
    """Says the same of everything."""

    def load(self, source):
        assert source.backbone == "any"

    def fits(self, messages, sampling):
        return True

    def generate(self, requests, sampling):
        with open("asked.txt", "a") as file:
            file.writelines(f"{request.seed}\\n" for request in requests)
        return [Completion(text="Fine.\\nScore: 5", finished=True, num_tokens=4) for request in requests]

    def close(self):
        pass
'''


@pytest.mark.slow
def test_the_command_line_says_it_in_one_sentence_and_goes_on_under_another_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # `main` puts the working directory on it
    Path("my_engines.py").write_text(FLATTERER)
    rows = [{"instruction": f"reverse {letter} b", "response": f"b {letter}"} for letter in "abcdefgh"]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = {
        "class_path": "JudgeSignal",
        "init_args": {
            "judge": {"backbone": "any"},
            "engine": {"class_path": "my_engines.Flatterer"},
            "judgements": 2,
            "min_examples": 4,
        },
    }
    config = {
        "run": "run",
        "num_threads": 1,
        "student": {"class_path": "StudentModule", "init_args": {"backbone": "classroom/student"}},
        "teacher": {"class_path": "TeacherDPOModule", "init_args": {"backbone": "classroom/teacher"}},
        "generation": {"class_path": "TransformersBackend"},
        "data": {role: f"classroom/{role}[:8]" for role in ("seed_tasks", "reference", "test")},
        "trainer": {"logger": False, "accelerator": "cpu"},
        "recipe": {
            "recorded": {"class_path": "RecordedExamples", "init_args": {"source": "rows.jsonl"}},
            "judged": {
                "class_path": "ScoreExamples",
                "init_args": {"examples": "recorded", "batch_tokens": 1, "signal": judge},
            },
        },
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def fit(*options: str) -> tuple[Any, str, list[str]]:
        try:
            main(["fit", "--config", "recipe.yaml", *options])
            status: Any = 0
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err, Path("asked.txt").read_text().split()

    sentence = (
        "error: the judge does not tell the examples apart: 8 of 8 judgements (100%) say 5, more than max_same_rate "
        "0.95 allows, for example 'Fine.\\nScore: 5'; take another judge or another prompt, or raise max_same_rate, "
        "and what was judged is kept\nthe traceback is in run/error.log\n"
    )
    status, error, asked = fit()
    assert (status, error, len(asked)) == (2, sentence, 8)
    assert fit() == (2, sentence, asked)
    status, error, asked = fit("--recipe.judged.signal.init_args.max_same_rate", "1")
    assert (status, error) == (0, "")
    assert len(asked) == len(set(asked)) == 16
    metrics = json.loads(Path("run/iteration_1/judged/metrics.json").read_text())
    assert metrics["signal"]["histogram"] == {"0": 0, "1": 0, "2": 0, "3": 0, "4": 0, "5": 16}
