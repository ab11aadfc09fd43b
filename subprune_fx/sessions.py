"""How onnxruntime is run here: errors are exceptions and not log lines, and idle threads do not spin."""

from __future__ import annotations

import onnxruntime


def quiet(threads: int = 0, *, optimised: bool = True) -> onnxruntime.SessionOptions:
    """Options of a session.

    Args:
        threads: Of one operator; 0 for all cores.
        optimised: Whether the graph is optimised before it runs.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # they slow the next session
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options
