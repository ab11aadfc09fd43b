"""What a row of the op table says: how labels pass through an op, where its channels are, which arguments are sizes."""

from __future__ import annotations

import dataclasses
import enum


class Kind(enum.Enum):
    """How labels pass through an op; each member has one rule in `graph.rules`."""

    MOVE = "moves elements: the op itself is run on the labels"
    SPREAD = "repeats along dimensions of size 1: what has no channels may be as wide as what it meets"
    PERMUTE = "reorders dimensions: a parameter stays a parameter"
    JOIN = "joins tensors along a dimension"
    ELEMENTWISE = "combines operands position by position: their labels are unified"
    CONTRACT = "sums over its input channels with a weight, and makes new channels"
    BILINEAR = "sums over the channels of two inputs with one weight, and makes new channels"
    PER_CHANNEL = "one parameter slice per channel: the parameters follow"
    SPATIAL = "acts on each channel's positions separately"
    UNFOLD = "lays out each channel's windows as channels"
    RECURRENT = "goes along a sequence: a unit of its state is a row of every gate"
    FOLD = "adds up windows that are laid out as channels"
    REDUCE = "reduces over dimensions"
    STATISTIC = "reduces over dimensions to something that its channels may be normalised by"
    ALONG = "mixes the positions of one dimension (softmax, sort)"
    ACROSS = "mixes neighbours along the last dimension; those that are gone count as zero"
    NORM = "normalises over dimensions; parameters of their shape"
    GROUP_NORM = "normalises over groups of channels; one parameter slice per channel"
    PRODUCT = "product of two tensors, activations or weights"
    ATTENTION = "attention of activations"
    PAD = "pads with a constant"
    CHUNK = "splits into equal parts"
    SAME = "gives its first tensor another type, or takes its shape alone: what else it reads says only what type"
    GATE = "multiplies one half of a dimension with a function of the other"
    DEAL = "deals out the channels of equal parts, one of each in turn"
    LOOKUP = "reads rows of a table: new channels from the table's columns"
    GATHER = "reads elements along one dimension, at indices of its own for each position"
    SCATTER = "writes into a range of one dimension"
    WRITE = "writes or adds to places along one dimension"
    PUT = "writes to places of its first dimensions"
    SHAPE = "reads sizes and types, not elements"


MOVING = (Kind.MOVE, Kind.SPREAD, Kind.PERMUTE, Kind.JOIN, Kind.CHUNK, Kind.DEAL, Kind.PAD)
"""Kinds whose ops are run on labels."""


class Resize(enum.Enum):
    """Which arguments of a moving op spell sizes, and so change when channels go."""

    NONE = "none"
    SHAPE = "the output shape"
    SLICE = "a range of one dimension"
    SPLIT = "the sizes of the parts"
    PAD = "how much is padded before and after"
    LIKE = "none: the output has the shape of another tensor"
    NORM = "the shape that is normalised over"
    GROUPS = "the number of groups"
    KEPT = "which positions of the last dimension are left"


@dataclasses.dataclass(frozen=True)
class Axes:
    """Where a contraction keeps its channels.

    Attributes:
        data: Channel dimension of the activation.
        inputs: Dimension of the weight that is summed over.
        outputs: Dimension of the weight that makes the new channels.
    """

    data: int
    inputs: int
    outputs: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One op.

    Attributes:
        kind: How labels pass through.
        torch: Its names in torch, lower case, without trailing underscore: functions, methods, `nn` classes and
            ATen packets of one name share an entry.
        onnx: Its ONNX op types, with the domain where that is not ONNX's own.
        axes: For contractions, where the channels are.
        resize: For moving ops, which arguments spell sizes.
        roles: Names of the tensors it takes besides the first (parameters, usually), as torch spells them.
        flat: For activations that are constant below one number and above another, those two.
        default: Dimensions that the op works on where it is not told; none: on all.
    """

    kind: Kind
    torch: tuple[str, ...]
    onnx: tuple[str, ...] = ()
    axes: Axes | None = None
    resize: Resize = Resize.NONE
    roles: tuple[str, ...] = ()
    flat: tuple[float, float] | None = None
    default: tuple[int, ...] | None = None
