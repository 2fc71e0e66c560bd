"""The questions of a run's test set, which is not part of the run directory: for a page that shows answers to them."""

from montessori_pl.data.formats import load_source, source_path
from montessori_pl.report.page.run_data import RunData
from montessori_pl.run_directory.fingerprint import same, with_content
from montessori_pl.worlds.names import in_world, kept, with_versions


def read_questions(run: RunData) -> dict[str, tuple[str, str]]:
    """What each item of the test set asks and expects, by its id; nothing where the set is gone or has changed.

    It is no mistake if it is not there: a run may be looked at on another machine than that on which it was made.
    """
    source = run.test_set
    try:
        place = kept(source) if source else None
        if place is None:
            return {}
        now = with_versions(source) if in_world(source) else with_content(source, source_path(source))
        if not same(run.pinned_test_set, now):
            return {}
        return {one.id: ("\n\n".join(one.user_turns()), one.response) for one in load_source(place).examples}
    except (ValueError, OSError):
        return {}
