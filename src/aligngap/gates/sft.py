"""The gate of the SFT policy: what it says is as good as the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from aligngap.gates.record import Gate, Score
from aligngap.pipeline.graph import Context
from aligngap.pipeline.stages import Pairs, Sft, load_policy, sample_in_chunks
from aligngap.seeds import uniforms

_MOST = 0.1


class SftGate(Gate):
    """The mean utility of SFT's samples lies within a tenth of the responses' 10%-90% distance of the responses' own.
    pairs: the task's, which SFT has learned from; prompts: the gates', whose responses no policy has seen.
    """

    kind: ClassVar[str] = "sft_gate"

    sft: Sft
    pairs: Pairs
    prompts: Pairs

    @property
    def subject(self) -> str:
        return f"{self.sft.label} on {self.pairs.name}"

    @property
    def work(self) -> float:
        return 1e-3 * self.sft.base.size * self.prompts.count + 0.5

    def examine(self, context: Context) -> Sequence[Score]:
        truth = self.pairs.truth()
        assert truth is not None, "a real data set's true utility is not known"
        policy, asked = load_policy(context, self.sft, self.pairs), self.prompts.read(context)
        noise = uniforms(asked.prompt_numbers, 1, policy.max_new_tokens, "gate", "sft", self.sft.seed)
        said = truth.utilities(asked.prompts, sample_in_chunks(policy, asked.prompts, noise)).numpy()
        data = self.pairs.read(context)
        written = np.concatenate([truth.utilities(data.prompts, side).numpy() for side in (data.first, data.second)])
        low, high = np.quantile(written, [0.1, 0.9])
        error = np.hypot(said.std(ddof=1) / len(said) ** 0.5, written.std(ddof=1) / len(written) ** 0.5)
        share = (said.mean() - written.mean()) / (high - low)
        return [
            Score(
                name="mean utility of SFT's samples less the data's, in the data's 10%-90% distance",
                value=round(float(share), 5),
                se=round(float(error / (high - low)), 5),
                n=len(said),
                at_least=-_MOST,
                at_most=_MOST,
            ),
            Score(name="mean utility of SFT's samples", value=round(float(said.mean()), 5)),
            Score(name="mean utility of the data's responses", value=round(float(written.mean()), 5), n=len(written)),
        ]
