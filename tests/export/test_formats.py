"""What is exported, format by format: read back by the libraries that it is for, and trained on by TRL."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset, load_from_disk
from hand_made import EXAMPLES, PAIRS, RECORDED, HandMade, described, exported, rows, write_run
from tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from montessori_pl.__main__ import main
from montessori_pl.batches.encoding import encode_pairs
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.formats import read_examples
from montessori_pl.data.records import Example, SampledTokens, Turn


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
        run.add("iteration_2/preferences", "BuildPreferences", {"pairs": pairs}, {})
        directory = exported("dpo")
        assert [row["prompt"] for row in rows(directory / "train.jsonl")] == [pair.messages() for pair in pairs]
        description, found = described(directory)
        assert [row[description["columns"]["system"]] for row in found] == ["be kind", ""]

    @pytest.mark.parametrize("format", ["alpaca", "messages", "hf"])
    def test_instructions_without_a_response_are_no_training_data(
        self, run: HandMade, format: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = replace(EXAMPLES[3], response="")
        run.add("iteration_2/data", "Synthesize", {"examples": [asked, EXAMPLES[0]]}, {"accepted": 2})
        directory = exported(format)
        assert "1 examples (1 left out: an instruction has no response) as " in capsys.readouterr().out
        found = read_examples(str(directory if format == "hf" else directory / "train.jsonl"))
        assert [one.id for one in found] == ["data-0"]
        card = " ".join((directory / "README.md").read_text().split())
        assert "1 instructions with responses" in card
        assert "accepted 2 examples and rejected 0 candidates; 1 instructions without a response are left out." in card

    @pytest.mark.parametrize("format", ["alpaca", "messages", "hf"])
    def test_earlier_turns(self, run: HandMade, format: str) -> None:
        """Our own reader reads the same conversations; only Alpaca's columns cannot say what is not learned."""
        history = (Turn("user", "one"), Turn("assistant", "two", 0), Turn("user", "three"), Turn("assistant", "four"))
        examples = [replace(RECORDED[0], history=history), RECORDED[1]]
        run.add("iteration_2/outside", "RecordedExamples", {"examples": examples}, {"accepted": 2})
        directory = exported(format, "--stage", "outside")
        found = read_examples(str(directory if format == "hf" else directory / "train.jsonl"))
        assert [one.messages() for one in found] == [one.messages() for one in examples]
        card = " ".join((directory / "README.md").read_text().split())
        assert ("1 are not to be learned (their weight is 0), which these columns cannot say" in card) == (
            format == "alpaca"
        )
        assert ("1 earlier answers have `weight` 0" in card) == (format == "messages")
        weights = [turn.weight for turn in found[0].history]
        assert weights == ([1, 1, 1, 1] if format == "alpaca" else [1, 0, 1, 1])
        if format == "alpaca":
            description, table = described(directory)
            assert table[0][description["columns"]["history"]] == [["one", "two"], ["three", "four"]]
            assert "`system` and `history`, which may be empty" in (directory / "README.md").read_text()

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
        assert features["seed_task_ids"].feature.dtype == "string"
        assert features["completion_finished"].dtype == "bool"

    def test_token_ids_are_left_out(self, run: HandMade) -> None:
        shutil.rmtree("iter1/iteration_1/data")
        sampled = replace(EXAMPLES[0], response_tokens=SampledTokens((3, 4), "of a teacher"))
        run.add("iteration_1/data", "Synthesize", {"examples": [sampled]}, {"accepted": 1})
        (row,) = load_from_disk(str(exported("hf", "--stage", "data")))["train"].to_list()
        assert Example.from_dict(row) == EXAMPLES[0]
        assert not any("tokens" in column for column in row)

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
        ours = ChatTemplate(tokenizer)
        expected = [ours.render(one.messages()).input_ids for one in EXAMPLES]
        assert trainer.train_dataset["input_ids"][:] == expected
        assert trainer.train().training_loss > 0

    @pytest.mark.slow
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
        ours = encode_pairs([PAIRS[0], PAIRS[2]], ChatTemplate(tokenizer), max_length=96)
        for row, one in zip(trainer.train_dataset, ours, strict=True):
            assert row["prompt_ids"] + row["chosen_ids"] == list(one.chosen.input_ids)
            assert row["prompt_ids"] + row["rejected_ids"] == list(one.rejected.input_ids)
            assert len(row["chosen_ids"]) == sum(one.chosen.completion_mask)
        assert trainer.train().training_loss > 0
