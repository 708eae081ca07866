"""How typical a response is of a policy: how surprising it is to it, against how surprising it expects to be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aligngap.models.policy import Policy
from aligngap.models.sampling import exact_device
from aligngap.types import Tokens

_NUMBERS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Typicality:
    """Of n responses, each a sum over its tokens; float64 [n], nats, on the CPU.

    log_prob: log pi(y | x). entropy: of the policy's next-token distributions at the response's own contexts; variance:
    of -log pi(next token) there. first, last: the excess, below, of the first and the last token alone. tokens: how
    many there are.
    """

    log_prob: torch.Tensor
    entropy: torch.Tensor
    variance: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    tokens: torch.Tensor

    @property
    def excess(self) -> torch.Tensor:
        """-log pi(y) minus the entropy on the way, nats a response.

        A sum of martingale differences: its mean is exactly 0 over the policy's own samples, whatever their lengths.
        Over responses of another distribution mu it is KL(mu || pi) plus the sum, over contexts that mu visits, of mu's
        entropy minus the policy's. So it falls short of the divergence by as much as mu is less random than the policy:
        a sharpened policy's responses can have an excess of 0 or below.
        """
        return -self.log_prob - self.entropy

    @property
    def z(self) -> torch.Tensor:
        """The excess in units of its standard deviation under the policy; 0 where the policy leaves no choice.

        Over the policy's own samples the mean is about 0 and the variance about 1 at every prompt, so that prompts
        which leave much open and those which leave little can be pooled. Above: less likely than the policy's own
        responses; below: more likely.
        """
        scale = self.variance.sqrt()
        return torch.where(scale > 1e-6, self.excess / scale.clamp(min=1e-6), 0.0)


@torch.no_grad()
def typicality(policy: Policy, prompts: Tokens, responses: Tokens, chunk: int = 32) -> Typicality:
    """Of each response to its prompt, by the exact next-token distributions over the full vocabulary. Padding counts
    for nothing.
    """
    parts = []
    for index in torch.arange(len(prompts.ids)).split(chunk):
        prompt, response = prompts.take(index).to(policy.device), responses.take(index).to(policy.device)
        exact = exact_device(policy.device)
        parts.append(_sums(policy.next_token_logits(prompt, [response])[0].to(exact), response.to(exact)).cpu())
    log_prob, entropy, variance, first, last = torch.cat(parts, 1) if parts else torch.empty((5, 0))
    return Typicality(log_prob, entropy, variance, first, last, responses.lengths.double())


def _sums(logits: torch.Tensor, response: Tokens) -> torch.Tensor:
    """log_prob, entropy, variance, first, last; float64 [5, n]. Rows at a time, so that a large vocabulary fits."""
    rows, width, vocabulary = logits.shape
    parts = []
    for index in torch.arange(rows, device=logits.device).split(max(1, _NUMBERS_AT_ONCE // (width * vocabulary))):
        # A token that a model forbids has -inf, and 0 times that is no number.
        log_p = logits[index].double().log_softmax(-1).clamp(min=-1e9)
        weighted = log_p.exp() * log_p
        entropy = -weighted.sum(-1)
        variance = ((weighted * log_p).sum(-1) - entropy.square()).clamp(min=0)
        log_prob = log_p.gather(-1, response.ids[index, :, None])[..., 0]
        real = response.mask()[index]
        excess = -log_prob - entropy
        last = excess.gather(-1, (response.lengths[index, None] - 1).clamp(min=0))[:, 0]
        sums = [torch.where(real, part, 0.0).sum(-1) for part in (log_prob, entropy, variance)]
        parts.append(torch.stack([*sums, excess[:, 0], last]))
    return torch.cat(parts, 1)
