"""How often each proxy agrees with golden on pairs that it was not trained on."""

from __future__ import annotations

from typing import ClassVar

import polars as pl
import torch

from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages import JudgeStage, Pairs, Relabel, load_judge, predictions


class ProxyAgreement(Stage):
    """Proxies' decisions beside golden's on held-out `D_golden`.

    table.parquet: a row for each of `names` (one a proxy, in their order) and held-out pair, with columns proxy,
    prompt_number and agrees (1, 0; NaN where either calls a tie).
    """

    kind: ClassVar[str] = "proxy_agreement"
    together: ClassVar[bool] = True

    golden_pairs: Relabel
    proxies: tuple[JudgeStage, ...]
    names: tuple[str, ...]

    @property
    def task(self) -> Pairs:
        """The task whose pairs they are."""
        return self.golden_pairs.pairs

    @property
    def label(self) -> str:
        return f"{self.task.name}: proxies' agreement with golden (seed {self.proxies[0].seed})"

    @property
    def work(self) -> float:
        return self.task.count / 8 * sum(proxy.seconds for proxy in self.proxies) + 2

    def run(self, context: Context) -> None:
        pairs = self.golden_pairs.read(context, "held_out")
        tables = []
        for name, proxy in zip(self.names, self.proxies, strict=True):
            decided = predictions(load_judge(proxy, context), pairs)
            tie = (decided == 0.5) | (pairs.preference == 0.5)
            agrees = (decided == pairs.preference).double().masked_fill(tie, torch.nan)
            tables.append(
                pl.DataFrame({"proxy": name, "prompt_number": pairs.prompt_numbers.numpy(), "agrees": agrees.numpy()})
            )
        pl.concat(tables).write_parquet(context.out / "table.parquet")
