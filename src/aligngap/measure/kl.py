"""KL(pi || pi_sft), the budget on the common axis."""

from __future__ import annotations

import torch

from aligngap import ranks
from aligngap.models.policy import Policy
from aligngap.models.sampling import exact
from aligngap.types import Tokens


@torch.no_grad()
def sequence_kl(policy: Policy, reference: Policy, prompts: Tokens, responses: Tokens, chunk: int = 32) -> torch.Tensor:
    """Per prompt, the estimate of KL(policy || reference) from one sampled response; float64 [n], nats.

    At every position of the response the exact KL between the two next-token distributions over the full vocabulary,
    summed over the response's real positions (Tang et al. 2024, appendix D). Unbiased when `responses` are sampled
    from `policy`.
    """

    def part(index: torch.Tensor) -> torch.Tensor:
        prompt, response = prompts.take(index).to(policy.device), responses.take(index).to(policy.device)
        log_p, log_q = (
            exact(model.next_token_logits(prompt, [response])[0]).log_softmax(-1) for model in (policy, reference)
        )
        per_position = (log_p.exp() * (log_p - log_q)).sum(-1)
        return (per_position * response.mask().to(per_position.device)).sum(-1).cpu()

    return torch.cat(ranks.map_chunks(part, len(prompts.ids), chunk))
