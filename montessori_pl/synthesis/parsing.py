"""From what the teacher wrote to the instruction inside it."""

from montessori_pl.synthesis.filters import Rejected

OPENING, CLOSING = "<instruction>", "</instruction>"


def parse_instruction(completion: str) -> str:
    """The text of the last `<instruction>...</instruction>`, blanks at both ends removed and nothing else changed.

    Teachers repeat the asked-for form in their rationale, so the last pair counts; a tag that was opened again before
    it was closed begins at its last opening.

    Raises:
        Rejected: `no instruction tag` when no pair is complete, `empty instruction` when the last is blank.
    """
    before, closing, _ = completion.rpartition(CLOSING)
    _, opening, inside = before.rpartition(OPENING)
    if not (opening and closing):
        detail = "opened, never closed" if OPENING in completion else f"none in {len(completion)} characters"
        raise Rejected("no instruction tag", detail)
    # A stray second closing tag ends nothing: the text stops at the first one after the opening.
    instruction = inside.partition(CLOSING)[0].strip()
    if not instruction:
        raise Rejected("empty instruction", "the last tag holds only blanks")
    return instruction
