"""The data card that lies beside what is exported."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hand_made import ADDRESS, EXAMPLES, PAIRS, SCORES, TEACHER, WARNING, WRITING, HandMade, exported
from huggingface_hub import DatasetCard

from montessori_pl.__main__ import main


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

    @pytest.mark.slow
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
            "The person who exported the data has named no licence.",
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
        run.add("iteration_1/length", "ScoreExamples", {"scores": SCORES}, {"count": 2}, inputs=inputs, student="base")
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
        run.add("iteration_2/answers", "GenerateResponses", {"examples": answers}, {})
        run.add("iteration_2/pairs", "BuildPreferences", {"pairs": PAIRS}, {}, inputs=["examples=iteration_2/answers"])
        assert "The prompts are instructions, and the completions are responses" in summary("responses")
        run.add("iteration_3/pairs", "Given", {"pairs": PAIRS}, {})
        assert "The prompts" not in summary("given")

    @pytest.mark.parametrize("format", ["alpaca", "dpo"])
    def test_settings_of_the_engine_are_not_published(self, format: str) -> None:
        card = (exported(format) / "README.md").read_text(encoding="utf-8")
        assert "Engine: `Remote`." in card
        assert ADDRESS not in card

    def test_texts_of_others_are_shown_as_they_are(self, run: HandMade) -> None:
        """HTML, links, pipes and backticks in names, settings and warnings, of which none ends its place."""
        hostile = "<script>f()</script> [a](http://b) | `` \n# x\x1b"
        run.add(
            "iteration_2/data",
            "Synthesize",
            {"examples": [replace(EXAMPLES[0], teacher=hostile)]},
            {"accepted": 1, "rejected": {hostile: 1}, "diversity": {}, "warnings": [hostile]},
            {"source": hostile, "rule": hostile, "prompt": f"```\n{hostile}"},
        )
        card = (exported("messages", "--license", hostile) / "README.md").read_text(encoding="utf-8")
        body = card.partition("\n---\n")[2]
        without_code = re.sub(
            r"(?s)(`{3,})yaml\n.*?\n\1\n|(?<!`)(`+)(?!`).*?(?<!`)\2(?!`)|^    .*?$", "", body, flags=re.M
        )
        assert "<script" not in without_code
        assert not re.search(r"(?<!\\)\]\(http", without_code)
        assert "\x1b" not in card
        assert "\n# x" not in body
        rows = [line for line in body.splitlines() if line.startswith("| ") and "script" in line]
        assert len(rows) == 2
        assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)

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
