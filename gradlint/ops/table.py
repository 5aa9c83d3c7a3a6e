"""One row per operator: canonical name, kind, and what torch and ONNX call it.

torch names are those of the public function without its namespace and without the in-place underscore or dunder
(`add_`, `__iadd__` and `__radd__` are all "add"); aten names are the same. A row's `cuts` says that no gradient passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from gradlint.ops import activations
from gradlint.ops.operator import Attributes, Kind, Operator
from gradlint.ops.pointwise import Pointwise, rectifier

if TYPE_CHECKING:
    from gradlint.graph import Node

UNKNOWN = Operator("unknown", Kind.UNKNOWN)


def _row(name: str, kind: Kind, torch: str = "", onnx: str = "", **columns: Any) -> Operator:
    return Operator(name, kind, tuple(torch.split()), tuple(onnx.split()), **columns)


_K = Kind
_ROWS = (
    _row("input", _K.INPUT),
    _row(
        "constant",
        _K.SHAPE,
        "tensor zeros ones full empty arange linspace eye rand randn randint randperm zeros_like "
        "ones_like full_like empty_like rand_like randn_like scalar_tensor as_tensor from_numpy new_zeros new_ones new_full "
        "new_empty new_tensor tril_indices triu_indices normal uniform fill zero",
        "Constant ConstantOfShape Range EyeLike RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial",
    ),
    # weight layers
    _row(
        "linear",
        _K.LINEAR,
        "linear addmm bilinear",
        "Gemm FusedGemm GemmFastGelu GemmFloat8 MatMulNBits MatMulBnb4 MatMulFpQ4 MatMulIntegerToFloat DynamicQuantizeMatMul",
    ),
    _row(
        "matmul",
        _K.MATMUL,
        "matmul bmm mm baddbmm addbmm einsum dot mv addmv tensordot grouped_mm _grouped_mm inner outer vdot "
        "chain_matmul linalg_multi_dot addr cdist",
        "MatMul Einsum FusedMatMul FusedMatMulActivation TransposeMatMul SparseToDenseMatMul CDist",
    ),
    _row(
        "conv",
        _K.CONV,
        "conv1d conv2d conv3d convolution _convolution deform_conv2d mkldnn_convolution _conv_depthwise2d cudnn_convolution",
        "Conv DeformConv CausalConvWithState FusedConv NhwcConv NhwcFusedConv",
    ),
    _row(
        "conv_transpose",
        _K.CONV,
        "conv_transpose1d conv_transpose2d conv_transpose3d",
        "ConvTranspose ConvTransposeWithDynamicPads",
    ),
    _row("embedding", _K.EMBEDDING, "embedding embedding_bag _embedding_bag"),
    _row("rnn", _K.RNN, "rnn_tanh rnn_relu", "RNN"),
    _row("lstm", _K.RNN, "lstm mkldnn_rnn_layer", "LSTM DynamicQuantizeLSTM"),
    _row("gru", _K.RNN, "gru", "GRU"),
    _row("rnn_cell", _K.RNN, "rnn_tanh_cell rnn_relu_cell"),
    _row("lstm_cell", _K.RNN, "lstm_cell _thnn_fused_lstm_cell"),
    _row("gru_cell", _K.RNN, "gru_cell _thnn_fused_gru_cell"),
    _row(
        "attention",
        _K.ATTENTION,
        "scaled_dot_product_attention _scaled_dot_product_flash_attention "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_attention_math flex_attention",
        "Attention FlexAttention LinearAttention",
    ),
    _row(
        "multi_head_attention",
        _K.ATTENTION,
        "multi_head_attention_forward _native_multi_head_attention _transformer_encoder_layer_fwd",
        "MultiHeadAttention GroupQueryAttention QAttention PackedAttention PackedMultiHeadAttention PagedAttention SparseAttention "
        "LongformerAttention DecoderAttention DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention",
    ),
    # normalization
    _row(
        "batch_norm",
        _K.NORM,
        "batch_norm native_batch_norm cudnn_batch_norm _native_batch_norm_legit "
        "_batch_norm_impl_index _batch_norm_with_update sync_batch_norm",
        "BatchNormalization",
    ),
    _row(
        "layer_norm",
        _K.NORM,
        "layer_norm native_layer_norm",
        "LayerNormalization SkipLayerNormalization EmbedLayerNormalization QEmbedLayerNormalization",
    ),
    _row("group_norm", _K.NORM, "group_norm native_group_norm", "GroupNormalization GroupNorm SkipGroupNorm"),
    _row("instance_norm", _K.NORM, "instance_norm", "InstanceNormalization MeanVarianceNormalization"),
    _row(
        "rms_norm",
        _K.NORM,
        "rms_norm _fused_rms_norm",
        "RMSNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization GatedRMSNorm",
    ),
    _row("local_response_norm", _K.NORM, "local_response_norm", "LRN"),
    _row("l2_normalize", _K.NORM, "normalize", "LpNormalization"),
    *activations.ROWS,
    _row("glu", _K.ACTIVATION, "glu", "SwiGLU BiasSplitGelu"),
    _row("softmax", _K.SOFTMAX, "softmax _softmax softmin gumbel_softmax _safe_softmax", "Softmax BiasSoftmax", final=True),
    _row("log_softmax", _K.SOFTMAX, "log_softmax _log_softmax", "LogSoftmax", final=True),
    # joins and pointwise arithmetic
    _row("add", _K.ADD, "add addcmul addcdiv", "Add Sum Mean BiasAdd GatedAdd"),
    _row("sub", _K.ADD, "sub subtract rsub lerp", "Sub"),
    _row("mul", _K.MUL, "mul multiply", "Mul"),
    _row("div", _K.MUL, "div divide true_divide truediv", "Div"),
    _row("neg", _K.MUL, "neg negative", "Neg"),
    _row("exp", _K.MATH, "exp exp2 expm1", "Exp"),
    _row("log", _K.MATH, "log log2 log10 log1p xlogy logit", "Log"),
    _row("sqrt", _K.MATH, "sqrt", "Sqrt"),
    _row("rsqrt", _K.MATH, "rsqrt"),
    _row("reciprocal", _K.MATH, "reciprocal", "Reciprocal"),
    _row("pow", _K.MATH, "pow square float_power rpow", "Pow"),
    _row("abs", _K.MATH, "abs absolute", "Abs", function=rectifier(-1.0, 1.0, 0.0), monotone=False),
    _row("clamp", _K.MATH, "clamp clip clamp_min clamp_max nan_to_num", "Clip", dead="below"),
    _row("maximum", _K.MATH, "maximum minimum fmax fmin max_binary min_binary", "Max Min"),
    _row("sin", _K.MATH, "sin cos sinc", "Sin Cos", monotone=False, bounded=True),
    _row(
        "tan",
        _K.MATH,
        "tan sinh cosh atan atan2 asin acos asinh acosh atanh arctan arctan2 arcsin arccos arctanh",
        "Tan Sinh Cosh Atan Asin Acos Asinh Acosh Atanh",
    ),
    _row("erfinv", _K.MATH, "erfinv erfc lgamma digamma i0 special_i0"),
    _row("remainder", _K.MATH, "remainder fmod mod", "Mod"),
    _row(
        "complex",
        _K.MATH,
        "real imag view_as_real view_as_complex complex polar angle conj resolve_conj resolve_neg conj_physical",
        "ComplexMul ComplexMulConj",
    ),
    _row(
        "fft",
        _K.MATH,
        "fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn "
        "fft_rfftn fft_irfftn fft_hfft fft_ihfft stft istft fft_fftshift fft_ifftshift _fft_c2c _fft_r2c _fft_c2r",
        "DFT STFT Rfft Irfft MelWeightMatrix HannWindow HammingWindow BlackmanWindow",
    ),
    _row(
        "linalg",
        _K.MATH,
        "linalg_solve linalg_inv inverse linalg_qr linalg_svd linalg_eigh linalg_eig linalg_cholesky "
        "linalg_det det linalg_slogdet linalg_householder_product linalg_solve_triangular matrix_exp linalg_matrix_exp pinverse "
        "linalg_matrix_power cholesky qr svd linalg_pinv linalg_lstsq linalg_cross cross householder_product orgqr",
        "Det Inverse",
    ),
    _row("parametrize", _K.MATH, "_weight_norm _weight_norm_interface"),
    _row(
        "grid_sample",
        _K.MATH,
        "grid_sample grid_sampler grid_sampler_2d affine_grid grid_sampler_3d",
        "GridSample AffineGrid RoiAlign CropAndResize",
    ),
    _row(
        "dropout",
        _K.DROPOUT,
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout "
        "native_dropout stochastic_depth",
        "Dropout BiasDropout BitmaskDropout BitmaskBiasDropout",
    ),
    # reductions, pooling, joins
    _row("mean", _K.REDUCE, "mean nanmean", "ReduceMean"),
    _row(
        "sum",
        _K.REDUCE,
        "sum nansum cumsum logsumexp logcumsumexp prod cumprod norm linalg_norm linalg_vector_norm "
        "linalg_matrix_norm frobenius_norm dist trace cosine_similarity pairwise_distance segment_reduce",
        "ReduceSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd ReduceSumSquare CumSum CumProd GlobalLpPool LpPool",
    ),
    _row("var", _K.REDUCE, "var std var_mean std_mean"),
    _row(
        "max",
        _K.REDUCE,
        "max min amax amin aminmax sort topk kthvalue median mode msort cummax cummin quantile nanmedian",
        "ReduceMax ReduceMin TopK",
    ),
    _row(
        "avg_pool",
        _K.POOL,
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d lp_pool1d lp_pool2d lp_pool3d",
        "AveragePool GlobalAveragePool",
    ),
    _row(
        "max_pool",
        _K.POOL,
        "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d_with_indices "
        "adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d "
        "fractional_max_pool2d_with_indices max_unpool1d max_unpool2d max_unpool3d mkldnn_max_pool2d",
        "MaxPool GlobalMaxPool MaxUnpool MaxRoiPool NhwcMaxPool MaxpoolWithMask",
    ),
    _row(
        "upsample",
        _K.POOL,
        "interpolate upsample upsample_nearest upsample_bilinear upsample_nearest1d upsample_nearest2d "
        "upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d",
        "Resize Upsample",
    ),
    _row(
        "concat",
        _K.CONCAT,
        "cat concat concatenate stack hstack vstack dstack column_stack cartesian_prod meshgrid block_diag row_stack",
        "Concat ConcatFromSequence SequenceConstruct SequenceInsert",
    ),
    # moves
    _row(
        "reshape",
        _K.SHAPE,
        "view reshape flatten unflatten squeeze unsqueeze expand expand_as view_as reshape_as ravel "
        "permute transpose t T mT H mH movedim moveaxis swapaxes swapdims adjoint broadcast_to broadcast_tensors atleast_1d "
        "atleast_2d atleast_3d contiguous clone alias lift_fresh_copy _unsafe_view as_strided unbind split chunk tensor_split hsplit "
        "split_with_sizes dsplit vsplit unsafe_chunk unsafe_split unfold fold im2col col2im pixel_shuffle pixel_unshuffle "
        "channel_shuffle rot90 flip fliplr flipud roll repeat repeat_interleave tile detach_copy _reshape_alias "
        "_pack_padded_sequence _pad_packed_sequence slice_copy lift_fresh",
        "Reshape Flatten Squeeze Unsqueeze Transpose Expand Identity Split SplitToSequence SequenceAt Tile DepthToSpace "
        "SpaceToDepth Col2Im ReverseSequence CenterCropPad SequenceErase SequenceEmpty SequenceMap Optional OptionalGetElement ExpandDims UnfoldTensor",
    ),
    _row(
        "cast",
        _K.SHAPE,
        "to type type_as float double half bfloat16 cpu cuda _to_copy positive cfloat cdouble data "
        "pin_memory requires_grad requires_grad_ set_data",
        "Cast CastLike QuantizeLinear DequantizeLinear DequantizeWithOrder DequantizeBFP",
    ),
    _row(
        "slice",
        _K.SHAPE,
        "getitem index_select gather take take_along_dim narrow select slice index masked_select diagonal diag "
        "diag_embed tril triu where masked_fill masked_scatter scatter scatter_add scatter_reduce index_add index_copy index_fill "
        "index_put _index_put_impl setitem copy slice_scatter select_scatter diagonal_scatter put select_backward pad constant_pad_nd "
        "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d reflection_pad3d replication_pad3d scatter_value "
        "fill_diagonal nested_to_padded diff combinations _pad_circular",
        "Gather GatherElements GatherND Slice Where Pad Compress Trilu Scatter ScatterElements ScatterND TensorScatter "
        "RotaryEmbedding GatherBlockQuantized TorchEmbedding RemovePadding RestorePadding RelativePositionBias NGramRepeatBlock",
    ),
    # no gradient passes
    _row("detach", _K.CUT, "detach data_get no_grad stop_gradient"),
    _row(
        "round",
        _K.CUT,
        "round floor ceil trunc fix sign sgn floor_divide floordiv heaviside frac_cut bucketize searchsorted signbit bernoulli",
        "Round Floor Ceil Sign Hardmax Bucketize",
    ),
    _row(
        "argmax",
        _K.CUT,
        "argmax argmin argsort nonzero unique unique_consecutive _unique2 one_hot multinomial count_nonzero "
        "bincount histc argwhere isin",
        "ArgMax ArgMin NonZero OneHot Unique NonMaxSuppression DynamicTimeWarping",
    ),
    _row(
        "compare",
        _K.CUT,
        "eq ne lt gt le ge greater less greater_equal less_equal not_equal isnan isinf isfinite equal allclose isclose logical_and logical_or "
        "logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor any all and or xor not invert lshift rshift "
        "bitwise_left_shift bitwise_right_shift",
        "Equal Greater Less GreaterOrEqual LessOrEqual And Or Xor Not IsNaN IsInf BitwiseAnd BitwiseOr BitwiseXor BitwiseNot "
        "BitShift Shape Size SequenceLength OptionalHasElement StringNormalizer StringConcat StringSplit RegexFullMatch TfIdfVectorizer IsAllFinite MurmurHash3 Tokenizer",
    ),
    _row(
        "to_integer",
        _K.CUT,
        "long int short bool char byte",
        "ConvInteger MatMulInteger DynamicQuantizeLinear QLinearConv QLinearMatMul QLinearAdd QLinearMul QLinearConcat QLinearWhere "
        "QLinearAveragePool QLinearGlobalAveragePool QLinearReduceMean QLinearLeakyRelu QLinearSigmoid QLinearSoftmax QGemm "
        "MatMulInteger16 MulInteger ReduceSumInteger QuantizeBFP QuantizeWithOrder QOrderedMatMul QOrderedGelu "
        "QOrderedAttention QOrderedLayerNormalization QOrderedLongformerAttention",
    ),
    _row("trees", _K.CUT, "", "TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor"),
    _row(
        "loss",
        _K.LOSS,
        "cross_entropy nll_loss nll_loss_nd nll_loss2d mse_loss l1_loss smooth_l1_loss huber_loss "
        "binary_cross_entropy binary_cross_entropy_with_logits kl_div ctc_loss hinge_embedding_loss margin_ranking_loss "
        "cosine_embedding_loss triplet_margin_loss triplet_margin_with_distance_loss poisson_nll_loss gaussian_nll_loss "
        "multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss soft_margin_loss cross_entropy_loss",
        "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    ),
    _row("control", _K.CONTROL, "cond while_loop scan map associative_scan", "If Loop Scan"),
)

OPERATORS: dict[str, Operator] = {row.name: row for row in (*_ROWS, UNKNOWN)}
"""All operators by canonical name."""


def operator(name: str) -> Operator:
    """Return the row of a canonical name, or `UNKNOWN` if there is none."""
    return OPERATORS.get(name, UNKNOWN)


def activation(name: str, attrs: Attributes) -> Pointwise | None:
    """Return the function of an activation with the attributes of a node, or None if its row has no function."""
    return operator(name).of(attrs)


def by_nonlinearity(name: str) -> Operator:
    """Return the row of an activation by its name in a recurrent node: a canonical name, or an ONNX op type in any case."""
    own, bare = operator(name), name.lower()
    named = (row for row in OPERATORS.values() if row.function is not None and bare in map(str.lower, row.onnx))
    return own if own is not UNKNOWN else next(named, UNKNOWN)


def attributes_of(node: Node) -> Mapping[str, Any]:
    """Return the attributes of a node. An attribute that the model learns has the mean of its weight."""
    learned, weight = operator(node.op).learned, node.weights.get("weight") or node.weights.get("slope")
    return {**node.attrs, learned: weight.statistics.mean} if learned and weight is not None else node.attrs


@cache
def _names(frontend: str) -> dict[str, Operator]:
    table: dict[str, Operator] = {}
    for row in OPERATORS.values():
        for name in getattr(row, frontend):
            if name in table:
                msg = f"{frontend} name {name!r} stands in two rows: {table[name].name} and {row.name}"
                raise ValueError(msg)
            table[name] = row
    return table


def by_onnx(op_type: str) -> Operator:
    """Return the row of an ONNX op type, or `UNKNOWN` if there is none."""
    return _names("onnx").get(op_type, UNKNOWN)


def by_torch(name: str) -> Operator:
    """Return the row of a torch or aten function, including in-place and dunder names, or `UNKNOWN` if there is none."""
    table = _names("torch")
    bare = name.strip("_") if name.startswith("__") else name
    candidates = (name, name.removesuffix("_"), bare, bare[1:] if bare[:1] in {"i", "r"} else bare)
    return next((table[candidate] for candidate in candidates if candidate in table), UNKNOWN)
