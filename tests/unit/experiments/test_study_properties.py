"""What holds for every study: its YAML says it all, and an override is the same as the key in the file."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from aligngap.errors import UserError
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.shipped import shipped
from aligngap.experiments.spec import StudySpec
from aligngap.experiments.study import load_study
from aligngap.losses import LOSSES
from aligngap.tasks.worlds import WORLDS

positive = st.floats(1e-12, 1e6, allow_subnormal=False)
# Without YAML's other line breaks: PyYAML writes them raw with allow_unicode, and reads spaces.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=30)
optims = st.fixed_dictionaries(
    {"lr": positive, "steps": st.integers(1, 10**6)},
    optional={
        "batch": st.integers(1, 512),
        "warmup_steps": st.integers(0, 1000),
        "schedule": st.sampled_from(["constant", "cosine"]),
        "weight_decay": st.floats(0, 1),
        "max_grad_norm": positive,
    },
)
preferences = st.fixed_dictionaries(
    {"optim": optims},
    optional={
        "model": st.sampled_from(["pairwise", "pointwise"]),
        "train_pairs": st.none() | st.integers(16, 10**6),
    },
)
losses = st.fixed_dictionaries(
    {"name": st.sampled_from(sorted(LOSSES)), "beta": positive},
    optional={"reduction": st.sampled_from(["sum", "mean"]), "sft": st.floats(0, 10)},
)


def some(values: st.SearchStrategy[Any], **sizes: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=1, max_size=4, **sizes)


contents = st.fixed_dictionaries(
    {
        "name": texts,
        "title": texts,
        "experiments": some(st.sampled_from(sorted(EXPERIMENTS)), unique=True),
        "sft": st.none() | optims,
        "golden": preferences,
        "proxy": preferences,
        "baseline": st.fixed_dictionaries({"optim": optims}, optional={"loss": losses}),
    },
    optional={
        "description": texts,
        "tasks": some(st.sampled_from(sorted(WORLDS)), unique=True),
        "sft_tasks": st.none() | some(st.sampled_from(sorted(WORLDS))),
        "seeds": some(st.integers(0, 10**9), unique=True),
        "data": st.fixed_dictionaries(
            {}, optional={"train_pairs": st.integers(64, 10**6), "held_out_pairs": st.integers(16, 10**6)}
        ),
        "models": st.fixed_dictionaries(
            {}, optional={"policy": st.sampled_from(["small", "owner/model", "a b/c: d#"])}
        ),
        "sweep": st.fixed_dictionaries({}, optional={"lr_factors": some(positive), "online": st.booleans()}),
        "analysis": st.fixed_dictionaries({}, optional={"judge": st.sampled_from(["true", "golden"])}),
    },
)


def loaded(text: str, overrides: list[str] | None = None) -> StudySpec:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return load_study(str(path), overrides or [])


@settings(max_examples=40)
@given(contents)
def test_a_study_is_what_its_yaml_says(content: dict[str, Any]) -> None:
    study = StudySpec.model_validate(content)
    plain = study.model_dump(mode="json")
    for unicode in (False, True):
        # As values: where the file lies is no part of what it says.
        assert loaded(yaml.safe_dump(plain, allow_unicode=unicode)).model_dump() == study.model_dump()
    assert StudySpec.model_validate(plain) == study
    assert study.shrunk().shrunk() == study.shrunk()


def dotted(content: dict[str, Any], key: str = "") -> list[tuple[str, Any]]:
    """Every value with its dotted key."""
    found = []
    for name, value in content.items():
        place = f"{key}.{name}" if key else name
        found += dotted(value, place) if isinstance(value, dict) and value else [(place, value)]
    return found


@settings(max_examples=25)
@given(st.sampled_from(sorted(shipped())), contents, st.randoms(use_true_random=False))
def test_an_override_is_the_same_as_the_key_in_the_file(name: str, content: dict[str, Any], rng: Any) -> None:
    values = [(key, value) for key, value in dotted(content) if not key.startswith("sft") and value != {}]
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6)}" for key, value in values]
    base = load_study(name).model_dump(mode="json")
    for key, value in values:
        place = base
        *parents, last = key.split(".")
        for parent in parents:
            place = place[parent]
        place[last] = value
    expected = StudySpec.model_validate(base)
    assert load_study(name, overrides) == expected
    rng.shuffle(overrides)
    assert load_study(name, overrides) == expected  # keys that differ do not mind their order
    doubled = [f"{key}=nonsense" for key, _ in values[:3]]
    assert load_study(name, doubled + overrides) == expected  # of one key the last counts


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.dictionaries(texts | st.sampled_from(sorted(StudySpec.model_fields)), anything, max_size=4))
def test_whatever_is_put_into_a_study_is_read_or_refused(extra: dict[str, Any]) -> None:
    with suppress(UserError):
        loaded(yaml.safe_dump({"extends": "quick", **extra}))
