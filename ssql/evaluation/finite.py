"""Values that measurements and files may hold: finite ones."""

from torch import Tensor


def check_finite(values: Tensor, what: str) -> None:
    """Raise ValueError where one of the values of clips or images, (count, ...), is NaN or infinite.

    Args:
        values: of a whole split, in its order.
        what: what they are, for the message: `embeddings at w4a4 of the split test`.
    """
    wrong = (~values.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{what} are NaN or infinite for {len(wrong)} of {len(values)} items, the first of them item {wrong[0]}: "
            "look at the encoder's weights and at that item"
        )
