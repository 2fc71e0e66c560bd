"""Where the rows came from, in sentences and tables: how they were made, what came out, and how they were scored."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from montessori_pl.data.markup import code_span, in_markdown
from montessori_pl.export.markdown import bullets, code, prose, table
from montessori_pl.export.source import FinishedStage, Source

_DIVERSITY = {
    "distinct_rate": "different instructions, as a share",
    "distinct_2": "different pairs of neighbouring words, as a share",
    "token_entropy": "entropy of the words, in nats",
    "first_word_entropy": "entropy of the first words, in nats",
    "mean_characters": "mean length in characters",
    "mean_max_rouge_l": "mean ROUGE-L of an instruction and the one most like it",
}
_SETTINGS = {
    "instruction_sampling": "Sampling of instructions",
    "response_sampling": "Sampling of responses",
    "instruction_filter": "Which instructions were kept",
    "response_filter": "Which responses were kept",
}


def how_made(source: Source) -> str:
    """The teachers, the stages that led here, the rules by which the rows were kept, and the settings."""
    teachers = ((code_span(name) if name else "not recorded", count) for name, count in source.teachers().most_common())
    steps = (
        (
            code_span(step.key),
            code_span(step.what),
            ", ".join(f"{in_markdown(setting)}: {code_span(key)}" for setting, key in step.reads.items()),
        )
        for step in source.steps
    )
    stages = {stage.key: stage for stage in (source.origin, source.stage) if stage is not None}
    # Not the settings of the engine: they may hold addresses, and a card is made to be published.
    settings = yaml.safe_dump(
        {key: dict(stage.settings) for key, stage in stages.items()}, sort_keys=False, allow_unicode=True
    )
    parts = [
        table(("teacher", "completions" if source.pairs else "examples"), teachers),
        prose("Behind a plus stands the stage that trained the teacher. These stages of the run led to the data:"),
        table(("stage", "what it is", "what it reads"), steps),
        bullets(sentence for stage in stages.values() for sentence in _rules(stage)),
        prose("The settings, whole:"),
        code(settings, "yaml"),
    ]
    return "\n\n".join(part for part in parts if part)


def what_came_out(source: Source) -> str:
    """How many were kept and rejected, how varied they are, and what the run warns of."""
    parts = [_paired(source)] if source.pairs else []
    if (origin := source.origin) is not None:
        rejected = origin.metrics.get("rejected", {})
        accepted = len(source.examples) + source.unanswered
        counts = f"{accepted} examples and rejected {sum(rejected.values())} candidates"
        left_out = f"; {source.unanswered} instructions without a response are left out" if source.unanswered else ""
        parts.append(prose(f"{code_span(origin.key)} accepted {counts}{left_out}."))
        if rejected:
            reasons = ((in_markdown(reason), count) for reason, count in rejected.items())
            parts.append(table(("rejected because", "candidates"), reasons))
        if diversity := origin.metrics.get("diversity"):
            named = ((_DIVERSITY.get(name, in_markdown(name)), _number(value)) for name, value in diversity.items())
            parts.append(table(("the accepted instructions", "how varied"), named))
        if responses := origin.metrics.get("response_diversity"):
            distinct = (("different responses, as a share", _number(responses["distinct_rate"])),)
            parts.append(table(("the accepted responses", "how varied"), distinct))
        parts += [
            prose(f"**The run warns:** {in_markdown(sentence)}.") for sentence in origin.metrics.get("warnings", [])
        ]
    return "\n\n".join(parts)


def how_scored(source: Source) -> str:
    """What each stage that scored the examples found."""
    if not source.judges:
        return prose("No stage of the run has scored these examples.")
    rows = (
        (
            code_span(judge.key),
            code_span(_class_name(judge.settings.get("signal"))),
            code_span(judge.reads.get("student", "-")),
            judge.metrics.get("count", "-"),
            f"{_number(judge.metrics.get('mean'))} ± {_number(judge.metrics.get('standard_error'))}",
            _number(judge.metrics.get("positive_rate")),
            _number(judge.metrics.get("reference_loss")),
        )
        for judge in source.judges
    )
    header = ("stage", "signal", "student", "scored", "mean", "positive share", "reference loss of the student")
    remark = "Higher is better for the student. Behind ± stands the standard error of the mean over examples."
    return f"{table(header, rows)}\n\n{prose(remark)}"


def _paired(source: Source) -> str:
    metrics = source.stage.metrics
    left_out = f" ({source.cut} left out, with a completion cut at its token limit)" if source.cut else ""
    told = [f"{len(source.pairs)} pairs{left_out}"]
    if {"prompts", "prompts_with_pairs"} <= metrics.keys():
        told.append(f"of {metrics['prompts']} prompts {metrics['prompts_with_pairs']} gave some")
    if "mean_margin" in metrics:
        told.append(f"the mean difference of scores is {_number(metrics['mean_margin'])}")
    return prose("; ".join(told) + ".")


def _rules(stage: FinishedStage) -> Iterator[str]:
    """What the stage's settings mean, as far as they are those of stages that ship with the program."""
    settings = stage.settings
    if "source" in settings:
        yield f"The examples were read from {code_span(settings['source'])}, not written in this run."
    for name, title in _SETTINGS.items():
        if isinstance(found := settings.get(name), Mapping):
            yield f"{title}: {_listed(found)}."
            if found.get("allow_unfinished"):
                yield "Responses that were cut at the token limit are among the rows, and are not marked."
    if "max_similarity" in settings:
        limit = settings["max_similarity"]
        earlier = "a seed or an earlier instruction"
        alike = f"repeat {earlier}" if limit is None else f"have a ROUGE-L F1 above {limit} with {earlier}"
        yield f"Instructions that {alike} were dropped."
    if "decontaminate" in settings:
        yield f"Instructions of the reference or test set were {'dropped' if settings['decontaminate'] else 'kept'}."
    if "rule" in settings:
        yield f"Completions of one prompt were paired by the rule {code_span(settings['rule'])}."
    if settings.get("at_random"):
        yield "**This is a control:** both sides of each pair were drawn at random."
    if engine := stage.sections.get("generation"):
        yield f"Engine: {code_span(_class_name(engine))}."
    if data := stage.sections.get("data"):
        yield f"Data: {_listed(data)}."


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{in_markdown(name)} {code_span(', '.join(map(str, value)) if isinstance(value, list) else value)}"
        for name, value in settings.items()
    )


def _class_name(setting: Any) -> str:
    return str(setting["class_path"]).rpartition(".")[2] if isinstance(setting, Mapping) else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
