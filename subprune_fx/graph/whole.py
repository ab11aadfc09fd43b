"""Ops that stay whole for a reason that is known, and what to do instead."""

from __future__ import annotations

QUANTISED = "the network is quantised already, prune the float network and then --quantize int8"
RECURRENT = "{op}: its state stays whole, prune the PyTorch network to make it smaller"

_QUANTISED = """
    QuantizeLinear DequantizeLinear DynamicQuantizeLinear ConvInteger MatMulInteger MatMulInteger16 MatMulIntegerToFloat
    MulInteger ReduceSumInteger DynamicQuantizeMatMul DynamicQuantizeLSTM MatMulNBits MatMulBnb4 GatherBlockQuantized
    QGemm QAttention QMoE QEmbedLayerNormalization QLinearConv QLinearConvTranspose QLinearMatMul QLinearAdd QLinearMul
    QLinearSigmoid QLinearSoftmax QLinearLeakyRelu QLinearAveragePool QLinearGlobalAveragePool QLinearReduceMean
    QLinearConcat QLinearWhere QOrderedAttention QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention
    QOrderedMatMul
"""

WHOLE: dict[str, str] = {
    **dict.fromkeys(_QUANTISED.split(), QUANTISED),
    **{op: RECURRENT.format(op=op) for op in ("LSTM", "GRU", "RNN")},
}
"""By op as messages call it, why."""
