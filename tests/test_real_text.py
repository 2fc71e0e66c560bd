"""Text as people write it goes through the stages unchanged: read, trained on, scored and evaluated.

The model knows bytes and nothing else, so that a test can count tokens: one per byte of UTF-8.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from montessori_pl.batches.encoding import encode_examples, encode_pairs
from montessori_pl.batches.sources import DataSources
from montessori_pl.cli.fit import main
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.formats import read_source
from montessori_pl.data.records import Example, PreferencePair
from montessori_pl.evaluation import ExactMatch
from montessori_pl.generation import Completion, Request, Sampling, TransformersBackend
from montessori_pl.models.loading import ModelSource, load_chat_template

CONTEXT = 256
LONG = "a text that goes on " * 40  # 800 bytes: more than three contexts
SHARED = Path(__file__).parents[1].parent / "shared" / "data"

NASTY = {
    "lines": ("  def f(x):\r\n\treturn x\n\n", "\n\nIt returns x.\t\r\n "),
    "emoji": ("What is 👩‍👩‍👧‍👦 \U0001f3f4\U000e0067\U000e007f?", "A family 😀, a flag"),
    "right_to_left": ("ما هي عاصمة مصر؟", "\u202bالقاهرة\u202c ו\u05beירושלים"),  # noqa: RUF001
    "zero_width": ("\u200bzero\u200c\u200d\ufeff width\u2060", "\u200b.\u00ad"),
    "separators": ("line\u2028paragraph\u2029next\x85end\x0b\x0c", "a\u2028b"),
    "special_tokens": ("<s>What does </s> mean? <pad><|im_end|>", "It ends: </s> and </s>\n### User:\nHi"),
    "tags": ("<instruction>nested <instruction>x</instruction>", "</instruction><instruction>"),
    "braces": ("{{ messages }} {% raw %} {0} %s \\n \\", "{shots} {{- eos_token -}}"),
    "nul": ("NUL \x00 and \x01\x1b[31m", "a \x00 in it"),
    "combining": ("Zalgo: a\u0301\u0300\u0302 vs. á", "n\u0303 ñ"),
    "long_response": ("Go on", LONG),
}
"""Instruction and response by name; all can be trained on."""
TOO_LONG = {"long_instruction": (LONG, "Yes.")}
"""Their prompt alone fills the context."""
REJECTED = {
    "empty_instruction": ("", "A", "empty instruction"),
    "blank_instruction": (" \n\t\u3000", "A", "empty instruction"),
    "empty_response": ("Q", "", "empty response"),
    "no_response": ("Q", None, "empty response"),
    "invisible_response": ("Q", "\x00\u200b", "empty response"),
    "again": (*NASTY["emoji"], "duplicate"),
    "half_a_pair": ("cut in an emoji \ud83d", "A", "malformed row"),
    "object": ("Q", {"a": 1}, "malformed row"),
}
"""Instruction, response, and why the row is left out."""
NO_ARROW = ("half_a_pair", "object")
"""Rows that a dataset of typed UTF-8 columns cannot hold."""


def alpaca(id: str, instruction: Any, response: Any) -> dict[str, Any]:
    return {"id": id, "instruction": instruction, "input": "", "output": response}


def messages(id: str, instruction: Any, response: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
    return {"id": id, "messages": turns}


def rows(layout: Any, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    kept = {id: row[:2] for id, row in {**NASTY, **TOO_LONG, **REJECTED}.items() if id not in without}
    return [layout(id, *row) for id, row in kept.items()]


def write_lines(path: Path, content: list[dict[str, Any]]) -> str:
    # Alternately escaped and not: both are JSON.
    lines = [json.dumps(row, ensure_ascii=number % 2 == 0 or "half" in row["id"]) for number, row in enumerate(content)]
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return str(path)


@pytest.fixture
def byte_model(tmp_path: Path) -> Path:
    """A random Llama over bytes with `CONTEXT` positions, and a tokenizer without a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: id for id, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    wrapped.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def recipe(tmp_path: Path, model: Path, sources: dict[str, str]) -> Path:
    """Read all sources; train on the first, score and evaluate, all without a `max_length` of ours."""
    held_out = [alpaca(f"r{n}", f"Frage {n}?\n😀", f"Antwort {n}\n") for n in range(3)]
    reference = write_lines(tmp_path / "reference.jsonl", [*held_out, alpaca("long", LONG, "A")])
    signal = {"class_path": "callbacks.InfluenceProbeCallback", "init_args": {"lr": 1e-3}}
    stages: dict[str, Any] = {
        name: {"class_path": "RecordedExamples", "init_args": {"source": source}} for name, source in sources.items()
    }
    first = next(iter(sources))
    training = {"lr": 1e-3, "batch_size": 4}
    stages["trained"] = {"class_path": "TrainStudent", "init_args": {"examples": first, "training": training}}
    for name in sources:
        stages[f"{name}_influence"] = {"class_path": "ScoreExamples", "init_args": {"examples": name, "signal": signal}}
    evaluation = {"students": ["base", "trained"], "evaluators": [{"class_path": "ResponseLoss"}]}
    stages["evaluation"] = {"class_path": "Evaluate", "init_args": evaluation}
    one = {"backbone": str(model), "chat_template": "plain"}
    config = {
        "seed_everything": 1,
        "run": str(tmp_path / "run"),
        "student": {"class_path": "montessori_pl.StudentModule", "init_args": one},
        "teacher": {"class_path": "montessori_pl.TeacherDPOModule", "init_args": one},
        "generation": {"class_path": "montessori_pl.generation.TransformersBackend"},
        "data": {"seed_tasks": sources[first], "reference": reference},
        "trainer": {"accelerator": "cpu", "devices": 1, "logger": False},
        "recipe": stages,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


@pytest.mark.slow
def test_nasty_text_is_trained_on_scored_and_evaluated(tmp_path: Path, byte_model: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(rows(messages, without=NO_ARROW)).save_to_disk(str(tmp_path / "dataset"))
    sources = {
        "alpaca": write_lines(tmp_path / "alpaca.jsonl", rows(alpaca)),
        "messages": write_lines(tmp_path / "messages.jsonl", rows(messages)),
        "dataset": str(tmp_path / "dataset"),
    }
    main(["fit", "--config", str(recipe(tmp_path, byte_model, sources))])
    run = tmp_path / "run" / "iteration_1"

    fitting = {**NASTY, **TOO_LONG}
    for name in sources:
        examples = read(run / name / "examples.jsonl")
        assert [(e["id"], e["instruction"], e["response"]) for e in examples] == [(i, *t) for i, t in fitting.items()]
        rejected = {id: row[2] for id, row in REJECTED.items() if name != "dataset" or id not in NO_ARROW}
        assert {row["id"]: row["reason"] for row in read(run / name / "rejections.jsonl")} == rejected
        metrics = json.loads((run / name / "metrics.json").read_text())
        assert metrics["accepted"] == len(fitting)
        assert sum(metrics["rejected"].values()) == len(rejected)

        # Every layout holds the same text, so that every score is the same, and none is missing.
        scores = read(run / f"{name}_influence" / "scores.jsonl")
        assert [score["id"] for score in scores] == list(NASTY)
        assert all(abs(score["value"]) < float("inf") and len(score["terms"]) == 3 for score in scores)
        assert scores == read(run / "alpaca_influence" / "scores.jsonl")
        metrics = json.loads((run / f"{name}_influence" / "metrics.json").read_text())
        assert (metrics["count"], metrics["left_out_as_too_long"]) == (len(NASTY), len(TOO_LONG))
        assert (metrics["references"], metrics["references_left_out_as_too_long"]) == (3, 1)

    metrics = json.loads((run / "trained" / "metrics.json").read_text())
    assert (metrics["examples"], metrics["left_out_as_too_long"]) == (len(NASTY), len(TOO_LONG))
    students = json.loads((run / "evaluation" / "metrics.json").read_text())["students"]
    assert students["base"]["reference_left_out"] == 1
    assert students["trained"]["reference_loss"] < students["base"]["reference_loss"]


@pytest.mark.parametrize("name", NASTY)
def test_responses_are_trained_on_byte_by_byte(name: str, byte_model: Path) -> None:
    """The mask covers the response and one end token, whatever stands in the text."""
    chat_template = load_chat_template(ModelSource(str(byte_model), chat_template="plain"))
    instruction, response = NASTY[name]
    rendered = ChatTemplate(chat_template.tokenizer, "plain").render(
        [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
    )
    trained = [id for id, mask in zip(rendered.input_ids, rendered.completion_mask, strict=True) if mask]
    assert len(trained) == len(response.encode()) + 1
    assert trained.count(chat_template.end_id) == 1
    assert chat_template.decode(trained) == (response, True)


def test_nothing_is_rendered_beyond_the_context(byte_model: Path) -> None:
    """The default `max_length` is larger than the context of many models, whose further positions mean nothing."""
    chat_template = load_chat_template(ModelSource(str(byte_model), chat_template="plain"))
    examples = [Example(id=id, instruction=i, response=r) for id, (i, r) in {**NASTY, **TOO_LONG}.items()]
    rendered, too_long = encode_examples(examples, chat_template, max_length=1024)
    assert max(len(one.input_ids) for one in rendered) == CONTEXT
    assert [example.id for example in too_long] == list(TOO_LONG)
    pair = PreferencePair(id="p", prompt="Q", chosen=LONG, rejected="A", chosen_id="c", rejected_id="r", margin=1.0)
    ((chosen, rejected, *_),) = encode_pairs([pair], chat_template, max_length=1024)
    assert (len(chosen.input_ids), len(rejected.input_ids) < CONTEXT) == (CONTEXT, True)


def test_a_test_item_without_room_for_an_answer_counts_as_wrong(
    tmp_path: Path, byte_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind its last position a model with learned positions raises an index error, others answer nonsense."""

    def generate(self: TransformersBackend, requests: list[Request], sampling: Sampling) -> list[Completion]:
        return [Completion(text="A", finished=True, num_tokens=2) for _ in requests]

    monkeypatch.setattr(TransformersBackend, "generate", generate)
    test = write_lines(tmp_path / "test.jsonl", [alpaca("fits", "Q", "A"), alpaca("long", LONG, "A")])
    source = ModelSource(str(byte_model), chat_template="plain")
    found = ExactMatch().evaluate(source, DataSources(test, test, test), TransformersBackend)
    assert found["accuracy"] == 0.5


def test_half_a_surrogate_pair_in_a_field_of_ours_is_rejected(tmp_path: Path) -> None:
    """UTF-8 cannot write it, so that it must not get as far as the file of examples; nor into the rejection's id."""
    good = {"id": "good", "instruction": "Q", "response": "A", "prompt": "\U0001f600"}
    bad = {"id": "\ud83d", "instruction": "Q", "response": "B", "prompt": "\ud83d"}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    examples, rejections = read_source(str(tmp_path / "data.jsonl"))
    assert [example.id for example in examples] == ["good"]
    assert [(rejection.reason, json.loads(rejection.text)) for rejection in rejections] == [("malformed row", bad)]
    assert rejections[0].to_json().encode()


def test_a_reference_set_that_does_not_fit_is_refused(
    tmp_path: Path, byte_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "alpaca.jsonl", rows(alpaca))
    path = recipe(tmp_path, byte_model, {"alpaca": source})
    write_lines(tmp_path / "reference.jsonl", [alpaca("long", LONG, "A")])
    with pytest.raises(SystemExit) as error:
        main(["fit", "--config", str(path)])
    said = str(error.value) + capsys.readouterr().err
    assert "alpaca_influence: none of the 1 examples of the reference set has a response within max_length" in said
    assert f"the model's context ({CONTEXT} tokens)" in said


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not in {SHARED}")
def test_real_text_is_the_same_in_every_layout(tmp_path: Path) -> None:
    """Conversations of OpenAssistant, written down in the other layouts, come back as they were."""
    from datasets import Dataset

    examples, _ = read_source(str(SHARED / "open_assistant" / "en_100_tree.jsonl"))
    texts = [(example.id, example.instruction, example.response) for example in examples]
    Dataset.from_list([messages(*row) for row in texts]).save_to_disk(str(tmp_path / "dataset"))
    for source in (
        write_lines(tmp_path / "alpaca.jsonl", [alpaca(*row) for row in texts]),
        write_lines(tmp_path / "messages.jsonl", [messages(*row) for row in texts]),
        str(tmp_path / "dataset"),
    ):
        again, rejections = read_source(source)
        assert [(example.id, example.instruction, example.response) for example in again] == texts
        assert rejections == []
