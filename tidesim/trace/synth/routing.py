"""LLaDA2's rule from router logits to experts, on arrays."""

import numpy as np
import numpy.typing as npt

from tidesim.model_spec import ModelSpec

Floats = npt.NDArray[np.float32]


def select_experts(logits: Floats, model: ModelSpec) -> npt.NDArray[np.uint16]:
    """Choose the experts of every token, best first.

    A group of experts scores the sum of its two best sigmoids, or its one expert's; the best
    `topk_group` groups stay; the best `num_experts_per_tok` logits in them win (LLaDA2.0's router,
    its selection bias counted in the logits).

    Parameters
    ----------
    logits : [..., E] float32
    model : ModelSpec

    Returns
    -------
    [..., K] uint16
    """
    grouped = logits.reshape(*logits.shape[:-1], model.n_group, -1)
    if model.topk_group < model.n_group:
        best = np.sort(grouped, axis=-1)[..., -2:]
        scores = (1 / (1 + np.exp(-best))).sum(axis=-1)  # [..., groups]
        dropped = np.argsort(-scores, axis=-1, kind="stable")[..., model.topk_group :]
        grouped = grouped.copy()
        np.put_along_axis(grouped, dropped[..., None], -np.inf, axis=-2)
    open_ = grouped.reshape(logits.shape)
    K = model.num_experts_per_tok
    chosen = np.argpartition(-open_, K - 1, axis=-1)[..., :K]
    order = np.argsort(-np.take_along_axis(open_, chosen, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(chosen, order, axis=-1).astype(np.uint16)
