"""Names of what is made on first use, beside hub ids and paths: `classroom/teacher`, `model.gguf`."""

from montessori_pl.classroom import names as classroom
from montessori_pl.worlds.gguf import checkpoint, gguf_file


def locate_backbone(backbone: str) -> str:
    """The hub id or the path of a whole model, which is made first if need be: of the classroom's or of a GGUF file.

    Raises:
        ValueError: there is nothing of this name, or the file cannot be read.
    """
    file = gguf_file(backbone)
    return classroom.locate(backbone) if file is None else str(checkpoint(file))
