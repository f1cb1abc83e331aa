"""The value model: what reward a state of an answer still promises."""

import copy

from torch import Tensor, nn

from puna.alignment.pairs import AnswerBatch
from puna.model import Llama


class ValueModel(nn.Module):
    """One number for each state: a head on a trunk of its own, or on the policy's.

    Args:
        policy: the model to be trained. A trunk of its own begins as a copy of the policy's.
        shared_trunk: read the policy's final states: half the memory, but the value's gradient
            reaches the policy.
    """

    def __init__(self, policy: Llama, *, shared_trunk: bool) -> None:
        super().__init__()
        self.trunk: Llama | None = None
        if not shared_trunk:
            self.trunk = copy.deepcopy(policy)  # with adapters, its adapters are trained
            self.trunk.lm_head = None  # never asked for tokens
        self.head = nn.Linear(policy.config.dim, 1, device=policy.device)
        nn.init.zeros_(self.head.weight)  # promises nothing until it has seen rewards
        nn.init.zeros_(self.head.bias)

    def forward(self, answers: AnswerBatch, policy_hidden_nd: Tensor) -> Tensor:
        """Value of every position, flattened: (rows * time,) fp32.

        ``policy_hidden_nd`` holds the policy's final states, as `AnswerBatch.hidden` gives them.
        """
        hidden_nd = policy_hidden_nd
        if self.trunk is not None:
            self.trunk.compute_dtype = policy_hidden_nd.dtype
            hidden_nd = answers.hidden(self.trunk)
        values: Tensor = self.head(hidden_nd.float())
        return values.squeeze(-1)
