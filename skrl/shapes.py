"""Shape annotations: jaxtyping's where it is installed, plain tensors otherwise.

``Float[Tensor, "batch neighbors"]`` documents a signature. The test suite enforces it through jaxtyping's pytest hook;
at run time the package needs torch and numpy alone and the annotation costs nothing.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Int, Shaped
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = Shaped = _Unchecked

__all__ = ["Bool", "Float", "Int", "Shaped", "Tensor"]
