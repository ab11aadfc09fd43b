"""How onnxruntime is run here: errors are exceptions and not log lines, and idle threads do not spin."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

if TYPE_CHECKING:
    import onnxruntime


def opened(model: bytes | str | os.PathLike[str], options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """What runs a model on the processor.

    Args:
        model: A serialised model, or where its file is.
        options: See `quiet`.
    """
    import onnxruntime  # noqa: PLC0415 - slow

    made = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])


def quiet(threads: int = 0, *, optimised: bool = True, pooled: bool = False) -> onnxruntime.SessionOptions:
    """Options of a session.

    Args:
        threads: Of one operator; 0 for all cores.
        optimised: Whether the graph is optimised before it runs.
        pooled: Whether memory comes from what other such sessions have used before, and stays theirs until
            `give_back`: memory that is fresh from the system costs more than an elementwise operator.
    """
    import onnxruntime  # noqa: PLC0415 - slow

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # they slow the next session
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if pooled:
        _pool()
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def shared(array: npt.NDArray[Any]) -> onnxruntime.OrtValue:
    """The same memory, for a session to read."""
    import onnxruntime  # noqa: PLC0415 - slow

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def give_back() -> None:
    """Return what pooled sessions have and do not use to the system."""
    _pool().run(None, {"x": np.zeros(1, np.float32)}, _shrinking())


@functools.cache
def _pool() -> onnxruntime.InferenceSession:
    """Make the pool; any session in it can shrink it."""
    import onnxruntime  # noqa: PLC0415 - slow

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    as_requested, default = 1, -1
    growth = {"max_mem": 0, "arena_extend_strategy": as_requested}
    sizes = {"initial_chunk_size_bytes": default, "max_dead_bytes_per_chunk": default}
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({**growth, **sizes}))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "shrink", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = quiet(1)
    options.add_session_config_entry("session.use_env_allocators", "1")
    return opened(model.SerializeToString(), options)


@functools.cache
def _shrinking() -> onnxruntime.RunOptions:
    import onnxruntime  # noqa: PLC0415 - slow

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
