"""Pages of an unfinished study, made of a real store."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl
import pytest

from aligngap.experiments.bench import ArmEntry
from aligngap.experiments.plan import Plan
from aligngap.experiments.spec import StudySpec
from aligngap.live import making
from aligngap.live.folder import Look, Watched
from aligngap.live.making import LivePage, Maker, NoPage, Renewal
from aligngap.pipeline.stages import Evaluate
from tiny import Tiny
from unit.live.run_folder import snapshot, stage, write_run
from unit.report.fixture_results import HOSTILE


class Unfinished:
    """A study of one experiment of which two arms have been evaluated, in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.tiny = Tiny(folder)
        bench = self.tiny.bench
        changed = {"experiments": ("coverage",), "title": f"Tiny{HOSTILE}"}
        self.study = StudySpec.model_validate(bench.study.model_dump(mode="json") | changed)
        self.plan = Plan(self.study)
        self.given = self.study.model_dump(mode="json")
        self.evaluations = {entry.family: self.tiny.bench.evaluation(entry) for entry in self.arms}
        for family in ("golden_policy", "online"):
            self.tiny.made(self.evaluations[family])

    @property
    def arms(self) -> list[ArmEntry]:
        return [arm.entry for arm in self.plan.tasks["summarisation"].arms]

    def look(self, store: Path | None = None, ended: Sequence[str] = ()) -> Look:
        """At the run with two arms pending; `ended`: stages that it says it has made."""
        pending = [entry for entry in self.arms if entry.family in ("offline", "shuffled")]
        waiting = [part for entry in pending for part in (entry.stage, self.evaluations[entry.family])]
        rows = [stage(part.identity, "waiting") for part in waiting] + [stage(name, "finished") for name in ended]
        return Look("running", {"stages": rows}, store or self.tiny.store.root)

    def maker(self, folder: Path, file: Path | None = None, **changes: object) -> Maker:
        """Of a folder in which this study runs, with some settings changed."""
        (write_run(folder) / "study.json").write_text(json.dumps(self.given | changes))
        return Maker(Watched(folder, file))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Unfinished:
    return Unfinished(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def begun(unfinished: Unfinished) -> Iterator[Evaluate]:
    """The offline arm's evaluation as a run leaves it in the midst: one checkpoint of it."""
    evaluation = unfinished.evaluations["offline"]
    made = unfinished.tiny.store.get(unfinished.evaluations["online"].identity).path
    folder = unfinished.tiny.store.partial(evaluation.identity)
    for kind, name in (("prompts", "per_prompt"), ("pairs", "per_pair")):
        first = pl.read_parquet(made / f"{name}.parquet").filter(pl.col("step") == 0)
        first.write_parquet(Evaluate.file(folder, kind, 0))
    yield evaluation
    shutil.rmtree(folder)


def test_a_page_says_that_it_is_unfinished_and_what_it_rests_on(unfinished: Unfinished, tmp_path: Path) -> None:
    page = unfinished.maker(tmp_path).make(unfinished.look())
    assert isinstance(page, LivePage)
    text = page.html.decode()
    assert "Unfinished: 2 arms and measures are still to come." in text
    assert "Rests on 1 of 3 arms and measures." in text
    assert "Still to come: offline lr=0.01 beta=0.1 (seed 0); shuffled (seed 0)." in text
    assert "0 supported, 0 contradicted, 0 inconclusive, 1 unfinished" in text
    assert "So far: " in text
    assert (page.final, page.arms, page.of) == (False, 2, 4)
    assert "<img src=x" not in text
    assert "default-src 'none'" in page.policy


def test_the_same_again_is_not_made_again(unfinished: Unfinished, tmp_path: Path) -> None:
    maker = unfinished.maker(tmp_path)
    assert isinstance(maker.make(unfinished.look()), LivePage)
    assert maker.make(unfinished.look()) == NoPage()


def test_a_checkpoint_more_is_something_new_and_enters_no_estimate(
    unfinished: Unfinished, begun: Evaluate, tmp_path: Path
) -> None:
    maker = unfinished.maker(tmp_path)
    page = maker.make(unfinished.look())
    assert isinstance(page, LivePage)
    assert "Rests on 1 of 3 arms and measures." in page.html.decode()
    assert page.arms == 2
    folder = unfinished.tiny.store.unfinished(begun.identity)
    for kind in ("prompts", "pairs"):
        later = pl.read_parquet(Evaluate.file(folder, kind, 0)).with_columns(step=pl.lit(1))
        later.write_parquet(Evaluate.file(folder, kind, 1))
    assert isinstance(maker.make(unfinished.look()), LivePage)


def test_before_the_first_checkpoint_there_is_no_page(unfinished: Unfinished, tmp_path: Path) -> None:
    assert unfinished.maker(tmp_path / "run").make(unfinished.look(tmp_path / "nowhere")) == NoPage()
    assert not (tmp_path / "nowhere").exists()


def test_what_is_swept_away_is_missing_and_the_rest_stands(unfinished: Unfinished, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(unfinished.tiny.store.root, store)
    online = unfinished.evaluations["online"].identity
    shutil.rmtree(store / online)
    maker = unfinished.maker(tmp_path / "run")
    page = maker.make(unfinished.look(store, ended=[online]))
    assert isinstance(page, LivePage)
    assert "Missing for good: online (seed 0)." in page.html.decode()
    assert "it is not in the store any more" in page.html.decode()
    assert page.arms == 1
    shutil.rmtree(store)
    assert maker.make(unfinished.look(store, ended=[online])) == NoPage()


def test_half_of_an_artefact_is_a_problem_that_is_said(unfinished: Unfinished, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(unfinished.tiny.store.root, store)
    (store / unfinished.evaluations["online"].identity / "per_prompt.parquet").unlink()
    answer = unfinished.maker(tmp_path / "run").make(unfinished.look(store))
    assert isinstance(answer, NoPage)
    assert "per_prompt.parquet: missing" in str(answer.problem)


def test_a_page_that_failed_is_tried_again(unfinished: Unfinished, tmp_path: Path) -> None:
    """What a page was made of is remembered only of one that came about."""
    store = tmp_path / "store"
    shutil.copytree(unfinished.tiny.store.root, store)
    part = store / unfinished.evaluations["online"].identity / "per_prompt.parquet"
    whole = part.read_bytes()
    part.unlink()
    maker = unfinished.maker(tmp_path / "run")
    assert isinstance(maker.make(unfinished.look(store)), NoPage)
    part.write_bytes(whole)
    assert isinstance(maker.make(unfinished.look(store)), LivePage)


def test_a_study_of_another_version_is_one_sentence(unfinished: Unfinished, tmp_path: Path) -> None:
    answer = unfinished.maker(tmp_path, no_such_key=1).make(unfinished.look())
    assert isinstance(answer, NoPage)
    assert "the study cannot be read: Extra inputs are not permitted" in str(answer.problem)
    assert "--study FILE" in str(answer.problem)


PLUGIN = """
from pathlib import Path
from aligngap.losses import LOSSES, ipo
Path(__file__).with_name("imported").touch()
LOSSES["watched"] = LOSSES["ipo"]
"""


def test_a_plugin_is_imported_for_a_file_that_is_given_and_never_for_a_folder(
    unfinished: Unfinished, tmp_path: Path
) -> None:
    (tmp_path / "watched_plugin.py").write_text(PLUGIN)
    file = tmp_path / "mine.yaml"
    file.write_text("extends: paper\nplugins: [watched_plugin]\n")
    plugins = ["watched_plugin"]
    foreign = unfinished.maker(tmp_path / "foreign", plugins=plugins).make(unfinished.look())
    assert isinstance(foreign, LivePage)  # the plugin has no part in this study's identities
    assert not (tmp_path / "imported").exists()
    strange = unfinished.maker(tmp_path / "strange", plugins=plugins, experiments=["of_plugin"])
    unknown = strange.make(unfinished.look())
    assert isinstance(unknown, NoPage)
    assert "no experiment 'of_plugin'" in str(unknown.problem)
    assert "say --study FILE" in str(unknown.problem)
    own = unfinished.maker(tmp_path / "own", file, plugins=plugins).make(unfinished.look())
    assert isinstance(own, LivePage)
    assert (tmp_path / "imported").exists()


def test_code_that_comes_with_a_model_is_never_trusted(unfinished: Unfinished, tmp_path: Path) -> None:
    base = {"path": unfinished.study.models.policy.path, "trust_remote_code": True}
    models = {"policy": base, "golden": base, "proxy": base, "sizes": [base]}
    assert StudySpec.model_validate(unfinished.given | {"models": models}).models.policy.trust_remote_code
    plan = unfinished.maker(tmp_path, models=models).plan
    assert "trust_remote_code" not in json.dumps(plan.specification)
    # It is no part of what names an artefact.
    wanted = [stage.identity for stage in unfinished.plan.tasks["summarisation"].reads]
    assert [stage.identity for stage in plan.tasks["summarisation"].reads] == wanted


def test_the_finished_report_is_made_of_results_alone(tmp_path: Path) -> None:
    from unit.report.fixture_results import write_results

    folder = write_results(write_run(tmp_path, "finished"))
    maker = Maker(Watched(folder))
    look = Watched(folder).look()
    page = maker.make(look)
    assert isinstance(page, LivePage)
    assert page.final
    assert "Unfinished:" not in page.html.decode()
    assert maker.make(look) == NoPage()


def test_nothing_is_written_where_the_run_lives(unfinished: Unfinished, begun: Evaluate, tmp_path: Path) -> None:
    """Neither into the folder nor into the store, by looking, by making pages, by serving them."""
    folder = write_run(tmp_path / "run", "interrupted", [stage(begun.identity, "interrupted", label="x")])
    (folder / "study.json").write_text(json.dumps(unfinished.given))
    shutil.copytree(unfinished.tiny.store.root, folder / "store")
    before = snapshot(folder)
    watched = Watched(folder)
    look = watched.look()
    assert watched.summary(look)["state"] == "interrupted"
    assert isinstance(Maker(watched).make(look), LivePage)
    assert snapshot(folder) == before


def test_the_death_of_the_process_that_makes_pages_is_survived(
    unfinished: Unfinished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "_AFTER_A_DEATH", 0.0)
    monkeypatch.setattr(making, "_REST", 0.0)
    rows = [stage(name.identity, "waiting") for name in unfinished.plan.tasks["summarisation"].reads]
    folder = write_run(tmp_path / "run", "interrupted", rows)
    (folder / "study.json").write_text(json.dumps(unfinished.given))
    (folder / "store").symlink_to(unfinished.tiny.store.root)
    watched = Watched(folder)
    renewal = Renewal(watched)
    try:
        renewal.tick(watched.look())
        assert renewal.making
        child = renewal._child
        assert child is not None
        child.kill()
        _until(renewal, watched, lambda: renewal.problem is not None)
        assert "killed by SIGKILL" in str(renewal.problem)
        _until(renewal, watched, lambda: renewal.making)
        assert renewal._child is not child
    finally:
        renewal.close()
    assert renewal._child is not None
    assert renewal._child.pid is None


def _until(renewal: Renewal, watched: Watched, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, renewal.problem
        renewal.tick(watched.look())
        time.sleep(0.05)
