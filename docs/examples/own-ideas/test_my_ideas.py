"""The contract tests that aligngap's own losses, sources, judges, worlds, measures and experiments have to pass."""

from my_ideas import EXPERIMENTS, ContrastFirst, ShorterSpec, Terse, words

from aligngap.testing import check_experiment, check_judge, check_measure, check_source, check_world


def test_my_ideas_keep_their_contracts() -> None:
    check_source(ContrastFirst())
    check_judge(ShorterSpec())
    check_world(Terse)
    check_measure(words)
    check_experiment(EXPERIMENTS["contrast_first"])
