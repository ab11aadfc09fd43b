"""`x.data` in a forward -> `x.detach()` in what torch.export sees of it, which knows nothing of the former's values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_READ = Tensor.data.__get__  # type: ignore[attr-defined]


class Detached(TorchFunctionMode):
    """Inside, the one reads as the other; unlike the former, what is written into the latter counts as a change."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func == _READ:
            return args[0].detach()
        return func(*args, **(kwargs or {}))
