"""Shape annotations of public signatures: ``Float[Tensor, "*batch n"]``.

jaxtyping is a development dependency: where it is installed (as in the tests, which check every call) these are its
types; elsewhere they are plain stand-ins, so that the library itself needs only torch and numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Num", "Scalar", "Shaped", "Tensor"]

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Num, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Int, Num, Shaped
    except ModuleNotFoundError:

        class _Annotation:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = Num = Shaped = _Annotation

Scalar = float | Float[Tensor, ""]
"""A parameter that is a number, or a floating tensor without dimensions where its gradient is wanted."""
