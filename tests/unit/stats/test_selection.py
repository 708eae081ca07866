"""What a budget buys, against a walk through every candidate."""

import numpy as np
import pytest
from scipy import stats

from aligngap.stats.budget import Run
from aligngap.stats.selection import candidates, halves, within_budget
from made_runs import PATH

KL = np.concatenate(([0.0], PATH))
N = 64


def judged(rng, seeds=3, configurations=2, lift=0.0, kl=KL):
    """{judge: {configuration: runs}} of one method; golden likes what the truth likes, and long paths besides."""
    sweep = {"golden": {}, "truth": {}}
    for c in range(configurations):
        for judge in sweep:
            sweep[judge][f"beta {c}"] = []
        for seed in range(seeds):
            path = kl * rng.uniform(0.9, 1.1)
            means = 0.5 + 0.1 * np.sqrt(path) + lift * (path > 0) + rng.normal(0, 0.03, len(path)) * (path > 0)
            of_prompt = rng.uniform(-0.2, 0.2, N)
            truth = np.clip(means[:, None] + of_prompt + rng.uniform(-0.1, 0.1, (len(path), N)), 0, 1)
            golden = np.clip(means[:, None] + 0.05 * path[:, None] + rng.uniform(-0.3, 0.3, (len(path), N)), 0, 1)
            per_prompt_kl = path[:, None] * rng.uniform(0.8, 1.2, (len(path), N))
            steps = np.arange(len(path)) * 10
            for judge, win in (("golden", golden), ("truth", truth)):
                sweep[judge][f"beta {c}"].append(Run(f"arm {c}", seed, steps, win, {"kl": per_prompt_kl}))
    return sweep


def walked(sweep, seed, budget, half, valuing):
    """The practitioner's gain, by walking."""
    values = []
    for selecting, other in ((half, ~half), (~half, half)):
        best, place = -1.0, None
        for name in sweep["golden"]:
            run = next(r for r in sweep["golden"][name] if r.seed == seed)
            for j in range(len(run.steps)):
                if run.budgets["kl"][j, selecting].mean() <= budget and run.win[j, selecting].mean() > best:
                    best, place = run.win[j, selecting].mean(), (name, j)
        name, j = place
        values.append(next(r for r in sweep[valuing][name] if r.seed == seed).win[j, other])
    table = np.empty(N)
    table[~half], table[half] = values
    return table


def test_it_is_what_a_walk_finds_and_is_paired_by_prompt():
    rng = np.random.default_rng(0)
    online, offline, half = judged(rng, lift=0.05), judged(rng), halves(N, rng)
    for budget in (1.0, 4.0):
        found = within_budget(online, offline, budget, half)
        for judge in ("golden", "truth"):
            tables = [
                walked(online, s, budget, half, judge) - walked(offline, s, budget, half, judge) for s in (0, 1, 2)
            ]
            np.testing.assert_allclose(found.contrasts[judge].values, [table.mean() for table in tables])
    one = found.online.values["truth"][0]
    table = walked(online, 0, 4.0, half, "truth")
    within = np.hypot(stats.sem(table[half]), stats.sem(table[~half])) / 2
    assert one.value == pytest.approx(table.mean())
    assert one.prompt_se == pytest.approx(within)


def test_picks_say_what_was_kept_among_how_many_and_at_which_kl():
    rng = np.random.default_rng(1)
    online, offline, half = judged(rng), judged(rng), halves(N, rng)
    found = within_budget(online, offline, 2.0, half)
    assert len(found.online.picks) == 3
    for pair in found.online.picks:
        for pick in pair:
            assert pick.kl <= 2.0
            assert pick.configuration in online["golden"]
            assert 2 * 9 <= pick.candidates <= 2 * 12
    assert any(pick.kl_other > pick.kl for pair in found.online.picks for pick in pair)


def test_noise_that_is_chosen_is_not_counted():
    """Golden's wins are pure noise about one half: the best of dozens, chosen on one half of the prompts, is worth one
    half on the other.
    """
    rng = np.random.default_rng(2)
    got, chosen = [], []
    for _ in range(60):
        sides = []
        for _method in range(2):
            win = rng.integers(0, 2, (len(KL), N)).astype(float)
            run = Run("a", 0, np.arange(len(KL)), win, {"kl": KL})
            sides.append({"golden": {"beta": [run]}})
        half = halves(N, rng)
        found = within_budget(*sides, 20.0, half)
        got.append(found.online.values["golden"][0].value)
        chosen.append(sides[0]["golden"]["beta"][0].win[:, half].mean(axis=1).max())
    assert np.mean(chosen) > 0.6
    assert abs(np.mean(got) - 0.5) < 3 * np.std(got) / 60**0.5


def test_candidates_are_compared_on_prompts_that_all_were_asked():
    """A checkpoint asked about few prompts is not liked for its few."""
    win = np.full((3, 8), 0.5)
    win[1] = [1, 1, 1, 1, 0, 0, 0, 0]
    win[2, :4], win[2, 4:] = [0.9, 0.9, 0.9, 0.9], np.nan
    run = Run("a", 0, np.array([0, 1, 2]), win, {"kl": np.array([0, 1.0, 1.5])})
    side = {"golden": {"beta": [run]}}
    half = np.array([True, True, False, False, True, True, False, False])
    found = within_budget(side, side, 4.0, half)
    assert [pick.step for pick in found.online.picks[0]] == [1, 1]
    assert found.online.values["golden"][0].value == 0.5
    assert found.contrasts["golden"].p == 1 or found.contrasts["golden"].value == 0


def test_selected_by_truth_is_the_oracle_and_gets_at_least_as_much_by_truth():
    rng = np.random.default_rng(3)
    online, offline, half = judged(rng, seeds=6), judged(rng, seeds=6), halves(N, rng)
    by = {name: within_budget(online, offline, 8.0, half, selecting=name) for name in ("golden", "truth")}
    worth = {name: np.mean([one.value for one in found.online.values["truth"]]) for name, found in by.items()}
    assert worth["truth"] >= worth["golden"] - 0.01


def test_a_seed_that_lacks_a_configuration_leaves_it_undefined_and_is_counted():
    rng = np.random.default_rng(4)
    online, offline, half = judged(rng), judged(rng), halves(N, rng)
    for judge in online:
        online[judge]["beta 1"].pop()
    found = within_budget(online, offline, 4.0, half)
    assert found.contrasts["truth"].reached == (2, 3)
    assert not found.contrasts["truth"].defined
    assert found.online.picks[2] is None


def test_only_equal_grids_enter():
    rng = np.random.default_rng(5)
    online, offline, half = judged(rng), judged(rng, configurations=3), halves(N, rng)
    with pytest.raises(ValueError, match="equally many configurations, got 2 and 3"):
        within_budget(online, offline, 4.0, half)
    with pytest.raises(ValueError, match="'proxy'"):
        within_budget(online, online, 4.0, half, selecting="proxy")
    with pytest.raises(ValueError, match="prompts that were halved"):
        within_budget(online, online, 4.0, half[:-1])
    other = judged(rng, kl=KL[:-1])
    with pytest.raises(ValueError, match="different runs or checkpoints"):
        within_budget(online | {"truth": other["truth"]}, online, 4.0, half)


def test_passages_alone_leave_out_tenths_that_are_none():
    steps = np.array([0, 3, 5, 7, 10, 20, 50])
    kl = np.array([0, 0.6, 0.65, 1.2, 1.3, 1.1, 3.0])
    run = Run("a", 0, steps, np.full((7, 4), 0.5), {"kl": kl})
    everyone = np.ones(4, dtype=bool)
    np.testing.assert_array_equal(candidates(run, everyone, 2.0), [1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(candidates(run, everyone, 2.0, passages_only=True), [1, 1, 0, 1, 0, 0, 0])


def test_halves_are_even_in_every_prefix():
    half = halves(1024, np.random.default_rng(6))
    for n in (2, 256, 512, 1024):
        assert half[:n].sum() == n / 2
    assert len(halves(7, np.random.default_rng(0))) == 7
    assert not np.array_equal(half[::2], half[1::2])
