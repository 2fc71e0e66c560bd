"""`export` on run directories that are written by hand: formats, other trainers that read them, the card, mistakes."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, load_dataset, load_from_disk
from huggingface_hub import DatasetCard
from tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from montessori_pl.__main__ import main
from montessori_pl.chat import ChatFormat
from montessori_pl.data import encode_pairs
from montessori_pl.readers import read_examples
from montessori_pl.records import Example, PreferencePair, Record, Rejection, Score
from montessori_pl.workspace import Workspace

TEACHER = "org/teacher + aligned"
ADDRESS = "http://127.0.0.1:8000"
WRITING = {
    "num_examples": 4,
    "instruction_sampling": {"temperature": 1.0, "top_p": 0.9},
    "instruction_filter": {"keywords": ["plot", "go to"]},
    "response_filter": {"min_characters": 1, "allow_unfinished": True},
    "max_similarity": 0.7,
    "decontaminate": True,
}
WARNING = "after 512 completions the writing had moved beyond the limits"

Export = Callable[..., str]


def example(number: int, instruction: str, response: str, **changes: Any) -> Example:
    """The first sample of a prompt."""
    return Example(
        id=f"data-{number}",
        instruction=instruction,
        response=response,
        **{
            "prompt_id": f"prompt-{number}",
            "prompt": "write a task.",
            "completion": f"<instruction>{instruction}</instruction>",
            "teacher": TEACHER,
            "seed_ids": ("seed-1", "seed-2"),
            **changes,
        },
    )


EXAMPLES = [
    example(0, "what is a cat?", "an animal."),
    example(1, "Übersetze „Katze“\u2028ins 日本語", "猫 😺\n\nneko", round=1),
    example(2, "name a letter", " b ", teacher="org/teacher", completion_finished=False),
    example(3, "why?", "because it is so."),
]
RECORDED = [
    Example(id="a", instruction="say hello", response="hello", system="be kind"),
    Example(id="b", instruction="say goodbye", response="goodbye"),
]
SCORES = [Score(id="data-0", value=0.5, standard_error=0.25, terms=(0.25, 0.75)), Score(id="data-1", value=-1.0)]


def pair(number: int, chosen: str, rejected: str, **changes: Any) -> PreferencePair:
    """Two completions of one prompt."""
    return PreferencePair(
        id=f"pair-{number}",
        prompt="write a task.",
        chosen=chosen,
        rejected=rejected,
        chosen_id="data-0",
        rejected_id="data-2",
        margin=0.5 + number,
        weight=0.25,
        **changes,
    )


PAIRS = [
    pair(0, "name a cat.", "no"),
    pair(1, "name a dog and a", "why", chosen_finished=False),
    pair(2, "is it so?", "it is ä"),
    pair(3, "who?", "who is it that", rejected_finished=False),
]


class HandMade:
    """Writes the directory of one run, stage by stage, as the program does."""

    def __init__(self, path: Path | str) -> None:
        self.workspace = Workspace(Path(path))
        self.workspace.root.mkdir(parents=True)

    def begin(self, key: str, what: str, settings: dict[str, Any], inputs: Sequence[str], **named: str) -> None:
        """Begin a stage; `inputs` are `setting=key` of stages that have finished, others are given by name."""
        read = {setting: f"{key} {self.workspace.digest(key)}" for setting, key in (one.split("=") for one in inputs)}
        pinned = {
            "seed_everything": 42,
            f"recipe.{key.split('/')[1]}": {"class_path": f"montessori_pl.stages.{what}", "init_args": settings},
            "generation": {"class_path": "engines.Remote", "init_args": {"address": ADDRESS}},
            "data": {"seeds": "seeds.jsonl"},
        }
        self.workspace.begin(key, pinned, {**read, **named})

    def add(
        self,
        key: str,
        what: str,
        files: dict[str, Sequence[Record]],
        metrics: dict[str, Any],
        settings: dict[str, Any] | None = None,
        inputs: Sequence[str] = (),
        **named: str,
    ) -> None:
        """Write a stage and finish it; its kind is the first file's name."""
        self.begin(key, what, settings or {}, inputs, **named)
        directory = self.workspace.directory(key)
        for name, records in files.items():
            text = "".join(record.to_json() + "\n" for record in records)
            (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (directory / "metrics.json").write_text(json.dumps({"kind": next(iter(files)), **metrics}))
        self.workspace.finish(key, sorted(directory.iterdir()))


def write_run(path: Path | str = "iter1") -> HandMade:
    """A run in its second iteration, whose student is being trained."""
    run = HandMade(path)
    run.add("iteration_1/outside", "RecordedExamples", {"examples": RECORDED}, {"accepted": 2}, {"source": "x.jsonl"})
    rejections = [
        Rejection(id="r", reason="near duplicate", detail="", text=""),
        Rejection(id="s", reason="keyword", detail="plot", text=""),
    ]
    run.add(
        "iteration_1/data",
        "Synthesize",
        {"examples": EXAMPLES, "rejections": rejections},
        {
            "accepted": 4,
            "rejected": {"near duplicate": 1, "keyword": 1},
            "diversity": {"token_entropy": 2.25, "distinct_share": 1.0},
            "collapse": [WARNING],
        },
        WRITING,
        teacher="base",
    )
    run.add(
        "iteration_1/influence",
        "Score",
        {"scores": SCORES},
        {"count": 2, "mean": -0.25, "standard_error": 0.75, "positive_share": 0.5, "reference_loss": 1.25},
        {"signal": {"class_path": "callbacks.InfluenceProbeCallback", "init_args": {}}},
        ["examples=iteration_1/data"],
        student="base",
    )
    run.add(
        "iteration_1/preferences",
        "Pair",
        {"pairs": PAIRS},
        {"prompts": 9, "pairs": 4, "prompts_with_pairs": 3, "mean_margin": 2.0},
        {"rule": "signed"},
        ["examples=iteration_1/data", "scores=iteration_1/influence"],
    )
    run.begin("iteration_1/trained", "TrainStudent", {}, ["examples=iteration_1/data"])
    return run


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run() -> HandMade:
    """A run in `iter1`."""
    return write_run()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Export:
    """Run `export` and return what it prints."""

    def export(*arguments: str) -> str:
        main(["export", *arguments])
        printed = capsys.readouterr()
        assert not printed.err
        return printed.out

    return export


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Export:
    """Run `export` and return the sentence with which it ends."""

    def export(*arguments: str) -> str:
        before = sorted(Path.cwd().rglob("*"))
        with pytest.raises(SystemExit) as exit_info:
            main(["export", *arguments])
        printed = capsys.readouterr()
        assert exit_info.value.code == 2
        assert not printed.out
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1, "one sentence on one line"
        assert sorted(Path.cwd().rglob("*")) == before, "nothing was written"
        return printed.err.removeprefix("error: ").rstrip("\n")

    return export


def exported(format: str, *arguments: str, output: str = "out") -> Path:
    main(["export", "iter1", "--format", format, "--output", output, *arguments])
    return Path(output)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def described(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `dataset_info.json` says of the one data set, and the rows of the file that it names."""
    ((_, description),) = json.loads((directory / "dataset_info.json").read_text()).items()
    return description, rows(directory / description["file_name"])


@pytest.mark.usefixtures("run")
class TestFormats:
    """What is written, and that it is read back."""

    def test_alpaca(self) -> None:
        found = rows(exported("alpaca", "--stage", "data") / "train.jsonl")
        assert found[0] == {"id": "data-0", "instruction": "what is a cat?", "input": "", "output": "an animal."}
        assert [row["output"] for row in found] == [one.response for one in EXAMPLES]
        assert all(row.keys() == found[0].keys() for row in found)

    def test_system_messages(self) -> None:
        """A column that some rows lack is read differently by different readers: all have it, or none."""
        alpaca = exported("alpaca", "--stage", "outside")
        assert [row["system"] for row in rows(alpaca / "train.jsonl")] == ["be kind", ""]
        messages = rows(exported("messages", "--stage", "outside", output="messages") / "train.jsonl")
        assert [[turn["role"] for turn in row["messages"]] for row in messages] == [
            ["system", "user", "assistant"],
            ["user", "assistant"],
        ]

    @pytest.mark.parametrize("stage", ["data", "outside"])
    @pytest.mark.parametrize("format", ["alpaca", "messages"])
    def test_our_own_reader_reads_the_same_conversations(self, format: str, stage: str) -> None:
        """With their ids, blanks and line separators."""
        found = read_examples(str(exported(format, "--stage", stage) / "train.jsonl"))
        expected = {"data": EXAMPLES, "outside": RECORDED}[stage]
        assert [(one.id, one.messages()) for one in found] == [(one.id, one.messages()) for one in expected]

    @pytest.mark.parametrize("format", ["alpaca", "messages", "dpo"])
    def test_datasets_reads_the_directory(self, format: str, tmp_path: Path) -> None:
        """By the card, so that neither LLaMA-Factory's files nor the card itself are taken for rows."""
        directory = exported(format)
        found = load_dataset(str(directory), split="train", cache_dir=str(tmp_path / "cache"))
        assert found.to_list() == rows(directory / "train.jsonl")

    def test_text_stays_readable(self) -> None:
        assert "日本語" in (exported("messages", "--stage", "data") / "train.jsonl").read_text(encoding="utf-8")

    def test_dpo(self) -> None:
        """Without the pairs in which a completion was cut: there a trainer would put an end token."""
        directory = exported("dpo")
        found = rows(directory / "train.jsonl")
        assert [row["id"] for row in found] == ["pair-0", "pair-2"]
        assert found[0] == {
            "id": "pair-0",
            "prompt": [{"role": "user", "content": "write a task."}],
            "chosen": [{"role": "assistant", "content": "name a cat."}],
            "rejected": [{"role": "assistant", "content": "no"}],
            "score_margin": 0.5,
            "weight": 0.25,
        }

    def test_dpo_keeps_system_messages(self, run: HandMade) -> None:
        """Pairs over responses may have them; TRL and LLaMA-Factory each look for them in their own place."""
        pairs = [replace(PAIRS[0], system="be kind"), PAIRS[2]]
        run.add("iteration_2/preferences", "Pair", {"pairs": pairs}, {})
        directory = exported("dpo")
        assert [row["prompt"] for row in rows(directory / "train.jsonl")] == [pair.messages() for pair in pairs]
        description, found = described(directory)
        assert [row[description["columns"]["system"]] for row in found] == ["be kind", ""]

    def test_hf(self, tmp_path: Path) -> None:
        """Whole records, and the scores of the stage that scored some of them."""
        directory = exported("hf", "--stage", "data")
        found = load_from_disk(str(directory))["train"]
        columns = ["iteration_1/influence", "iteration_1/influence/standard_error"]
        assert [Example.from_dict(row) for row in found.remove_columns(columns)] == EXAMPLES
        assert [[row[column] for column in columns] for row in found] == [
            [0.5, 0.25],
            [-1.0, None],
            [None] * 2,
            [None] * 2,
        ]
        assert [one.messages() for one in read_examples(str(directory))] == [one.messages() for one in EXAMPLES]
        by_card = load_dataset(str(directory), split="train", cache_dir=str(tmp_path / "cache"))
        assert by_card.to_list() == found.to_list()

    def test_columns_of_hf_have_types_where_no_row_has_a_value(self) -> None:
        features = load_from_disk(str(exported("hf", "--stage", "outside")))["train"].features
        assert features["seed_ids"].feature.dtype == "string"
        assert features["completion_finished"].dtype == "bool"

    def test_scores_of_what_the_stage_held_before_are_left_out(self, run: HandMade) -> None:
        shutil.rmtree("iter1/iteration_1/data")
        run.add("iteration_1/data", "Synthesize", {"examples": EXAMPLES[:2]}, {"accepted": 2})
        assert "iteration_1/influence" not in load_from_disk(str(exported("hf", "--stage", "data")))["train"].features

    @pytest.mark.parametrize("stage", ["data", "outside"])
    def test_llama_factory_alpaca(self, stage: str) -> None:
        """As it reads the columns: prompt and query are joined, an empty system message is none."""
        description, found = described(exported("alpaca", "--stage", stage))
        columns = description["columns"]
        assert not description.get("ranking")
        for row, one in zip(found, {"data": EXAMPLES, "outside": RECORDED}[stage], strict=True):
            asked = "\n".join(row[columns[column]] for column in ("prompt", "query") if row[columns[column]])
            assert (asked, row[columns["response"]]) == (one.instruction, one.response)
            assert (row[columns["system"]] if "system" in columns else "") == one.system

    def test_llama_factory_messages(self) -> None:
        description, found = described(exported("messages", "--stage", "outside"))
        tags = description["tags"]
        names = {tags[f"{role}_tag"]: role for role in ("system", "user", "assistant")}
        assert description["formatting"] == "sharegpt"
        for row, one in zip(found, RECORDED, strict=True):
            turns = row[description["columns"]["messages"]]
            assert [
                {"role": names[turn[tags["role_tag"]]], "content": turn[tags["content_tag"]]} for turn in turns
            ] == one.messages()

    def test_llama_factory_pairs(self) -> None:
        """It takes text in `chosen` and `rejected`, or one turn, but no list of turns."""
        description, found = described(exported("dpo"))
        columns = description["columns"]
        assert description["ranking"] is True
        assert [[row[columns[name]] for name in ("prompt", "query", "chosen", "rejected")] for row in found] == [
            [one.prompt, "", one.chosen, one.rejected] for one in (PAIRS[0], PAIRS[2])
        ]

    def test_name_of_the_data_set(self) -> None:
        """LLaMA-Factory takes what a comma parts for several names, and reads the file in the locale's encoding."""
        write_run("lr=1, größe").add("iteration_2/data", "Synthesize", {"examples": EXAMPLES}, {})
        main(["export", "lr=1, größe", "--output", "out"])
        text = Path("out/dataset_info.json").read_bytes().decode("ascii")
        assert list(json.loads(text)) == ["lr_1_größe_data"]
        assert "dataset: lr_1_größe_data" in Path("out/README.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.usefixtures("run")
class TestTrainers:
    """TRL trains on what is written, on the tokens that we would train on."""

    @pytest.fixture
    def model(self) -> str:
        """A tiny model in a directory."""
        return save_tiny_model(Path("model"))

    def arguments(self, **others: Any) -> dict[str, Any]:
        return {
            "output_dir": "trained",
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            **others,
        }

    def test_supervised_fine_tuning(self, model: str) -> None:
        trl = pytest.importorskip("trl")
        exported("messages", "--stage", "data")
        dataset = load_dataset("json", data_files="out/train.jsonl", split="train", cache_dir="cache")
        tokenizer = AutoTokenizer.from_pretrained(model)
        trainer = trl.SFTTrainer(
            AutoModelForCausalLM.from_pretrained(model),
            args=trl.SFTConfig(**self.arguments()),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        ours = ChatFormat(tokenizer)
        expected = [ours.render(one.messages()).input_ids for one in EXAMPLES]
        assert trainer.train_dataset["input_ids"][:] == expected
        assert trainer.train().training_loss > 0

    def test_dpo(self, model: str) -> None:
        trl = pytest.importorskip("trl")
        exported("dpo")
        dataset = load_dataset("json", data_files="out/train.jsonl", split="train", cache_dir="cache")
        tokenizer = AutoTokenizer.from_pretrained(model)
        trainer = trl.DPOTrainer(
            AutoModelForCausalLM.from_pretrained(model),
            args=trl.DPOConfig(**self.arguments()),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        ours = encode_pairs([PAIRS[0], PAIRS[2]], ChatFormat(tokenizer), max_length=96)
        for row, one in zip(trainer.train_dataset, ours, strict=True):
            assert row["prompt_ids"] + row["chosen_ids"] == one.chosen.input_ids
            assert row["prompt_ids"] + row["rejected_ids"] == one.rejected.input_ids
            assert len(row["chosen_ids"]) == sum(one.chosen.trained)
        assert trainer.train().training_loss > 0


@pytest.mark.usefixtures("run")
class TestCard:
    """What the data card says."""

    @pytest.mark.parametrize("format", ["alpaca", "messages", "dpo", "hf"])
    def test_hashes_are_those_of_the_files(self, format: str) -> None:
        directory = exported(format)
        card = (directory / "README.md").read_text(encoding="utf-8")
        files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
        del files["README.md"]
        listed = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", card, flags=re.MULTILINE))
        assert listed == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        assert listed

    def test_front_matter_is_what_the_hub_reads(self) -> None:
        found = DatasetCard.load(exported("alpaca", "--stage", "data", "--license", "cc-by-4.0") / "README.md").data
        assert (found.license, found.pretty_name) == ("cc-by-4.0", "iter1, data")
        assert (found.task_categories, found.size_categories) == (["text-generation"], ["n<1K"])
        assert found.tags == ["synthetic", "montessori-pl"]
        assert "license" not in DatasetCard.load(exported("dpo", output="dpo") / "README.md").data.to_dict()

    @pytest.mark.parametrize(("count", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10_000, "10K<n<100K")])
    def test_size(self, run: HandMade, count: int, size: str) -> None:
        many = [replace(EXAMPLES[0], id=str(number)) for number in range(count)]
        run.add("iteration_2/data", "Synthesize", {"examples": many}, {})
        assert DatasetCard.load(exported("alpaca") / "README.md").data.size_categories == [size]

    def test_examples(self) -> None:
        card = (exported("messages", "--stage", "data") / "README.md").read_text(encoding="utf-8")
        prose = " ".join(card.split())
        for line in (
            f"| `{TEACHER}` | 3 |",
            "| `org/teacher` | 1 |",
            "| `iteration_1/data` | `Synthesize` | teacher: `base` |",
            "| near duplicate | 1 |",
            "| entropy of the words, in nats | 2.25 |",
            "| `iteration_1/influence` | `InfluenceProbeCallback` | `base` | 2 | -0.25 ± 0.75 | 0.5 | 1.25 |",
        ):
            assert line in card.splitlines()
        for sentence in (
            "4 instructions with responses",
            "accepted 4 examples and rejected 2 candidates",
            f"**The run warns:** {WARNING}.",
            "Sampling of instructions: temperature `1.0`, top_p `0.9`.",
            "have a ROUGE-L F1 above 0.7 with a seed or an earlier instruction were dropped",
            "Instructions of the reference or test set were dropped.",
            "Responses that were cut at the token limit are among the rows, and are not marked.",
            "Whoever exported the data has named no licence.",
        ):
            assert sentence in prose
        settings = re.search(r"The settings, whole:\n\n```yaml\n(.*?)```", card, flags=re.DOTALL)
        assert settings is not None
        assert yaml.safe_load(settings[1]) == {"iteration_1/data": WRITING}

    def test_examples_that_others_wrote_are_not_called_synthetic(self) -> None:
        directory = exported("alpaca", "--stage", "outside")
        card = (directory / "README.md").read_text(encoding="utf-8")
        assert "The examples were read from `x.jsonl`, not written in this run." in card
        assert "No stage of the run has scored these examples." in card
        assert DatasetCard.load(directory / "README.md").data.tags == ["montessori-pl"]

    def test_pairs(self, run: HandMade) -> None:
        """The scores are those that the pairs come from, not whatever else has scored the examples."""
        inputs = ["examples=iteration_1/data"]
        run.add("iteration_1/length", "Score", {"scores": SCORES}, {"count": 2}, inputs=inputs, student="base")
        card = (exported("dpo") / "README.md").read_text(encoding="utf-8")
        assert f"| `{TEACHER}` | 2 |\n| `org/teacher` | 2 |" in card
        assert "2 pairs (2 left out, with a completion cut at its token limit); of 9 prompts 3 gave some;" in card
        assert "the rule `signed`" in card
        assert "| `iteration_1/influence` | `InfluenceProbeCallback` |" in card
        assert "iteration_1/length" not in card
        assert "iteration_1/length" in (exported("hf", output="hf") / "README.md").read_text(encoding="utf-8")

    def test_pairs_over_responses(self, run: HandMade) -> None:
        """What prompts and completions are is told from the examples, where there are any."""

        def summary(path: str) -> str:
            return " ".join((exported("dpo", output=path) / "README.md").read_text().split())

        assert "The prompts ask for a new instruction" in summary("instructions")
        answers = [replace(one, prompt=one.instruction, completion=one.response) for one in EXAMPLES]
        run.add("iteration_2/answers", "Answer", {"examples": answers}, {})
        run.add("iteration_2/pairs", "Pair", {"pairs": PAIRS}, {}, inputs=["examples=iteration_2/answers"])
        assert "The prompts are instructions, and the completions are responses" in summary("responses")
        run.add("iteration_3/pairs", "Given", {"pairs": PAIRS}, {})
        assert "The prompts" not in summary("given")

    @pytest.mark.parametrize("format", ["alpaca", "dpo"])
    def test_settings_of_the_engine_are_not_published(self, format: str) -> None:
        card = (exported(format) / "README.md").read_text(encoding="utf-8")
        assert "Engine: `Remote`." in card
        assert ADDRESS not in card

    def test_its_command_makes_the_same_files(self) -> None:
        first = exported("alpaca", "--license", "cc-by-4.0")
        command = re.search(
            r"^    python -m montessori_pl (export .*)$", (first / "README.md").read_text(), re.MULTILINE
        )
        assert command is not None
        main([*command[1].split(), "--output", "again"])
        for path in first.iterdir():
            assert (Path("again") / path.name).read_bytes() == path.read_bytes()

    def test_digest_depends_on_the_settings_of_what_led_to_the_data(self) -> None:
        def digest(path: Path) -> str:
            found = re.search(r"the digest `(\w+)`", " ".join((path / "README.md").read_text().split()))
            assert found is not None
            return found[1]

        before = digest(exported("dpo"))
        manifest = Path("iter1/manifest.json")
        content = json.loads(manifest.read_text())
        content["stages"]["iteration_1/trained"]["settings"]["seed_everything"] = 1
        manifest.write_text(json.dumps(content))
        assert digest(exported("dpo", output="other")) == before
        content["stages"]["iteration_1/data"]["settings"]["seed_everything"] = 1
        manifest.write_text(json.dumps(content))
        assert digest(exported("dpo", output="third")) != before


LLAMA_FACTORY = {
    "file_name": None,
    "formatting": {"alpaca", "sharegpt"},
    "ranking": {True, False},
    "columns": {"prompt", "query", "response", "history", "messages", "system", "tools", "chosen", "rejected"},
    "tags": {"role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"},
}
"""What LLaMA-Factory 0.9.5 knows of a text data set, from its `data/parser.py`: the rest it passes over in silence."""
AXOLOTL: dict[str, dict[str, type]] = {
    "alpaca": {"instruction": str, "input": str, "output": str},
    "alpaca_w_system.load_instruct": {"instruction": str, "input": str, "output": str, "system": str},
    "chat_template": {"messages": list},
    "passthrough": {"prompt": list, "chosen": list, "rejected": list},
}
"""Columns that types of axolotl 0.19.0 read, from its `prompt_strategies`; `passthrough` leaves them to TRL."""
EXPORTS = [
    ("alpaca", "data"),
    ("alpaca", "outside"),
    ("messages", "data"),
    ("messages", "outside"),
    ("dpo", "preferences"),
]


@pytest.mark.usefixtures("run")
class TestSettingsOnTheCard:
    """What a reader copies from the card names files and columns that exist, in words that the trainers know.

    LLaMA-Factory and axolotl want other versions of our dependencies, so they cannot be run here. They were run once,
    in the versions below and with these settings.
    """

    @pytest.fixture(params=EXPORTS, ids="-".join)
    def directory(self, request: pytest.FixtureRequest) -> Path:
        """An export."""
        format, stage = request.param
        return exported(format, "--stage", stage)

    def snippets(self, directory: Path, language: str) -> list[str]:
        """The blocks of code that say how the files are read."""
        part = (directory / "README.md").read_text(encoding="utf-8").partition("## How it was made")[0]
        return re.findall(rf"^```{language}\n(.*?)^```$", part, flags=re.DOTALL | re.MULTILINE)

    def settings(self, directory: Path, key: str) -> dict[str, Any]:
        """The one block of settings with this key."""
        (found,) = [one for one in map(yaml.safe_load, self.snippets(directory, "yaml")) if key in one]
        return found

    @pytest.mark.parametrize("format", ["alpaca", "messages", "dpo", "hf"])
    def test_loading(self, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
        directory = exported(format)
        (loading, *_) = self.snippets(directory, "python")
        monkeypatch.chdir(directory)
        names: dict[str, Any] = {}
        exec(loading, names)
        count = len(EXAMPLES) if format == "hf" else len(rows(Path("train.jsonl")))
        assert len(names["dataset"]) == count

    def test_llama_factory(self, directory: Path) -> None:
        found = self.settings(directory, "stage")
        descriptions = json.loads((directory / found["dataset_dir"] / "dataset_info.json").read_text())
        assert list(descriptions) == [found["dataset"]]
        description = descriptions[found["dataset"]]
        assert description.keys() <= LLAMA_FACTORY.keys()
        assert description.get("formatting", "alpaca") in LLAMA_FACTORY["formatting"]
        assert description["columns"].keys() <= LLAMA_FACTORY["columns"]
        assert description.get("tags", {}).keys() <= LLAMA_FACTORY["tags"]
        assert description.get("ranking", False) is (found["stage"] == "dpo"), "it refuses a stage that does not fit"
        written = rows(directory / description["file_name"])
        assert all(set(description["columns"].values()) <= row.keys() for row in written)
        if found["stage"] == "dpo":
            columns = description["columns"]
            assert all(isinstance(row[columns[name]], str) for row in written for name in ("chosen", "rejected"))

    def test_axolotl(self, directory: Path) -> None:
        found = self.settings(directory, "datasets")
        (dataset,) = found["datasets"]
        assert dataset.keys() == {"path", "type", "split"}
        assert (found.get("rl") == "dpo") is (dataset["type"] == "passthrough")
        assert found.get("skip_prepare_dataset", False) is (dataset["type"] == "passthrough"), (
            "it takes text alone there"
        )
        columns = AXOLOTL[dataset["type"]]
        written = rows(directory / dataset["path"])
        assert all(isinstance(row[name], kind) for row in written for name, kind in columns.items())
        assert columns.keys() >= written[0].keys() - {"id", "score_margin", "weight"}, "nothing is left out"

    def test_versions(self, directory: Path) -> None:
        card = " ".join((directory / "README.md").read_text(encoding="utf-8").split())
        assert "For LLaMA-Factory (run with version 0.9.5)" in card
        assert "For axolotl (run with version 0.19.0)" in card


class TestChoice:
    """Which stage is exported, and where to."""

    def test_last_finished_stage_that_holds_what_the_format_takes(self, run: HandMade, said: Export) -> None:
        place = "iter1/export/iteration_1"
        assert said("iter1") == f"iteration_1/data: 4 examples as messages in {place}/data-messages\n"
        assert said("iter1", "--format", "dpo") == (
            "iteration_1/preferences: 2 pairs (2 left out: a completion was cut at its token limit) as dpo in "
            f"{place}/preferences-dpo\n"
        )

    def test_name_and_iteration(self, run: HandMade, said: Export) -> None:
        run.add("iteration_2/data", "Synthesize", {"examples": EXAMPLES[:1]}, {})
        run.add("iteration_2/other", "Synthesize", {"examples": EXAMPLES[:3]}, {})
        run.begin("iteration_3/data", "Synthesize", {}, [])
        for arguments, key in (
            ((), "iteration_2/other"),
            (("--stage", "data"), "iteration_2/data"),
            (("--stage", "data", "--iteration", "1"), "iteration_1/data"),
            (("--iteration", "1"), "iteration_1/data"),
            (("--stage", "outside"), "iteration_1/outside"),
        ):
            assert said("iter1", *arguments, "--output", "out").startswith(f"{key}: ")
            shutil.rmtree("out")

    def test_an_empty_directory_may_be_there(self, run: HandMade, said: Export) -> None:
        Path("out").mkdir()
        said("iter1", "--output", "out")
        assert {path.name for path in Path("out").iterdir()} == {"train.jsonl", "dataset_info.json", "README.md"}

    def test_pairs_that_nobody_scored(self, said: Export) -> None:
        """As a stage of somebody else's may leave them."""
        HandMade("other").add("iteration_1/given", "Given", {"pairs": PAIRS}, {})
        said("other", "--format", "dpo", "--output", "out")
        assert "| not recorded | 4 |" in Path("out/README.md").read_text()


HOLD = "stages of iter1 that have finished and hold"


@pytest.mark.usefixtures("run")
class TestMistakes:
    """What a user can get wrong, each with the sentence that says so."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (
                ["iter2"],
                "there is no directory iter2; {here} holds iter1/; correct the path",
            ),
            (
                ["iter1", "--stage", "dat"],
                f"--stage dat names no stage that has begun and holds examples; {HOLD} examples: iteration_1/outside, "
                "iteration_1/data",
            ),
            (
                ["iter1", "--stage", "data", "--iteration", "2"],
                "--stage data and --iteration 2 names no stage that has begun and holds examples; "
                f"{HOLD} examples: iteration_1/outside, iteration_1/data",
            ),
            (
                ["iter1", "--iteration", "2", "--format", "dpo"],
                f"--iteration 2 names no stage that has begun and holds pairs; {HOLD} pairs: iteration_1/preferences",
            ),
            (
                ["iter1", "--stage", "preferences"],
                "iteration_1/preferences holds no examples but pairs, choose another format; "
                f"{HOLD} examples: iteration_1/outside, iteration_1/data",
            ),
            (
                ["iter1", "--stage", "data", "--format", "dpo"],
                "iteration_1/data holds no pairs but examples, choose another format; "
                f"{HOLD} pairs: iteration_1/preferences",
            ),
            (
                ["iter1", "--stage", "trained"],
                "iteration_1/trained has not finished, run `fit` again to go on; "
                f"{HOLD} examples: iteration_1/outside, iteration_1/data",
            ),
            (
                ["iter1", "--output", "iter1"],
                "iter1 exists and is not empty; remove it, or choose another directory with --output",
            ),
            (
                ["iter1", "--output", "iter1/manifest.json"],
                "iter1/manifest.json exists and is not empty; remove it, or choose another directory with --output",
            ),
            (
                [],
                "the following arguments are required: RUN; `python -m montessori_pl export --help` lists what exists",
            ),
        ],
    )
    def test_sentence(self, arguments: list[str], sentence: str, mistake: Export) -> None:
        assert mistake(*arguments) == sentence.format(here=Path.cwd())

    def test_run_without_examples(self, mistake: Export) -> None:
        HandMade("new").begin("iteration_1/data", "Synthesize", {}, [])
        assert mistake("new") == (
            "there are no examples to export yet; stages of new that have finished and hold examples: none"
        )

    def test_format(self, mistake: Export) -> None:
        assert mistake("iter1", "--format", "csv").startswith("argument --format: invalid choice: 'csv'")

    @pytest.mark.parametrize(
        ("damaged", "format"),
        [
            ("data/examples.jsonl", "alpaca"),
            ("data/rejections.jsonl", "alpaca"),
            ("influence/scores.jsonl", "hf"),
            ("preferences/pairs.jsonl", "dpo"),
            ("data/examples.jsonl", "dpo"),
        ],
    )
    def test_damaged_file(self, damaged: str, format: str, mistake: Export) -> None:
        path = Path("iter1/iteration_1", damaged)
        path.write_text(path.read_text() + "\n")
        key = f"iteration_1/{path.parent.name}"
        assert mistake("iter1", "--format", format) == (
            f"{path} is not what stage {key} wrote; restore the file, or delete {path.parent} to do the stage again"
        )

    def test_damaged_metrics(self, mistake: Export) -> None:
        Path("iter1/iteration_1/data/metrics.json").write_text("{")
        assert mistake("iter1").startswith("the metrics of iteration_1/data cannot be read (Expecting property name")

    def test_pairs_whose_examples_were_done_again(self, run: HandMade, mistake: Export) -> None:
        """The card would tell of other examples than those that the pairs were made of."""
        shutil.rmtree("iter1/iteration_1/data")
        run.add("iteration_1/data", "Synthesize", {"examples": EXAMPLES[:2]}, {})
        assert mistake("iter1", "--format", "dpo") == (
            "iteration_1/preferences was made of the examples of iteration_1/data, which is gone or was done again "
            "since; delete iter1/iteration_1/preferences and run `fit` again to make the pairs anew"
        )

    def test_nothing_left(self, run: HandMade, mistake: Export) -> None:
        run.add("iteration_2/preferences", "Pair", {"pairs": [PAIRS[1], PAIRS[3]]}, {})
        assert mistake("iter1", "--format", "dpo") == (
            "iteration_2/preferences leaves no pairs to export, for all 2 hold a completion that was cut at its token "
            "limit; choose another stage"
        )


def test_command_is_quick(run: HandMade) -> None:
    """It imports neither Lightning nor models, nor anything of their size."""
    program = (
        "import sys; from montessori_pl.__main__ import main; main(sys.argv[1:])\n"
        "big = {'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy', 'datasets', 'wandb', 'rich'}\n"
        "print(sorted(big & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "export", "iter1"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_export_of_a_run(tiny_recipe: Callable[..., Path], said: Export) -> None:
    """What `fit` itself has written: its manifest, its settings and its scores are found."""
    recipe = tiny_recipe()
    content = yaml.safe_load(recipe.read_text())
    stages = ("warmup_data", "warmup", "probing_data", "influence", "preferences")
    content["recipe"] = {name: content["recipe"][name] for name in stages}
    content["recipe"]["preferences"]["init_args"]["scores"] = "influence"
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    main(["fit", "--config", str(recipe)])
    said_by_fit = said(content["run"], "--format", "hf", "--output", "hf")
    assert "iteration_1/probing_data: 32 examples as hf in hf" in said_by_fit
    dataset: Dataset = load_from_disk("hf")["train"]
    assert all(value is not None for value in dataset["iteration_1/influence"])
    said(content["run"], "--format", "dpo", "--output", "dpo")
    card = " ".join(Path("dpo/README.md").read_text(encoding="utf-8").split())
    written = len(rows(Path(content["run"], "iteration_1/preferences/pairs.jsonl")))
    assert len(rows(Path("dpo/train.jsonl"))) == written
    assert f"| `classroom/teacher` | {2 * written} |" in card
    assert "above 0.95 with a seed or an earlier instruction" in card
    assert "| `iteration_1/influence` | `InfluenceProbeCallback` | `iteration_1/warmup` | 32 |" in card
