"""The op table: one row per op, shared by every front end.

A row names an op as torch and ONNX spell it and says how channel labels pass through it, its `Kind` (`graph.kinds`).
Adding an op is adding a row; an op without a row freezes the channels that reach it.
"""

from __future__ import annotations

import math

from subprune_fx.graph.kinds import Axes, Kind, Resize, Row

_WEIGHT = ("weight", "bias")
_NORM = ("weight", "bias", "running_mean", "running_var")


def _names(words: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(words.split())


TABLE: tuple[Row, ...] = (
    # contractions
    Row(Kind.CONTRACT, ("conv1d", "conv2d", "conv3d"), ("Conv",), Axes(1, 1, 0), roles=_WEIGHT),
    Row(
        Kind.CONTRACT,
        _names("convtranspose1d convtranspose2d convtranspose3d conv_transpose1d conv_transpose2d conv_transpose3d"),
        ("ConvTranspose",),
        Axes(1, 0, 1),
        roles=_WEIGHT,
    ),
    Row(Kind.CONTRACT, ("linear",), ("Gemm",), Axes(-1, 1, 0), roles=_WEIGHT),
    Row(Kind.BILINEAR, ("bilinear",), roles=_WEIGHT),
    Row(Kind.RECURRENT, ("recurrent",)),
    Row(Kind.LOOKUP, ("embedding", "embeddingbag"), ("Gather",), roles=("weight",)),
    # per-channel parameters
    Row(
        Kind.PER_CHANNEL,
        _names("""
            batchnorm1d batchnorm2d batchnorm3d syncbatchnorm frozenbatchnorm2d batch_norm
            _native_batch_norm_legit_no_training
        """),
        ("BatchNormalization",),
        roles=_NORM,
    ),
    Row(
        Kind.PER_CHANNEL,
        ("instancenorm1d", "instancenorm2d", "instancenorm3d", "instance_norm"),
        ("InstanceNormalization",),
        roles=_NORM,
    ),
    Row(Kind.PER_CHANNEL, ("prelu",), ("PRelu",), roles=("weight",)),
    # activations with flat parts
    Row(Kind.ELEMENTWISE, ("relu",), ("Relu",), flat=(0.0, math.inf)),
    Row(Kind.ELEMENTWISE, ("relu6",), flat=(0.0, 6.0)),
    Row(Kind.ELEMENTWISE, ("hardswish",), ("HardSwish",), flat=(-3.0, math.inf)),
    Row(Kind.ELEMENTWISE, ("hardsigmoid",), flat=(-3.0, 3.0)),
    # elementwise, one operand or several
    Row(
        Kind.ELEMENTWISE,
        _names("""
            add iadd radd sub isub rsub mul imul rmul div truediv itruediv true_divide pow maximum minimum where
            masked_fill addcmul lerp eq ne lt le gt ge logical_and logical_or logical_not bitwise_and bitwise_or and or
            xor multiply subtract divide floor_divide remainder fmod atan2 copysign not_equal greater greater_equal less
            less_equal logical_xor bitwise_xor fmax fmin logaddexp hypot float_power xlogy addcdiv nan_to_num
        """),
        _names("""
            Add Sub Mul Div Pow Max Min Where Sum Mean Mod Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor
        """),
    ),
    Row(
        Kind.ELEMENTWISE,
        _names("""
            leakyrelu leaky_relu elu celu selu gelu silu mish hardtanh sigmoid tanh softplus softsign logsigmoid
            log_sigmoid threshold rrelu hardshrink softshrink tanhshrink exp log sqrt rsqrt square abs neg sin cos erf
            erfc reciprocal absolute negative positive exp2 expm1 log1p log2 log10 logit sinh cosh tan asin acos atan
            asinh acosh atanh trunc frac sgn erfinv half double bool int long bfloat16 cpu isnan isinf isfinite
            bitwise_not invert digamma lgamma sinc sign round floor ceil clamp clamp_min clamp_max clip dropout
            dropout1d dropout2d dropout3d alphadropout alpha_dropout featurealphadropout feature_dropout identity
            contiguous clone detach to float type _to_copy stochasticdepth stochastic_depth droppath lift_fresh_copy
            alias copy data real imag zeros_like ones_like full_like zero fill
        """),
        _names("""
            LeakyRelu Elu Celu Selu Gelu Mish HardSigmoid Sigmoid Tanh Softplus Softsign ThresholdedRelu Exp Log Sqrt
            Abs Neg Sin Cos Erf Reciprocal Sign Round Floor Ceil Clip Dropout Identity Cast Not IsNaN IsInf Tan Asin
            Acos Atan Sinh Cosh Asinh Acosh Atanh Shrink Swish com.microsoft.Gelu com.microsoft.FastGelu
            com.microsoft.QuickGelu
        """),
    ),
    Row(Kind.SAME, ("type_as",), ("CastLike",)),
    # positions of a channel
    Row(
        Kind.SPATIAL,
        _names("""
            maxpool1d maxpool2d maxpool3d max_pool1d max_pool2d max_pool3d
            avgpool1d avgpool2d avgpool3d avg_pool1d avg_pool2d avg_pool3d
            adaptiveavgpool1d adaptiveavgpool2d adaptiveavgpool3d
            adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
            adaptivemaxpool1d adaptivemaxpool2d adaptivemaxpool3d
            adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
            lppool1d lppool2d lp_pool1d lp_pool2d
            upsample interpolate upsamplingnearest2d upsamplingbilinear2d
            upsample_nearest1d upsample_nearest2d upsample_nearest3d
            _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
            upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa
            upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa
            max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
            adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices
            maxunpool1d maxunpool2d maxunpool3d max_unpool1d max_unpool2d max_unpool3d
            grid_sample grid_sampler
            reflectionpad1d reflectionpad2d reflectionpad3d replicationpad1d replicationpad2d replicationpad3d
            circularpad1d circularpad2d circularpad3d
            lppool3d lp_pool3d
        """),
        _names("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool Resize Upsample"),
    ),
    Row(Kind.UNFOLD, ("im2col",)),
    Row(Kind.FOLD, ("fold", "col2im")),
    Row(
        Kind.REDUCE,
        ("prod", "logsumexp", "any", "all", "count_nonzero", "argmax", "argmin"),
        ("ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin"),
    ),
    Row(Kind.REDUCE, ("cosinesimilarity", "cosine_similarity"), default=(1,)),
    Row(Kind.REDUCE, ("pairwisedistance", "pairwise_distance"), default=(-1,)),
    Row(
        Kind.STATISTIC,
        _names("""
            mean nanmean var std var_mean std_mean norm vector_norm linalg_vector_norm amax amin max min median
            nanmedian sum nansum
        """),
        ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare"),
    ),
    Row(
        Kind.ALONG,
        _names("softmax log_softmax logsoftmax softmin softmax2d _softmax cumsum cumprod cummax cummin logcumsumexp"),
        ("Softmax", "LogSoftmax", "CumSum"),
    ),
    Row(
        Kind.ALONG,
        ("sort", "argsort", "topk", "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft"),
        ("TopK",),
        default=(-1,),
    ),
    Row(Kind.ALONG, ("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2"), default=(-2, -1)),
    Row(Kind.ALONG, ("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn"), default=()),
    Row(Kind.ACROSS, ("across",), resize=Resize.KEPT, roles=_WEIGHT),
    # normalisations over dimensions
    Row(
        Kind.NORM,
        ("layernorm", "layer_norm", "native_layer_norm", "rmsnorm", "rms_norm", "normalize"),
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        resize=Resize.NORM,
        roles=_WEIGHT,
    ),
    Row(Kind.GROUP_NORM, ("groupnorm", "group_norm"), ("GroupNormalization",), resize=Resize.GROUPS, roles=_WEIGHT),
    # products of two tensors
    Row(
        Kind.PRODUCT,
        ("matmul", "rmatmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot", "routed", "cdist"),
        ("MatMul", "Einsum"),
    ),
    Row(Kind.ATTENTION, ("scaled_dot_product_attention",), ("Attention",)),
    # data movement
    Row(
        Kind.MOVE,
        ("view", "reshape", "unflatten", "_unsafe_view"),
        ("Reshape",),
        resize=Resize.SHAPE,
    ),
    Row(Kind.SPREAD, ("expand", "broadcast_to"), ("Expand",), resize=Resize.SHAPE),
    Row(
        Kind.MOVE,
        _names("""
            flatten squeeze unsqueeze stack unbind flip fliplr flipud rot90 roll pixelshuffle pixel_shuffle
            pixelunshuffle pixel_unshuffle repeat repeat_interleave tile select index_select index ravel unfold
        """),
        ("Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "Tile"),
    ),
    Row(Kind.MOVE, ("expand_as", "view_as", "reshape_as"), resize=Resize.LIKE),
    Row(
        Kind.PERMUTE,
        ("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "numpy_t", "mt"),
        ("Transpose",),
    ),
    Row(Kind.JOIN, ("cat", "concat", "concatenate"), ("Concat",)),
    Row(Kind.MOVE, ("getitem", "slice", "narrow"), ("Slice",), resize=Resize.SLICE),
    Row(Kind.MOVE, ("split", "split_with_sizes", "tensor_split"), ("Split",), resize=Resize.SPLIT),
    Row(Kind.CHUNK, ("chunk",), resize=Resize.SPLIT),
    Row(Kind.GATE, ("glu",)),
    Row(Kind.DEAL, ("channelshuffle", "channel_shuffle")),
    Row(
        Kind.PAD,
        _names("pad constant_pad_nd zeropad1d zeropad2d zeropad3d constantpad1d constantpad2d constantpad3d"),
        ("Pad",),
        resize=Resize.PAD,
    ),
    Row(Kind.GATHER, ("gather",), ("GatherElements",)),
    Row(
        Kind.WRITE,
        ("index_add", "index_copy", "index_fill", "index_reduce", "scatter", "scatter_add", "scatter_reduce"),
        ("ScatterElements",),
    ),
    Row(Kind.PUT, ("index_put",), ("ScatterND",)),
    Row(Kind.SCATTER, ("slice_scatter", "select_scatter"), resize=Resize.SLICE),
    # sizes
    Row(
        Kind.SHAPE,
        _names("""
            size dim ndim ndimension numel shape sym_size dtype device layout is_cuda requires_grad
            _assert_tensor_metadata
        """),
        ("Shape", "Size"),
    ),
    Row(Kind.SHAPE, ("new_zeros", "new_ones", "new_full", "new_empty"), ("ConstantOfShape",)),
)

BY_TORCH: dict[str, Row] = {name: row for row in TABLE for name in row.torch}
BY_ONNX: dict[str, Row] = {name: row for row in TABLE for name in row.onnx}
