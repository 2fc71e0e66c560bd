"""The data card: `README.md` as the Hugging Face hub reads it, made from the run directory alone."""

import hashlib
import textwrap
from pathlib import Path

import yaml

from montessori_pl import __version__
from montessori_pl.data.markup import code_span, in_markdown
from montessori_pl.data.text import printable
from montessori_pl.export.account import how_made, how_scored, what_came_out
from montessori_pl.export.formats import TRAIN
from montessori_pl.export.markdown import prose, table
from montessori_pl.export.source import Source
from montessori_pl.export.usage import usage

CARD = "README.md"
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
"""The hub's names of powers of ten, from a thousand on."""
_EXAMPLES = """{count} instructions with responses, to train a language model on; {who}. Nobody has read and corrected
    them in the run: expect mistakes among them."""
_PAIRS = "{count} pairs of completions of one prompt, of which the first is preferred, to align a language model with."
_OF_INSTRUCTIONS = """The prompts ask for a new instruction, and the completions are what the teacher wrote, whole: they
    are no answers to the questions of users."""
_OF_RESPONSES = """The prompts are instructions, and the completions are responses to them. Nobody has read and
    corrected them in the run: expect mistakes also in what is preferred."""


def write_card(source: Source, directory: Path, format: str, license: str | None, command: str) -> None:
    """Write the card beside the files that it describes.

    Args:
        source: what was exported.
        directory: where the files lie.
        format: their format.
        license: under which licence the user publishes them; none if not given.
        command: what makes the same files again.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    digests = ((code_span(path.relative_to(directory)), code_span(_sha256(path))) for path in files)
    sections = {
        "Files": f"{table(('file', 'SHA-256'), digests)}\n\n{usage(source, format)}",
        "How it was made": how_made(source),
        "What came out": what_came_out(source),
        "How it was scored": how_scored(source),
        "Licences": _licences(license),
        "Making it again": _again(source, command),
    }
    exported = f"Exported as {code_span(format)} from {code_span(source.stage.key)}."
    parts = [f"# {in_markdown(_title(source))}", prose(f"{_summary(source)} {exported}")]
    parts += [f"## {heading}\n\n{text}" for heading, text in sections.items()]
    body = "\n\n".join(parts)
    (directory / CARD).write_text(f"---\n{_front_matter(source, format, license)}---\n\n{body}\n", encoding="utf-8")


def _front_matter(source: Source, format: str, license: str | None) -> str:
    path = "train/*.arrow" if format == "hf" else TRAIN
    content = {
        **({"license": license} if license is not None else {}),
        "pretty_name": _title(source),
        "task_categories": ["text-generation"],
        "size_categories": [_SIZES[min(max(len(str(source.count)) - 3, 0), len(_SIZES) - 1)]],
        "tags": [*(["synthetic"] if _synthetic(source) else []), "montessori-pl"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": path}]}],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _title(source: Source) -> str:
    return f"{source.run.resolve().name}, {source.stage.name}"


def _summary(source: Source) -> str:
    if source.pairs:
        text = _PAIRS.format(count=len(source.pairs))
        if not source.examples:  # what was asked is known from them alone
            return text
        return f"{text} {_OF_RESPONSES if source.of_responses else _OF_INSTRUCTIONS}"
    who = "a teacher language model wrote them" if _synthetic(source) else "they were not written in the run"
    return _EXAMPLES.format(count=len(source.examples), who=who)


def _synthetic(source: Source) -> bool:
    """Whether a teacher is known to have written some of it."""
    return any(source.teachers().keys() - {""})


def _licences(license: str | None) -> str:
    named = f"has named the licence {code_span(license)}" if license is not None else "has named no licence"
    return prose(
        f"""The person who exported the data {named}. The run does not know, and has not checked, what the licences and
        terms of those allow on whose work it rests: of the teachers above, which may restrict what their outputs are
        used for, and of the seeds, which the teachers were shown. That is yours to check before you use or publish
        it."""
    )


def _again(source: Source, command: str) -> str:
    settings = f"""from files of the run whose hashes were as its manifest says. The settings of all stages above, their
        seeds included, have the digest `{source.settings_digest}`."""
    indented = textwrap.indent(printable(command), "    ", lambda line: True)
    return f"Montessori PL {__version__} wrote this with\n\n{indented}\n\n{prose(settings)}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
