"""Runs made up for the tests of the statistics, at the level of single prompts."""

import numpy as np

from aligngap.stats.budget import Run

PATH = 2.0 ** (np.arange(-7, 8) / 2)  # KL .09 to 11.3
PROMPTS = 512


def run(kl, win, *, steps=None, seed=0, arm="arm"):
    """From means [K] or per-prompt values [K, N]; a mean stands for four prompts that all say it."""
    kl, win = np.asarray(kl, float), np.asarray(win, float)
    win = np.repeat(win[:, None], 4, 1) if win.ndim == 1 else win
    return Run(arm, seed, np.arange(len(kl)) if steps is None else np.asarray(steps), win, {"kl": kl})


def outcomes(rng, means, n=PROMPTS, of_prompt=None, scatter=0.2):
    """Per-prompt outcomes [K, n] in [0, 1] with these means [K]: a prompt's own part, and the rest."""
    of_prompt = np.zeros(n) if of_prompt is None else of_prompt
    noise = of_prompt + scatter * rng.uniform(-1, 1, (len(means), n))
    return np.clip(np.asarray(means)[:, None] + noise, 0, 1)


def study(rng, gap, *, seeds=5, sd=0.01, base=0.55, path=PATH, paths=None, n=PROMPTS):
    """{method: {configuration: runs}} whose online - offline at KL k is `gap(k)`, with seeds and prompts as measured.

    paths: {(method, seed): KL of the checkpoints}, where they differ from `path`.
    """
    of_prompt = rng.uniform(-0.15, 0.15, n)
    result = {}
    for method in ("online", "offline"):
        runs = []
        for seed in range(seeds):
            kl = np.asarray((paths or {}).get((method, seed), path), float)
            means = base + 0.05 * np.sqrt(kl) + rng.normal(0, sd / np.sqrt(2))
            if method == "online":
                means = means + np.array([gap(k) for k in kl])
            win = np.concatenate((np.full((1, n), 0.5), outcomes(rng, means, n, of_prompt)))
            runs.append(Run(method, seed, np.arange(len(kl) + 1), win, {"kl": np.concatenate(([0.0], kl))}))
        result[method] = {"beta": runs}
    return result
