"""One node of an fx graph as a call with named arguments, whether module, function, method or ATen op."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from subprune_fx.frontends.onnx_calls import NAMES, describe_call
from subprune_fx.frontends.onnx_op import OnnxOp
from subprune_fx.graph.kinds import Kind, Row
from subprune_fx.graph.optable import BY_TORCH

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_BATCH_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training")
_POOL = ("input", "kernel_size", "stride", "padding")
_EINSUM = ("equation", "operands")
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
# Positional names of builtins and methods, which have no signature to ask.
_POSITIONAL: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _CONV),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _CONV_TRANSPOSE),
    "linear": ("input", "weight", "bias"),
    "prelu": ("input", "weight"),
    "pad": ("input", "pad", "mode", "value"),
    "split": ("input", "split_size", "dim"),
    "split_with_sizes": ("input", "split_size", "dim"),
    "tensor_split": ("input", "indices_or_sections", "dim"),
    "narrow": ("input", "dim", "start", "length"),
    "chunk": ("input", "chunks", "dim"),
    **dict.fromkeys(("gather", "index_select"), ("input", "dim", "index")),
    **dict.fromkeys((f"{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)), _POOL),
    "topk": ("input", "k", "dim"),
    "channel_shuffle": ("input", "groups"),
    "transpose": ("input", "dim0", "dim1"),
    "norm": ("input", "p", "dim", "keepdim"),
    "vector_norm": ("input", "ord", "dim", "keepdim"),
    "linalg_vector_norm": ("input", "ord", "dim", "keepdim"),
    **dict.fromkeys(("matmul", "rmatmul"), ("input", "other")),
    **dict.fromkeys(("mm", "bmm"), ("input", "mat2")),
    "cosine_similarity": ("input", "other", "dim"),
    "pairwise_distance": ("input", "other", "p", "eps", "keepdim"),
    "cdist": ("input", "other"),
    "index_put": ("input", "indices", "values"),
    "bilinear": ("input", "other", "weight", "bias"),
    "addmm": ("input", "mat1", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
    **dict.fromkeys(("einsum", "routed"), _EINSUM),
    "scaled_dot_product_attention": _ATTENTION,
}
# Those that torch.nn.functional spells in another order.
_BUILTIN: dict[str, tuple[str, ...]] = {
    "batch_norm": _BATCH_NORM,
    "instance_norm": _BATCH_NORM,
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "group_norm": ("input", "num_groups", "weight", "bias"),
}
# What torch calls the same as something else (Tensor.unfold).
_NAMES: dict[Any, str] = {nn.functional.unfold: "im2col", nn.Unfold: "im2col"}
_DEFAULT_POSITIONAL = ("input", "dim", "keepdim")
# What keyword arguments are also called: by ATen, and as in numpy.
_ALIASES = {"self": "input", "axis": "dim", "keepdims": "keepdim"}
COMPUTED = "computed_"
"""Prefix of the role in the name of a parameter that a graph's own computation has become (`fx_computed`)."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        name: Lower-case op name as the op table spells it.
        label: What to call it in a message.
        row: Its row, if any.
        module: The module called, for `call_module` nodes.
        path: Its qualified name, else the node's name.
        arguments: Named arguments; values are fx nodes or constants.
    """

    name: str
    label: str
    row: Row | None
    module: nn.Module | None
    path: str
    arguments: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument or, for modules, the attribute of that name."""
        if name in self.arguments:
            return self.arguments[name]
        return default if self.module is None else getattr(self.module, name, default)


def bind(node: fx.Node, root: fx.GraphModule) -> Call:
    """Name the arguments of a `call_*` node."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        label = type(module).__name__
        return _call(
            _NAMES.get(type(module), label.lower()), f"nn.{label}", module, str(node.target), named(node, ("input",))
        )
    if node.op == "call_method":
        name = str(node.target).rstrip("_").lower()
        names = _POSITIONAL.get(name, _DEFAULT_POSITIONAL)
        return _call(name, f"Tensor.{node.target}", None, node.name, named(node, names))
    if isinstance(node.target, OnnxOp):
        row, arguments = describe_call(node, node.target, root)
        name = NAMES.get(node.target.op_type, node.target.op_type.lower())
        return Call(name, node.target.op_type, row, None, node.name, arguments)
    return _function(node)


def _function(node: fx.Node) -> Call:
    target = node.target
    if target is getattr:
        name = str(node.args[1])
        return _call(name.lower(), f"Tensor.{name}", None, node.name, {"input": node.args[0]})
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - the public name of ATen overloads
        names = tuple("input" if arg.name == "self" else arg.name for arg in target._schema.arguments)  # noqa: SLF001
        names = _EINSUM if names[:1] == ("equation",) else names
        name = target.overloadpacket.__name__
        arguments = named(node, names)
        return _call(name.rstrip("_").lower(), f"{target.namespace}.{name}", None, _owner(node, arguments), arguments)
    name = _NAMES.get(target, getattr(target, "__name__", str(target)).strip("_").lower())
    names = _POSITIONAL.get(name) or _signature(target)
    arguments = named(node, names)
    found = _call(name, name, None, _owner(node, arguments), arguments)
    return found if is_op(target) else dataclasses.replace(found, row=None)


_WEIGHTS = ("weight", "weight_ih_l0", "weight_ih_l0_reverse", "weight_ih", "weight_hh")
"""What layers call the weight that meets their input, or their state."""


def _owner(node: fx.Node, arguments: Mapping[str, Any]) -> str:
    """The layer that a function's weight belongs to, by which users know it; else the node's own name."""
    weight = arguments.get("weight")
    if weight is None and "operands" in arguments:  # an einsum with a parameter, perhaps transposed
        weight = next((one for one in arguments["operands"] if isinstance(one, fx.Node) and one.op == "get_attr"), None)
    where = str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ""
    owner, _, role = where.rpartition(".")
    return node.name if not owner else owner if role.removeprefix(COMPUTED) in _WEIGHTS else where


def _call(name: str, label: str, module: nn.Module | None, path: str, arguments: Mapping[str, Any]) -> Call:
    row = BY_TORCH.get(name)
    if module is not None and not _is_stock(module):
        row = None
    if module is not None and is_hooked(module):
        row, label = None, f"{label} with hooks"
    if name == "pad" and arguments.get("mode", "constant") != "constant":
        row = BY_TORCH["reflectionpad2d"]
    return Call(name, label, row, module, path, arguments)


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of it runs other code before or behind its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001 - no public name


def _is_stock(module: nn.Module) -> bool:
    """A class of one's own that happens to be called like a stock one is not it."""
    return type(module).__module__.split(".")[0] in ("torch", "torchvision", "timm")


_OPS = ("torch", "operator", "_operator", "builtins", "math", "subprune_fx")
_SPELLED = ("torchvision", "timm")
"""Packages whose functions are what they are called; of the others only those that are spelled without underscore."""


def is_op(target: Any) -> bool:
    """A function of one's own that happens to be called like an op is not it."""
    package = (getattr(target, "__module__", None) or "builtins").split(".")[0]
    return package in _OPS or (package in _SPELLED and not target.__name__.startswith("_"))


def named(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of a call by name, its positional ones being called `names`."""
    if names == _EINSUM and len(node.args) > 1 and not isinstance(node.args[1], (tuple, list)):
        return {"equation": node.args[0], "operands": node.args[1:]}
    positional = dict(zip(names, node.args, strict=False))
    return {**positional, **{_ALIASES.get(key, key): value for key, value in node.kwargs.items()}}


def _signature(target: Any) -> tuple[str, ...]:
    try:
        parameters = tuple(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return _BUILTIN.get(getattr(target, "__name__", ""), _DEFAULT_POSITIONAL)
    return ("input", *parameters[1:])


def dims(call: Call, rank: int) -> tuple[int, ...] | None:
    """Dimensions that a reduction or softmax works on; None = all.

    A softmax without one works on dimension 1 of tensors of rank 2 or 4 and up, else 0 (torch's legacy rule).
    """
    dim = call.get("dim")
    if isinstance(dim, int) and not isinstance(dim, bool):  # x.var(False) is unbiased=False
        return (dim,)
    if isinstance(dim, (tuple, list)):
        return tuple(dim)
    if call.row is not None and call.row.default is not None:
        return call.row.default or tuple(range(rank))
    if call.row is not None and call.row.kind is Kind.ALONG:
        return (1,) if rank not in (1, 3) else (0,)
    return None


def pads(amounts: Any, rank: int) -> tuple[tuple[int, int], ...] | None:
    """Padding per dimension as (before, after), from torch's last-dimension-first list; None if computed."""
    if not isinstance(amounts, (tuple, list)) or not all(isinstance(amount, int) for amount in amounts):
        return None
    pairs = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]
    return ((0, 0),) * (rank - len(pairs)) + tuple(reversed(pairs))


def still(call: Call, rank: int) -> tuple[int, ...]:
    """Dimensions along which a pooling looks at one position at a time and leaves none out."""
    kernel, stride, padding = (call.get(name) for name in ("kernel_size", "stride", "padding"))
    if "pool" not in call.name or not isinstance(kernel, (tuple, list)):
        return ()
    count = len(kernel)
    steps, edges = (value if isinstance(value, (tuple, list)) else [value] * count for value in (stride, padding))
    windows = zip(kernel, steps or kernel, edges or [0] * count, strict=False)
    plain = [size == 1 and step in (1, None) and edge in (0, None) for size, step, edge in windows]
    return tuple(d for d, one in enumerate(plain, rank - count) if one)


def is_tensor(value: Any) -> bool:
    """Whether an example value is a tensor."""
    return isinstance(value, Tensor)
