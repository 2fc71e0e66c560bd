"""How the files of each format are read: the part of a card that a reader copies from."""

from montessori_pl.export.formats import DATASET_INFO, TRAIN, dataset_name, has_system, score_columns
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
_END = """The text holds no end tokens: a trainer puts one behind each response, and renders the conversation with the
    chat template of the model that it trains."""


def usage(source: Source, format: str) -> str:
    """What a row holds, and how `datasets`, TRL, LLaMA-Factory and axolotl read the files."""
    return "\n\n".join({"alpaca": _alpaca, "messages": _messages, "dpo": _dpo, "hf": _hf}[format](source))


def _alpaca(source: Source) -> list[str]:
    system = has_system(source)
    return [
        prose(
            "A row holds its `id`, `instruction`, `input` (always empty), `output`"
            + (", and `system`, which may be empty." if system else ".")
        ),
        _LOAD,
        _llama_factory(source, "sft"),
        prose(
            "For axolotl, which puts the words of the Alpaca prompt around each instruction"
            + (" and does not read `system` here (the format `messages` keeps it):" if system else ":")
        ),
        _axolotl("alpaca"),
        prose(_END),
    ]


def _messages(source: Source) -> list[str]:
    return [
        prose("A row holds its `id` and `messages`, a list of turns with `role` and `content`."),
        _LOAD,
        _SFT,
        prose(
            """TRL trains on whole conversations; with `SFTConfig(assistant_only_loss=True)`, and a chat template that
            marks them, on the responses alone, as Montessori PL does."""
        ),
        _llama_factory(source, "sft"),
        prose("For axolotl:"),
        _axolotl("chat_template"),
        prose(_END),
    ]


def _dpo(source: Source) -> list[str]:
    return [
        prose(
            """A row holds `prompt`, `chosen` and `rejected`, each a list of turns with `role` and `content`; its `id`;
            `score_margin`, by how much the chosen completion scored higher; and `weight`, how much the pair counts in
            an alignment by Montessori PL (1 on average). TRL reads neither of the last two."""
        ),
        _LOAD,
        _DPO,
        _llama_factory(source, "dpo"),
        prose("For axolotl, in versions that take lists of turns in `chosen`:"),
        _axolotl("chat_template.default", rl="dpo", field_messages="prompt", split="train"),
        prose(_END + " Pairs with a completion that was cut at its token limit are therefore left out."),
    ]


def _hf(source: Source) -> list[str]:
    fields = [
        "`id`, `instruction`, `response` and `system`: the example.",
        "`prompt_id`, `prompt` and `completion`: what the teacher was asked, and all that it wrote to give the "
        "instruction; `completion_finished`: whether it ended that itself.",
        "`teacher`, `seed_ids` and `round`: who wrote it, which examples it was shown, and in which batch.",
    ]
    for judge in source.judges:
        value, error = score_columns(judge.key)
        fields.append(f"`{value}` and `{error}`: its score and the score's standard error; empty where there is none.")
    load = 'from datasets import load_from_disk\n\ndataset = load_from_disk(".")["train"]'
    remark = """This is to be looked into and selected from. A student is to be trained on `instruction` and `response`,
        as the other formats hold them, and not on `prompt` and `completion`, which some trainers look for."""
    return [prose("A row is a whole record:"), bullets(fields), code(load, "python"), prose(remark)]


def _llama_factory(source: Source, stage: str) -> str:
    return prose(
        f"""For LLaMA-Factory: `stage: {stage}`, `dataset: {dataset_name(source)}`, and this directory as `dataset_dir`;
        or with the entry of `{DATASET_INFO}` in its own."""
    )


def _axolotl(type: str, rl: str = "", **settings: str) -> str:
    lines = [f"  - path: {TRAIN}", f"    type: {type}", *(f"    {name}: {value}" for name, value in settings.items())]
    return code("\n".join([*([f"rl: {rl}"] if rl else []), "datasets:", *lines]), "yaml")
