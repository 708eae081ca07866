"""The page: one file, loads nothing, and shows foreign text as text."""

import base64
import gzip
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aligngap.report.packing import json_in_html
from aligngap.report.page import render, write_report
from aligngap.report.text import seeds_note, text_of_number, text_of_share
from aligngap.results import read
from unit.report.fixture_results import HOSTILE, UNRULY, write_large_results, write_results


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_results(tmp_path_factory.mktemp("results"))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_results(tmp_path_factory.mktemp("hostile"), text=HOSTILE, smoke=True, seeds=(0,))
    return render(read(folder))


def _packed(page: str, name: str) -> Any:
    found = re.search(rf'<script type="text/plain" data-packed="{re.escape(name)}">(.*?)</script>', page)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def test_loads_nothing(page: str) -> None:
    for tag, attributes in Elements(page).tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(", page.split("<script", 1)[0])


def test_the_policy_allows_no_connection_and_just_these_scripts(page: str) -> None:
    policy = next(a["content"] for t, a in Elements(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src", 1)[1].split(";", 1)[0]
    assert policy.count("sha256-") == 2


def test_is_small(page: str) -> None:
    assert len(page.encode()) < 2_500_000


@pytest.mark.slow
def test_the_whole_study_fits_five_megabytes_with_samples_of_every_arm(tmp_path: Path) -> None:
    page = write_report(write_large_results(tmp_path))
    assert page.stat().st_size < 5_000_000
    text = page.read_text(encoding="utf-8")
    for task in ("summarisation", "arena"):
        samples = _packed(text, f"samples:{task}")
        assert len(samples["prompts"]) >= 12
        assert len({run["arm"] for run in samples["runs"]}) == 38
        assert "checkpoint" in samples["note"]
        assert len(_packed(text, f"task:{task}")["figures"]) == 5 + 4 + 14 * 3


def test_says_what_came_out(page: str) -> None:
    text = Elements(page).text
    for phrase in (
        "Online wins by 8.1 points",
        "0.081",
        "[0.052, 0.113]",
        "Supported if the interval of the average gap lies above 0",
        "fewer than five seeds",
        "loss became NaN at step 31",
        "78.3%",
        "No estimates: no data.",
    ):
        assert phrase in text, phrase
    assert "Smoke run" not in text


def test_each_datum_and_each_specification_is_there_once(page: str) -> None:
    content = _packed(page, "task:summarisation")
    points = content["tables"]["points"]
    assert len(points["rows"]) == 27 * 8 * 2
    assert not {"arm", "family", "seed"} & set(points["columns"])  # a point's run says them
    panels = [panel for figure in content["figures"].values() for panel in figure["panels"]]
    assert {panel["spec"] for panel in panels} == set(content["specs"])
    assert sum(panel["spec"] == "win" for panel in panels) == 4
    assert "data" not in content["specs"]["win"]
    samples = _packed(page, "samples:summarisation")
    assert len(samples["prompts"]) == 12
    assert any(run["peak"] or run["end"] for run in samples["runs"])


def test_what_a_specification_names_is_in_the_tables_though_it_be_null_in_every_row(tmp_path: Path) -> None:
    path = write_results(tmp_path, seeds=(0,)) / "results.json"
    results = json.loads(path.read_text())
    for experiment in results["tasks"]["summarisation"]["experiments"].values():
        for figure in experiment["figures"]:
            # As a study of one seed draws: no point is of a single seed.
            figure["points"] = [point for point in figure["points"] if point["seed"] is None]
    path.write_text(json.dumps(results))
    content = _packed(render(read(tmp_path)), "task:summarisation")
    columns = {name for table in content["tables"].values() for name in table["columns"]}
    seeds = content["tables"]["drawn"]["columns"].index("seed")
    assert {row[seeds] for row in content["tables"]["drawn"]["rows"]} == {None}
    for spec in content["specs"].values():
        named, made = _fields(spec)
        assert {"family"} <= named or {"series", "seed"} <= named
        assert named <= columns | made


def _fields(spec: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The fields that a specification reads, and those that it makes itself."""
    named: set[str] = set()
    made = {"at"}  # of a line across, which brings its own value
    nodes: list[Any] = [spec]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes += node.values()
            named |= {node["field"]} if "field" in node else set(node.get("fold", ()))
            made |= {node["as"]} if isinstance(node.get("as"), str) else set(node.get("as", ()))
            for key in ("filter", "calculate"):
                named |= set(re.findall(r"datum\.(\w+)", str(node.get(key))))
        elif isinstance(node, list):
            nodes += node
    return named, made


def test_every_experiment_has_its_section_rule_finding_and_figures(page: str) -> None:
    elements = Elements(page)
    identifiers = [a["id"] for _, a in elements.tags if a.get("id")]
    assert len(identifiers) == len(set(identifiers))
    links = [a["href"][1:] for t, a in elements.tags if t == "a" and (a.get("href") or "").startswith("#")]
    assert set(links) <= set(identifiers)
    assert {f"task-0-experiment-{index}" for index in range(3)} <= set(links)
    drawn = {a["data-figure"] for _, a in elements.tags if "data-figure" in a}
    assert {"goodhart-difference", "coverage-curves", "tandem-equal"} <= drawn
    assert "tandem-nothing" not in drawn
    assert "No data: nothing to draw." in elements.text
    assert "No data of: Absent." in elements.text


def _with_data(folder: Path, data: dict[str, Any] | None) -> str:
    path = write_results(folder, seeds=(0,), prompts=2) / "results.json"
    results = json.loads(path.read_text())
    results["tasks"]["summarisation"]["stages"]["data"] = data
    path.write_text(json.dumps(results))
    return render(read(folder))


DATA: dict[str, Any] = {
    "format": "chosen / rejected",
    "train_pairs": 40,
    "held_out_pairs": 10,
    "rows_read": 70,
    "rows_dropped": {"the answers are the same": 20},
    "rows": {
        "read": 70,
        "dropped": {"the answers are the same": {"count": 20, "rows": ["row 3", f"row 4{HOSTILE}"]}},
        "notes": {"white space at the ends is gone": {"count": 1, "rows": ["row 9"]}},
        "unused_columns": {"source": 70},
    },
    "warnings": ["29% of the rows are dropped: the answers are the same"],
    "cut_prompts": 0,
    "cut_responses": 7,
    "end_tokens_in_responses": 0,
}


def test_what_became_of_a_users_data_is_said_before_any_figure(tmp_path: Path) -> None:
    page = _with_data(tmp_path, DATA)
    text = " ".join(Elements(page).text.split())
    assert "70 rows read (chosen / rejected): 40 pairs to train on, 10 held out." in text
    assert "dropped the answers are the same 20 row 3, row 4" in text
    assert "changed white space at the ends is gone 1 row 9" in text
    assert "cut responses cut to their limit 7" in text
    assert "prompts cut to their limit" not in text
    assert "left out the column source , which nothing reads 70" in text
    assert HOSTILE not in page.split("<script", 1)[0]
    warned = text.index("29% of the rows are dropped")
    assert warned < text.index("What came out")  # an alarm, at the very top
    assert text.index("Data: what was dropped") < text.index("rows are dropped", warned + 50) < text.index("Figure 1.")


def test_data_of_which_all_is_used_say_so_and_worlds_have_no_such_panel(tmp_path: Path) -> None:
    nothing = {"rows": {"read": 50, "dropped": {}, "notes": {}, "unused_columns": {}}, "rows_read": 50, "warnings": []}
    whole = _with_data(tmp_path / "whole", DATA | nothing | {"cut_responses": 0})
    assert "Nothing was dropped, changed, cut or left out." in Elements(whole).text
    assert 'role="alert"' not in whole
    assert "Data: what was dropped" not in _with_data(tmp_path / "world", None)


def test_data_as_an_older_version_counted_them_are_shown(tmp_path: Path) -> None:
    older = {key: value for key, value in DATA.items() if key not in ("rows", "warnings", "end_tokens_in_responses")}
    text = " ".join(Elements(_with_data(tmp_path, older)).text.split())
    assert "dropped the answers are the same 20" in text


def test_significance_and_power_are_said_where_they_are_known(page: str, hostile: str) -> None:
    text = " ".join(Elements(page).text.split())
    assert "p = 0.004, and 0.012 by Holm’s method for the 3 hypotheses of this task" in text
    assert "about 7 seeds on these prompts, and at least 300 prompts." in text
    assert "about 7 seeds" not in Elements(hostile).text


def test_what_failed_is_named(page: str) -> None:
    text = " ".join(Elements(page).text.split())
    assert "summarisation: 4 of what was asked for are missing" in text
    assert "measure quality 0 failed out of memory" in text


def test_hostile_text_is_text(hostile: str) -> None:
    elements = Elements(hostile)
    kinds = [tag for tag, _ in elements.tags]
    # Two scripts, three of data, and nothing that the text tried to add; the one image is the figure without scripts.
    assert kinds.count("script") == 5
    assert all((a.get("src") or "").startswith("data:image/svg") for t, a in elements.tags if t == "img")
    assert "onerror=alert(1)" in elements.text
    assert "{{ 7 * 7 }}" in elements.text
    samples = _packed(hostile, "samples:summarisation")
    assert samples["prompts"][0]["text"].endswith(HOSTILE)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study of which an arm is half evaluated, another experiment has all it needs, and every name is hostile."""
    folder = write_results(tmp_path_factory.mktemp("unfinished"), text=HOSTILE, fail_one=False, schema=1)
    raw = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    task = raw["tasks"]["summarisation"]
    for arm in task["arms"]:
        if arm["family"] == "online" and arm["seed"] == 2:
            arm |= {"status": "pending", "reason": "not finished yet", "points": arm["points"][:6], "cost": None}
    task["measures"][0] |= {"status": "pending", "reason": "not finished yet"}
    names = {"what": "arm", "name": f"online{HOSTILE}"}
    waits, done = task["experiments"]["goodhart"], task["experiments"]["coverage"]
    waits |= {"verdict": "unfinished", "inputs": [names | {"finished": [0], "failed": [1], "pending": [2]}]}
    done |= {"inputs": [names | {"finished": [0, 1, 2], "failed": [], "pending": []}]}
    task["holm"] = dict.fromkeys(task["experiments"])
    (folder / "results.json").write_text(json.dumps(raw), encoding="utf-8")
    return render(read(folder))


def test_an_unfinished_study_says_so_and_what_its_estimates_rest_on(unfinished: str, page: str) -> None:
    text = " ".join(Elements(unfinished).text.split())
    assert "Unfinished: 2 arms and measures are still to come." in text
    assert "What came out so far" in text
    name = f"online{' '.join(HOSTILE.split())}"
    assert f"Missing for good: {name} (seed 1). Rests on 1 of 3 arms and measures." in text
    assert f"On: {name} (seed 0). Still to come: {name} (seed 2)." in text
    assert "0 supported, 1 contradicted, 1 inconclusive, 1 unfinished." in text
    assert "So far: Online wins by 8.1 points" in text
    assert "missing or still to come" in text
    assert 'class="badge unfinished"' in unfinished
    assert text.count("Rests on") == 1  # an experiment that has all it needs is as it will be
    for word in ("Unfinished", "so far", "Rests on", "unfinished"):
        assert word not in Elements(page).text


def test_an_arm_under_evaluation_is_drawn_as_such_and_averaged_nowhere(unfinished: str) -> None:
    tables = _packed(unfinished, "task:summarisation")["tables"]
    columns = tables["runs"]["columns"]
    rows = [dict(zip(columns, row, strict=True)) for row in tables["runs"]["rows"]]
    half = [row for row in rows if row["status"] == "pending"]
    assert [row["arm"].endswith(" (unfinished)") for row in rows].count(True) == len(half) == 1
    run = tables["points"]["columns"].index("run")
    assert sum(row[run] == half[0]["run"] for row in tables["points"]["rows"]) == 6
    assert "2 of 3" in Elements(unfinished).text  # online's finished seeds, in the table of arms


def test_hostile_text_of_an_unfinished_study_is_text(unfinished: str) -> None:
    images = [attributes["src"] or "" for tag, attributes in Elements(unfinished).tags if tag == "img"]
    assert all(source.startswith("data:") for source in images)
    assert HOSTILE not in unfinished


def test_where_the_time_went(page: str) -> None:
    text = " ".join(Elements(page).text.split())
    assert (
        "Wall time of the latest command that made a stage 287 s, before results and report, 2 stages side by side."
        in text
    )
    assert "Activity Seconds Share training 310 58.0% sampling 190 35.5% waiting 34.6 6.5%" in text
    assert "made 24 training 24 s" in text
    assert "Kind of stage Stages Seconds Share sft 1 24 100.0% preference 1 (0 timed) no data" in text


def test_a_smoke_run_says_so_in_an_alert(hostile: str) -> None:
    assert 'role="alert"' in hostile
    assert "its numbers mean nothing" in hostile
    assert "Prompts only (one seed)." in hostile


def test_what_an_interval_covers_is_said_once(tmp_path: Path) -> None:
    path = write_results(tmp_path, seeds=(0, 1)) / "results.json"
    results = json.loads(path.read_text())
    note = "fewer than 5 seeds: interval rests on near-normal seed effects"
    estimates = results["tasks"]["summarisation"]["experiments"]["goodhart"]["estimates"]
    estimates["gap"]["note"] = note
    path.write_text(json.dumps(results))
    text = " ".join(Elements(render(read(tmp_path))).text.split())
    assert f"Seeds and prompts. F{note[1:]}." in text
    assert "Seeds and prompts; fewer than five seeds. Chosen on train prompts." in text


def test_json_cannot_end_its_element() -> None:
    value = {"text": HOSTILE, "nan": math.nan, "surrogate": "\ud800"}
    text = json_in_html(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text)["text"] == HOSTILE
    assert json.loads(text)["nan"] is None
    text.encode("utf-8")


def test_nothing_measured_computes_nothing(tmp_path: Path) -> None:
    page = render(read(write_results(tmp_path, no_numbers=True, fail_one=False)))
    text = Elements(page).text
    assert "there is nothing to draw" in text
    assert "nan" not in text.lower().split()
    assert "no data" in text


Results = dict[str, Any]


def _all_failed(results: Results) -> None:
    content = results["tasks"]["summarisation"]
    for arm in content["arms"]:
        arm |= {"status": "failed", "reason": "killed for want of memory", "points": [], "cost": None}
    for experiment in content["experiments"].values():
        experiment |= {"verdict": "inconclusive", "figures": []}
        for estimate in experiment["estimates"].values():
            estimate |= {"value": None, "low": None, "high": math.nan, "n_seeds": 0, "p": None}


def _only_one_arm_is_empty(results: Results) -> None:
    results["tasks"]["summarisation"]["arms"][0]["points"] = []


def _numbers_that_are_none(results: Results) -> None:
    for arm in results["tasks"]["summarisation"]["arms"]:
        for index, point in enumerate(arm["points"]):
            point["kl"] = (math.nan, math.inf, -math.inf, "12", True, None, 1e300, -1.0)[index % 8]
            point["wins"]["golden_policy"] = {"golden": {"rate": math.nan, "se": math.inf}, "true": []}
            point["tokens"] = "many"


def _a_measure_is_missing(results: Results) -> None:
    for arm in results["tasks"]["summarisation"]["arms"]:
        for point in arm["points"]:
            for name in ("accuracy", "drift", "proxy"):
                point.pop(name)
            point["wins"].pop("sft")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_all_failed, ("killed for want of memory", "there is nothing to draw", "no data")),
        (_only_one_arm_is_empty, ("it has no checkpoint with a KL and a win rate",)),
        (_numbers_that_are_none, ("points lack a KL or a win rate", "no data")),
        (_a_measure_is_missing, ("Win rate over KL",)),
    ],
)
def test_a_broken_study_is_shown_as_what_it_is(
    tmp_path: Path, broken: Callable[[Results], None], said: tuple[str, ...]
) -> None:
    path = write_results(tmp_path, seeds=(0,), fail_one=False, schema=1) / "results.json"
    results = json.loads(path.read_text())
    broken(results)
    path.write_text(json.dumps(results))
    page = render(read(tmp_path))
    text = " ".join(Elements(page).text.split())
    for words in said:
        assert words in text, words
    # Nothing is computed from nothing, and no program's word for it is shown to a person.
    assert not {"nan", "inf", "-inf", "infinity", "none,", "null", "undefined", "[]", "{}"} & set(text.lower().split())
    assert "Traceback" not in text


def test_without_measures_there_is_no_figure_of_them(tmp_path: Path) -> None:
    path = write_results(tmp_path, seeds=(0,), fail_one=False, schema=1) / "results.json"
    results = json.loads(path.read_text())
    _a_measure_is_missing(results)
    path.write_text(json.dumps(results))
    content = _packed(render(read(tmp_path)), "task:summarisation")
    assert "judges" not in content["figures"]
    # Neither of the proxy's opinion, nor of accuracy: the rest stays.
    assert [panel["spec"] for panel in content["figures"]["other_axes"]["panels"]] == ["win-step"]
    assert [panel["spec"] for panel in content["figures"]["training"]["panels"]] == [
        "step-kl",
        "step-tokens",
        "step-utility",
    ]


def test_unruly_text_is_text_and_has_an_end(tmp_path: Path) -> None:
    folder = write_results(tmp_path, text=UNRULY, seeds=(0,), prompts=4)
    page = render(read(folder))
    elements = Elements(page)
    assert [tag for tag, _ in elements.tags].count("script") == 5
    assert "\x00" not in page
    assert "\x1b" not in page
    assert "more characters)" in elements.text
    assert len(page.encode()) < 3_500_000
    # Names stay names: what a control says is what the data say.
    content = _packed(page, "task:summarisation")
    chips = {a["data-series"] for _, a in elements.tags if "data-series" in a}
    drawn = {row[content["tables"]["drawn"]["columns"].index("series")] for row in content["tables"]["drawn"]["rows"]}
    assert drawn <= chips
    samples = _packed(page, "samples:summarisation")
    assert len(samples["prompts"]) == 4
    assert len(samples["prompts"][0]["text"]) < 8100


def test_lone_surrogates_do_not_stop_a_page(tmp_path: Path) -> None:
    write_results(tmp_path, text="\ud800", seeds=(0,), samples=False)
    assert "�" in write_report(tmp_path).read_text(encoding="utf-8")


def test_no_experiments_no_samples_no_arms(tmp_path: Path) -> None:
    write_results(tmp_path, experiments=False)
    (tmp_path / "samples.parquet").unlink()
    results = json.loads((tmp_path / "results.json").read_text())
    results["tasks"]["empty"] = {"arms": [], "stages": {}, "experiments": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = Elements(render(read(tmp_path))).text
    assert "No experiment of this study has a verdict" in text
    assert "No samples were kept" in text
    assert "No arms." in text


def test_bare_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": 1}')
    assert "hold no task" in render(read(tmp_path))


def test_too_many_samples_are_cut_by_order_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligngap.report.page._SAMPLE_BYTES", 20_000)
    data = read(write_results(tmp_path, prompts=40))
    page = render(data)
    samples = _packed(page, "samples:summarisation")
    kept = samples["prompts"]
    assert [prompt["number"] for prompt in kept] == list(range(len(kept)))
    assert 0 < len(kept) < 40
    assert f"the first {len(kept)} of 40 prompts" in samples["note"]
    assert data.samples.select(pl.col("prompt_number").n_unique()).item() == 40


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "no data"),
        (math.nan, "no data"),
        (True, "no data"),
        (0, "0"),
        (0.0, "0"),
        (-0.0416, "−0.0416"),
        (1234567, "1\u202f234\u202f567"),
        (287.4, "287"),
        (1e-5, "1e-5".replace("-", "−")),
    ],
)
def test_numbers_as_text(value: object, text: str) -> None:
    assert text_of_number(value) == text


def test_shares_as_text() -> None:
    assert text_of_share(0.7834) == "78.3%"
    assert text_of_share(None) == "no data"


def test_the_note_on_seeds() -> None:
    assert "prompts only" in seeds_note(1)
    assert "fewer than five" in seeds_note(4)
    assert "fewer" not in seeds_note(5)


def test_arms_without_numbers_are_named_and_not_drawn(tmp_path: Path) -> None:
    results = json.loads((write_results(tmp_path, seeds=(0,), fail_one=False, schema=1) / "results.json").read_text())
    online, replay, shuffled = results["tasks"]["summarisation"]["arms"][:3]
    online["points"] = []
    for point in replay["points"]:
        point |= {"kl": None, "wins": {}}
    shuffled["points"][2]["kl"] = math.nan
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = " ".join(Elements(render(read(tmp_path))).text.split())
    assert text.count("finished it has no checkpoint with a KL and a win rate") == 2
    assert "1 of its 16 points lack a KL or a win rate" in text
    assert "No data of: Online, Absent." in text
