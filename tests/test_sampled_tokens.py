"""What is trained on is, token for token, what was sampled, also where the tokenizer makes other tokens of its text.

The vocabulary holds `ab` and `abc` beside the letters: a random model hardly ever samples the split that the tokenizer
makes. It has the bytes of `é` one by one as well, so that a completion may end within a character.
"""

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from stage_runs import StandIn, stage_context, write
from tiny_models import SPECIAL, TEMPLATE, save_tiny_model, with_turns
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from montessori_pl.batches.encoding import encode_examples, encode_pairs
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.formats import load_source
from montessori_pl.data.records import Example, Message, PreferencePair, SampledTokens, Score, read_records, stable_seed
from montessori_pl.generation import Completion, Request, Sampling, TransformersBackend, transformers_backend
from montessori_pl.generation.base import decoded
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.loading import LoraSettings, ModelSource, load_chat_template
from montessori_pl.pairing import pair_examples
from montessori_pl.stages import GenerateResponses, Synthesize
from montessori_pl.stages.training.alignment_evaluator import AlignmentEvaluator, whole_response
from montessori_pl.synthesis.base import Synthesizer
from montessori_pl.synthesis.filters import InstructionFilter

LETTERS = ["a", "b", "c", "Ġ", "Ã", "©", "ab", "abc"]
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=8)
QUESTIONS = ["a", "b c", "cab", "abc"]


def bpe_tokenizer(letters: Sequence[str] = LETTERS, template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(BPE(vocabulary, [("a", "b"), ("ab", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_turns(tokenizer, template)


@pytest.fixture
def chat_template() -> ChatTemplate:
    return ChatTemplate(bpe_tokenizer())


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    """A random model, which takes any token for likely."""
    path = save_tiny_model(tmp_path / "model", vocab_size=len(SPECIAL) + len(LETTERS), initializer_range=0.1)
    bpe_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """All completions that are sampled from now on, as the model gave them."""
    rows: list[list[int]] = []

    def spy(chat_template: ChatTemplate, ids: Sequence[int], num_prompt_tokens: int, request: Request) -> Completion:
        rows.append(list(ids))
        return decoded(chat_template, ids, num_prompt_tokens, request)

    monkeypatch.setattr(transformers_backend, "decoded", spy)
    return rows


def ids(chat_template: ChatTemplate, *tokens: str) -> list[int]:
    found = chat_template.tokenizer.convert_tokens_to_ids(list(tokens))
    assert isinstance(found, list)
    return found


def ended(row: Sequence[int], end_id: int) -> list[int]:
    """A row of a batch without what stands behind its end token."""
    return list(row[: row.index(end_id) + 1] if end_id in row else row)


class TestChatTemplate:
    def test_only_another_split_is_kept(self, chat_template: ChatTemplate) -> None:
        assert chat_template.response_ids("abc") == ids(chat_template, "abc", "<end>")
        assert chat_template.sampled_tokens(ids(chat_template, "abc", "<end>")) is None
        assert chat_template.sampled_tokens(ids(chat_template, "abc")) is None
        other = chat_template.sampled_tokens(ids(chat_template, "ab", "c", "<end>"))
        assert other == SampledTokens(tuple(ids(chat_template, "ab", "c", "<end>")), chat_template.fingerprint)
        for tokens in (("Ã",), ("a", "<user>", "b", "<end>")):  # half of a character; a special token is no text
            assert chat_template.sampled_tokens(ids(chat_template, *tokens)) is not None

    def test_they_are_used_for_their_text_alone(self, chat_template: ChatTemplate) -> None:
        split = ids(chat_template, "a", "b", "c")
        end = [chat_template.end_id]
        whole, cut = (SampledTokens(tuple(one), chat_template.fingerprint) for one in (split + end, split))
        assert chat_template.response_ids("abc", True, whole) == split + end
        assert chat_template.response_ids("abc", False, cut) == split
        assert chat_template.response_ids("abc", True, cut) == split + end, "a cut answer is learned as a whole one"
        assert chat_template.response_ids("abc", False, whole) == ids(chat_template, "abc")
        assert chat_template.response_ids("abcc", True, whole) == ids(chat_template, "abc", "c", "<end>")
        strange = SampledTokens(whole.ids, "of another")
        assert chat_template.response_ids("abc", True, strange) == ids(chat_template, "abc", "<end>")

    def test_the_last_answer_of_a_conversation(self, chat_template: ChatTemplate) -> None:
        """Nothing else of the conversation changes, and the mask lies on the same answers."""
        tokens = SampledTokens(tuple(ids(chat_template, "ab", "c", "<end>")), chat_template.fingerprint)
        example = Example(id="e", instruction="abc", response="abc", system="", response_tokens=tokens)
        rendered = chat_template.render_example(example)
        assert rendered.input_ids == ids(chat_template, "<user>", "abc", "<assistant>", "ab", "c", "<end>")
        assert rendered.completion_mask == [False] * 3 + [True] * 3
        assert chat_template.render_example(example, 5).input_ids == rendered.input_ids[:5]

    def test_whose_tokens_they_are(self, chat_template: ChatTemplate) -> None:
        """The same ids of another vocabulary, and answers that end in another way, are not the same."""
        turned = bpe_tokenizer([*LETTERS[1::-1], *LETTERS[2:]])
        blank = TEMPLATE.replace(
            "{{ m['content'] }}", "{% if m['role'] == 'assistant' %} {% endif %}{{ m['content'] }}"
        )
        others = [ChatTemplate(turned), ChatTemplate(bpe_tokenizer(template=blank))]
        fingerprints = {one.fingerprint for one in (chat_template, *others)}
        assert len(fingerprints) == 3
        assert ChatTemplate(bpe_tokenizer()).fingerprint == chat_template.fingerprint

    def test_a_template_that_takes_blanks_away(self) -> None:
        """It would not write the blank that the model sampled."""
        trimming = ChatTemplate(bpe_tokenizer(template=TEMPLATE.replace("m['content']", "m['content'] | trim")))
        row = ids(trimming, "a", "Ġ", "<end>")
        tokens = trimming.sampled_tokens(row)
        assert trimming.response_ids("a ") == row
        assert tokens is not None
        example = Example(id="e", instruction="b", response="a ")
        assert trimming.render_example(example).input_ids[-2:] == ids(trimming, "a", "<end>")
        learned = trimming.render_example(dataclasses.replace(example, response_tokens=tokens))
        assert learned.input_ids[-3:] == row


def test_lines_hold_tokens_where_there_are_any() -> None:
    tokens = SampledTokens((3, 4), "v")
    plain = Example(id="e", instruction="i", response="r")
    rich = dataclasses.replace(plain, completion_tokens=tokens)
    assert "tokens" not in plain.to_json()
    assert json.loads(rich.to_json())["completion_tokens"] == {"ids": [3, 4], "vocabulary": "v"}
    assert Example.from_dict(json.loads(rich.to_json())) == rich
    pair = PreferencePair(
        id="p", prompt="q", chosen="a", rejected="b", chosen_id="c", rejected_id="r", margin=1.0, rejected_tokens=tokens
    )
    assert PreferencePair.from_dict(json.loads(pair.to_json())) == pair


def test_of_recorded_data_the_text_counts(tmp_path: Path) -> None:
    """Also where a column of this name holds something else, as a number of tokens."""
    tokens = SampledTokens((3, 4), "v")
    recorded = Example(id="e", instruction="i", response="r", prompt="p", response_tokens=tokens)
    rows = [json.loads(recorded.to_json()), {"instruction": "j", "response": "s", "response_tokens": 12}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = load_source(str(tmp_path / "data.jsonl"))
    assert [one.response for one in source.examples] == ["r", "s"]
    assert all(one.response_tokens is None for one in source.examples)
    assert source.examples[0].prompt == "p"
    assert source.unread == {"response_tokens": 2}


def test_answers_pairs_and_students(backbone: str, sampled: list[list[int]], tmp_path: Path) -> None:
    """A model answers, and is trained on its answers by DPO and by fine-tuning."""
    examples = [Example(id=str(number), instruction=text, response="a") for number, text in enumerate(QUESTIONS)]
    context = stage_context(
        tmp_path / "answers",
        inputs={"instructions": write(tmp_path / "asked" / "examples.jsonl", examples), "student": None},
        student=lambda: StandIn(backbone),
        backend=lambda: TransformersBackend(device="cpu"),
    )
    GenerateResponses(instructions="asked", student="base", samples=6, sampling=SAMPLING).run(context)
    answers = read_records(tmp_path / "answers" / "examples.jsonl", Example)
    pairs = pair_examples(
        answers, {one.id: Score(id=one.id, value=float(n)) for n, one in enumerate(answers)}, rule="best_worst"
    )
    pairs = [PreferencePair.from_dict(json.loads(pair.to_json())) for pair in pairs]
    chat_template = load_chat_template(ModelSource(backbone))
    rows = {tuple(ended(row, chat_template.end_id)) for row in sampled}

    fitting = encode_pairs(pairs, chat_template, 96)
    sides = [side for pair in fitting for side in (pair.chosen, pair.rejected)]
    assert len(fitting) == len(QUESTIONS)
    assert {_answer(side) for side in sides} <= rows
    learned = [_answer(one) for one in encode_examples(answers, chat_template, 96)[0]]
    end = (chat_template.end_id,)
    assert len(learned) == len(answers) > 12
    assert all(one in rows or (one[-1:] == end and one[:-1] in rows) for one in learned)

    texts = [dataclasses.replace(one, completion_tokens=None, response_tokens=None) for one in answers]
    tokenized = [_answer(one) for one in encode_examples(texts, chat_template, 96)[0]]
    assert sum(one != other for one, other in zip(learned, tokenized, strict=True)) > 6, "the texts say something else"
    other = ChatTemplate(bpe_tokenizer([*LETTERS[:6], "abc", "ab"]))
    assert encode_examples(answers, other, 96)[0] == encode_examples(texts, other, 96)[0]


def test_changed_texts_lose_their_tokens(backbone: str, sampled: list[list[int]], tmp_path: Path) -> None:
    """Of a completion that is more than the instruction in it, and of a response from which something was removed."""

    class Asks(Synthesizer):
        def prompt(
            self,
            rng: random.Random,
            seed_tasks: Sequence[Example],
            written: Sequence[Example],
            num_shots: int | None = None,
        ) -> tuple[str, tuple[str, ...]]:
            return rng.choice(QUESTIONS), ("seed",)

        def instruction(self, completion: str) -> str:
            return f"abc {completion}"

    write(tmp_path / "seeds.jsonl", [Example(id="seed", instruction="cc", response="c")])
    context = stage_context(
        tmp_path / "data",
        inputs={"teacher": None},
        data=DataSources(str(tmp_path / "seeds.jsonl"), "none"),
        teacher=lambda: StandIn(backbone),
        backend=lambda: TransformersBackend(device="cpu"),
    )
    stage = Synthesize(
        num_prompts=4,
        samples_per_prompt=4,
        synthesizer=Asks(),
        instruction_sampling=SAMPLING,
        response_sampling=SAMPLING,
        instruction_filter=InstructionFilter(min_characters=0),
        max_similarity=None,
        decontaminate=False,
    )
    stage.run(context)
    written = read_records(tmp_path / "data" / "examples.jsonl", Example)
    chat_template = load_chat_template(ModelSource(backbone))
    rows = {tuple(ended(row, chat_template.end_id)) for row in sampled}
    assert len(written) > 4
    for one in written:
        completion = chat_template.response_ids(one.completion, one.completion_finished, one.completion_tokens)
        assert tuple(completion) in rows
    learned = [_answer(one) for one in encode_examples(written, chat_template, 96)[0]]
    assert all(one in rows or one[:-1] in rows for one in learned)
    changed = [dataclasses.replace(one, response=f"a{one.response}") for one in written]
    for one, rendered in zip(changed, encode_examples(changed, chat_template, 96)[0], strict=True):
        assert list(_answer(rendered)) == chat_template.response_ids(one.response)


def test_divergence_is_that_of_the_sampled_tokens(backbone: str) -> None:
    """The monitor's estimate, against one row at a time under the teacher and without its adapter."""
    teacher = TeacherDPOModule(backbone, lora=LoraSettings(r=2, alpha=4))
    teacher.configure_model()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in teacher.optimized().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    chat_template = load_chat_template(teacher.source)
    prompts: list[list[Message]] = [[{"role": "user", "content": text}] for text in QUESTIONS]
    evaluation = AlignmentEvaluator(
        teacher=teacher,
        chat_template=chat_template,
        held_out=[],
        prompts=prompts,
        num_samples=len(prompts),
        sampling=SAMPLING,
        read=whole_response,
        seed=3,
        batch_size=2,
    ).evaluate()
    network = teacher.network.eval()
    engine = TransformersBackend(device="cpu")
    engine.serve(network, chat_template)
    requests = [Request(messages=prompt, seed=stable_seed(3, "look", number)) for number, prompt in enumerate(prompts)]
    total, count, others = 0.0, 0, 0
    for prompt, completion in zip(prompts, engine.generate(requests, SAMPLING), strict=True):
        before = chat_template.prompt_ids(prompt)
        answer = (
            list(completion.tokens.ids)
            if completion.tokens
            else chat_template.response_ids(completion.text, completion.finished)
        )
        assert len(answer) == completion.num_tokens
        others += completion.tokens is not None
        inputs = torch.tensor([before + answer])
        places = range(len(before) - 1, inputs.shape[1] - 1)
        with torch.no_grad():
            policy = network(input_ids=inputs).logits[0].log_softmax(-1)
            with network.disable_adapter():  # type: ignore[operator]
                reference = network(input_ids=inputs).logits[0].log_softmax(-1)
        total += sum(float((policy - reference)[place, inputs[0, place + 1]]) for place in places)
        count += len(answer)
    assert others >= 2
    assert evaluation["divergence"] == pytest.approx(total / count, rel=1e-4, abs=1e-5)


def _answer(rendered: Rendered) -> tuple[int, ...]:
    """The tokens of which the loss is taken."""
    return tuple(id for id, learned in zip(rendered.input_ids, rendered.completion_mask, strict=True) if learned)
