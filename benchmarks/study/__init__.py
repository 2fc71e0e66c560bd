"""The parts of `benchmarks/classroom_study.py`.

settings     what is decided beforehand: worlds, seeds, arms and comparisons, from one YAML file
runs         the run directories of a cell: which there are, what they take over from each other, how they are run
measures     what is read from them
checks       what makes the arms of a cell comparable
comparisons  one arm minus another over cells, how far that can be trusted, and which students collapsed
tables       what is printed
figures      what is drawn
"""


class StudyError(Exception):
    """Why the study cannot go on or says nothing, in a sentence."""
