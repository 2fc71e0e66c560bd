"""How the files of each format are read: the part of a card that a reader copies from.

If you change a setting for another program, run that program on the files and note its version here.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from montessori_pl.data.markup import code_span
from montessori_pl.export.formats import (
    DATASET_INFO,
    TRAIN,
    dataset_name,
    has_history,
    has_system,
    score_columns,
    unlearned_answers,
)
from montessori_pl.export.markdown import bullets, code, prose
from montessori_pl.export.source import Source

_LOAD = code(
    f"""\
from datasets import load_dataset

dataset = load_dataset("json", data_files="{TRAIN}", split="train")
""",
    "python",
)
_SFT = code(
    """\
from trl import SFTConfig, SFTTrainer

SFTTrainer(model, args=SFTConfig(), train_dataset=dataset, processing_class=tokenizer).train()
""",
    "python",
)
_DPO = code(
    """\
from trl import DPOConfig, DPOTrainer

DPOTrainer(model, args=DPOConfig(), train_dataset=dataset, processing_class=tokenizer).train()
""",
    "python",
)
_LLAMA_FACTORY = "LLaMA-Factory (run with version 0.9.5)"
_AXOLOTL = "axolotl (run with version 0.19.0)"
_END = """The paths are as seen from this directory. The text holds no end tokens: a trainer puts one behind each
    response as it renders the conversation."""


def usage(source: Source, format: str) -> str:
    """What a row holds, and how `datasets`, TRL, LLaMA-Factory and axolotl read the files."""
    return "\n\n".join({"alpaca": _alpaca, "messages": _messages, "dpo": _dpo, "hf": _hf}[format](source))


def _alpaca(source: Source) -> list[str]:
    system = has_system(source)
    more = [f"`{name}`" for name, has in (("system", has_system), ("history", has_history)) if has(source)]
    turns = (
        " `history` holds the turns before the instruction, as pairs of a user turn and its answer; LLaMA-Factory "
        "reads it, and axolotl does not."
    )
    return [
        prose(
            "A row holds its `id`, `instruction`, `input` (always empty), `output`"
            + (f", and {' and '.join(more)}, which may be empty." if more else ".")
            + (turns if has_history(source) else "")
            + (
                f" Of the answers in it {unlearned} are not to be learned (their weight is 0), which these columns "
                "cannot say; the format `messages` says it."
                if (unlearned := unlearned_answers(source))
                else ""
            )
        ),
        _LOAD,
        *_llama_factory(source, "sft"),
        prose(
            f"For {_AXOLOTL}, which puts words of the Alpaca prompt around each instruction (in the format `messages` "
            "it takes the model's chat template):"
        ),
        _axolotl(type="alpaca_w_system.load_instruct" if system else "alpaca"),
        prose(_END),
    ]


def _messages(source: Source) -> list[str]:
    return [
        prose(
            "A row holds its `id` and `messages`, a list of turns with `role` and `content`."
            + (
                f" {unlearned} earlier answers have `weight` 0, as OpenAI writes it: they are not to be learned. Look "
                "whether your trainer reads it."
                if (unlearned := unlearned_answers(source))
                else ""
            )
        ),
        _LOAD,
        _SFT,
        prose(
            """TRL trains on whole conversations; with `SFTConfig(assistant_only_loss=True)`, and a chat template that
            marks them, on the responses alone, as Montessori PL does."""
        ),
        *_llama_factory(source, "sft"),
        prose(f"For {_AXOLOTL}:"),
        _axolotl(type="chat_template"),
        prose(_END),
    ]


def _dpo(source: Source) -> list[str]:
    return [
        prose(
            """A row holds `prompt`, `chosen` and `rejected`, each a list of turns with `role` and `content`; its `id`;
            `score_margin`, by how much the chosen completion scored higher; and `weight`, how much the pair counts in
            an alignment by Montessori PL (1 on average). These trainers read neither of the last two."""
        ),
        _LOAD,
        _DPO,
        *_llama_factory(source, "dpo"),
        prose(
            f"""For {_AXOLOTL}; it hands the turns to TRL, which cuts what is longer than `sequence_len`. Its own
            `chat_template.default` searches the rendered text for the completion, and mistakes other words for a
            short one:"""
        ),
        _axolotl(type="passthrough", head={"rl": "dpo", "skip_prepare_dataset": True}),
        prose(_END + " Pairs with a completion that was cut at its token limit are therefore left out."),
    ]


def _hf(source: Source) -> list[str]:
    fields = [
        "`id`, `instruction`, `response` and `system`: the example; `history`: the turns before the instruction.",
        "`prompt_id`, `prompt` and `completion`: what the teacher was asked, and all that it wrote to give the "
        "instruction; `completion_finished`: whether it ended that itself.",
        "`teacher`, `seed_task_ids` and `batch`: who wrote it, which examples it was shown, and in which batch.",
    ]
    for judge in source.judges:
        value, error = score_columns(judge.key)
        both = f"{code_span(value)} and {code_span(error)}"
        fields.append(f"{both}: its score and the score's standard error; empty where there is none.")
    load = 'from datasets import load_from_disk\n\ndataset = load_from_disk(".")["train"]'
    remark = """This is to be looked into and selected from. A student is to be trained on `instruction` and `response`,
        as the other formats hold them, and not on `prompt` and `completion`, which some trainers look for."""
    return [prose("A row is a whole record:"), bullets(fields), code(load, "python"), prose(remark)]


def _llama_factory(source: Source, stage: str) -> list[str]:
    return [
        prose(f"For {_LLAMA_FACTORY}:"),
        _yaml({"stage": stage, "dataset": dataset_name(source), "dataset_dir": "."}),
        prose(
            f"""or with the entry of `{DATASET_INFO}` in that of a `dataset_dir` of yours, from where `file_name` must
            then lead here."""
        ),
    ]


def _axolotl(type: str, head: Mapping[str, Any] | None = None) -> str:
    return _yaml({**(head or {}), "datasets": [{"path": TRAIN, "type": type, "split": "train"}]})


def _yaml(settings: Mapping[str, Any]) -> str:
    return code(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), "yaml")
