"""Is a torch.export archive plain data? Told before any of it is deserialised.

`torch.export.load` trusts its input in many places: sample inputs, tensor subclasses and custom objects are
pickles; shape expressions go to `sympy.sympify`, which evals them; operator names are looked up with
`getattr` from `torch` (`torch.os.system` is one); names and guards become Python source that is exec'ed;
AOTInductor archives hold native code. So the archive is vetted first, with the reader that torch itself uses
and on the very bytes that are loaded afterwards: every record must be of a known kind, every pickle must load
under `weights_only=True`, and every string of the program must be of the form that its field calls for.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from subprune_fx.errors import SubpruneError

REMEDY = "pass --trust if you trust its origin"
RESAVE = "write it again with torch.export.save"

# The records that torch.export.save writes for a network of plain tensors.
_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/[\w.]+|\.format_version|\.storage_alignment"
    r"|models/[\w.-]+\.json|data/sample_inputs/[\w.-]+\.pt|extra/.*"
    r"|data/weights/(weight_\d+|[\w.-]+_weights_config\.json)"
    r"|data/constants/(tensor_\d+|[\w.-]+_constants_config\.json)"
)
_NAME = re.compile(r"[\w.:+\-]*")  # graph names, parameter paths, versions, dtypes: nothing that Python source needs
_OPERATOR = re.compile(
    r"torch\.ops\.(?!aten\.(from_file|save)\b)(aten|prims|torchvision)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.(_?sym_\w+)|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
# Shape expressions, as sympy's str() and srepr() write them.
_SYNTAX = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.Load,
    ast.keyword, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Eq", "Ne",
    "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "floor", "ceiling", "Equality", "Unequality",
    "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "FloorDiv", "ModularIndexing",
    "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift",
    "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator",
    "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
})  # fmt: skip
_SYMBOL = re.compile(r"[suz]\w*|oo|int_oo")


def vet(data: bytes, where: str) -> None:
    """Refuse an archive that is anything but plain tensors and a graph of plain operators.

    Args:
        data: The whole file.
        where: Its name, for errors.

    Raises:
        SubpruneError: It is damaged, or loading or running it could run code from the file.
    """
    try:
        from torch.export.pt2_archive._package import PT2ArchiveReader  # noqa: PLC0415 - slow

        with PT2ArchiveReader(io.BytesIO(data)) as reader:
            records = dict.fromkeys(reader.get_file_names(), b"")
            for name in records:
                if name.endswith(".json") or name.startswith("data/sample_inputs/"):
                    records[name] = reader.read_bytes(name)
    except Exception as error:
        raise SubpruneError("is a damaged or truncated torch.export archive", where=where, remedy=RESAVE) from error
    for name, content in records.items():
        if not _RECORDS.fullmatch(name):
            what = f"holds {name!r}, which is not plain tensors and may run code when loaded"
            raise SubpruneError(what, where=where, remedy=REMEDY)
        if name.startswith("data/sample_inputs/"):
            _vet_pickle(content, where)
        elif name.endswith(".json"):
            _vet_json(name, content, where)


def _vet_pickle(content: bytes, where: str) -> None:
    try:
        if content:
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        what = "its sample inputs are damaged, or not plain tensors and would run code when loaded"
        raise SubpruneError(what, where=where, remedy=REMEDY) from error


def _vet_json(name: str, content: bytes, where: str) -> None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SubpruneError(f"its record {name!r} is damaged", where=where, remedy=RESAVE) from error
    for key, item in _leaves(value, ""):
        if key == "use_pickle" and item:
            raise SubpruneError("holds pickled tensors, which may run code", where=where, remedy=REMEDY)
        if isinstance(item, str) and not _FORMS.get(key, _is_name)(item):
            what = f"its field {key!r} holds {item[:60]!r}, which no plain network has and may run code"
            raise SubpruneError(what, where=where, remedy=REMEDY)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(field name, value) of every scalar, and of every dict key as a name; lists inherit their field."""
    stack = [(key, value)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            # Free text that is never turned into code: stack traces, and the modules that a node came from.
            inner = {k: v for k, v in value.items() if k != "metadata"} if key != "metadata" else {}
            yield from (("", str(k)) for k in inner)
            stack.extend((str(k), v) for k, v in inner.items())
        elif isinstance(value, list):
            stack.extend((key, item) for item in value)
        else:
            yield key, value


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _is_operator(text: str) -> bool:
    return _OPERATOR.fullmatch(text) is not None


def _is_expression(text: str) -> bool:
    """Arithmetic of shape symbols, which sympify evals. Strings would be evaled in turn, but for names."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval"))) if len(text) < 4096 else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    functions = {id(call.func) for call in calls}
    names = {
        id(call.args[0]) for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Symbol" and call.args
    }
    return bool(nodes) and all(_is_arithmetic(node, functions, names) for node in nodes)


def _is_arithmetic(node: ast.AST, functions: set[int], names: set[int]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS if id(node) in functions else _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        named = isinstance(node.value, str) and id(node) in names and _SYMBOL.fullmatch(node.value) is not None
        return named or isinstance(node.value, bool | int | float)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name)
    return isinstance(node, _SYNTAX)


def _is_tree(text: str) -> bool:
    """A pytree specification: nested JSON of container names and argument names."""
    try:
        value = json.loads(text) if text else None
        strings = [item for _, item in _leaves(value, "") if isinstance(item, str)]
        # A dict's context is JSON once more: its keys.
        return all(_is_name(item) or _is_context(item) for item in strings)
    except (ValueError, RecursionError):
        return False


def _is_context(text: str) -> bool:
    keys = json.loads(text)
    return isinstance(keys, list) and all(isinstance(key, str) and _is_name(key) for key in keys)


def _anything(text: str) -> bool:
    del text
    return True


# Field -> the form its strings must have. Fields not listed hold names.
_FORMS: dict[str, Callable[[str], bool]] = {
    "target": _is_operator,
    "as_operator": _is_operator,
    "expr_str": _is_expression,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    "as_string": _anything,  # an argument such as einsum's equation; FX writes it with repr()
    "guards_code": _anything,  # not run: see as_module
    "torch_version": _anything,
}
