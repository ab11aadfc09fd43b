"""What torch's exporter gives -> the same without what need not be there, as onnxscript's own optimiser does it.

    Conv - BatchNormalization, Identity, Cast to the same type, Reshape - Reshape, ...  ->  Conv, -, -, Reshape, ...

`torch.onnx.export(optimize=True)` has one rule more: two Slices -> one Split. To look for it, onnxscript 0.7.2 goes
through the whole graph at every node, so that its time grows with the square of the graph: half of the export of ViT L.
"""

from __future__ import annotations

from onnx_ir import Model
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass, onnx_fusions
from onnxscript.rewriter.rules import common as rules

ITERATIONS = 2
"""As onnxscript."""

# fmt: off
RULES = (
    *rules.mul_by_1_rule.commute(), *rules.add_0_rule.commute(), rules.sub_0_rule, rules.div_by_1_rule,
    rules.dropout_zero_rule, rules.dropout_inference_rule,
    rules.one_reshape_matmul_reshape_rule, rules.two_reshapes_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule, rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule, rules.collapse_slice2_rule, rules.materialize_reshape_shape_rule,
    rules.min_min_rule, rules.max_max_rule, rules.min_max_rule, rules.max_min_rule,
    rules.successive_clip_relu_rule, rules.successive_relu_clip_rule, rules.successive_relu_rule,
    rules.successive_clip_rule, rules.cast_cast_rule, rules.no_op_cast_rule, rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule, rules.reshape_reshape_rule, rules.no_op_transpose_rule,
    rules.transpose_transpose_rule, rules.unsqueeze_unsqueeze_rule, rules.squeeze_reshape_1d_rule,
    rules.no_op_dynamic_scatter_nd_rule, rules.no_op_static_scatter_nd_rule,
    rules.normalize_pad_format_conv_rule, rules.fuse_pad_into_conv_rule,
    rules.fuse_batchnorm_into_conv_rule, rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule, rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_conv_transpose_rule, rules.remove_optional_bias_from_gemm_rule,
)
# fmt: on
"""onnxscript's own, in its order, but for Slices and for integers' operators."""


def optimise(model: Model) -> None:
    """Fold constants, rewrite by `RULES`, and drop what nobody reads, in place."""
    common.InlinePass()(model)
    for _ in range(ITERATIONS):
        folded = fold_constants_ir(model, onnx_shape_inference=True).modified
        rewritten = RewritePass(RULES)(model).modified
        removed = [step(model).modified for step in (common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass())]
        if not (folded or rewritten or any(removed)):
            break
    for last in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        last(model)
    onnx_fusions.fuse(model)
