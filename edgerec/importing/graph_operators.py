"""Allowlist of TensorFlow operators in SavedModels: operators that compute with tensors and have no side effects.

All other operators are rejected, because some of them read and write files, open connections or call Python. Even
stateless operators can do so, such as DebugIdentity and ImmutableConst.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONTROL = _names(
    """
    Assert Case Const Empty Identity IdentityN If NoOp PartitionedCall Placeholder PlaceholderWithDefault
    PreventGradient Snapshot StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile StopGradient While
    """
)

VARIABLES = _names(
    """
    AssignAddVariableOp AssignSubVariableOp AssignVariableOp DisableCopyOnRead ReadVariableOp ResourceGather
    ResourceGatherNd VarHandleOp VarIsInitializedOp VariableShape
    """
)

# Random operators indicate that a model was exported in training mode.
RANDOM = _names(
    """
    Multinomial RandomGamma RandomPoissonV2 RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt
    RngReadAndSkip RngSkip StatefulRandomBinomial StatefulStandardNormalV2 StatefulTruncatedNormal StatefulUniform
    StatefulUniformFullInt StatefulUniformInt StatelessMultinomial StatelessRandomBinomial
    StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormal
    StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2
    StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessTruncatedNormal
    StatelessTruncatedNormalV2 TruncatedNormal
    """
)

MATHEMATICS = _names(
    """
    Abs Acos Acosh Add AddN AddV2 All Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2 Atanh BatchMatMul
    BatchMatMulV2 BatchMatMulV3 BesselI0e BesselI1e Betainc Bincount Bucketize Cast Ceil ClipByValue Complex ComplexAbs
    Conj Cos Cosh Cross Cumprod Cumsum DenseBincount Digamma Div DivNoNan Einsum Equal Erf Erfc Erfinv EuclideanNorm Exp
    Expm1 FFT FFT2D Floor FloorDiv FloorMod Greater GreaterEqual HistogramFixedWidth IFFT IFFT2D IRFFT IRFFT2D Igamma
    Igammac Imag InTopKV2 Inv Invert InvertPermutation IsFinite IsInf IsNan LeftShift Less LessEqual Lgamma LinSpace Log
    Log1p LogicalAnd LogicalNot LogicalOr MatMul Max Maximum Mean Min Minimum Mod Mul MulNoNan Ndtri Neg NextAfter
    NotEqual Polygamma Pow Prod QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 RFFT RFFT2D
    Range Real RealDiv Reciprocal RightShift Rint Round Rsqrt SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum
    Select SelectV2 Sigmoid Sign Sin Sinh Sqrt Square SquaredDifference Sub Sum Tan Tanh TruncateDiv TruncateMod
    UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum Xdivy Xlog1py Xlogy Zeta
    BitwiseAnd BitwiseOr BitwiseXor
    """
)

ARRAYS = _names(
    """
    BatchToSpace BatchToSpaceND BroadcastArgs BroadcastTo Concat ConcatV2 DeepCopy DepthToSpace Diag DiagPart
    EnsureShape ExpandDims ExtractImagePatches FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars
    FakeQuantWithMinMaxVarsPerChannel Fill Gather GatherNd GatherV2 LowerBound MatrixBandPart MatrixDiag MatrixDiagPart
    MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3
    MirrorPad OneHot OnesLike Pack Pad PadV2 ParallelConcat Rank Reshape Reverse ReverseSequence
    ReverseV2 Roll ScatterNd Shape ShapeN Size Slice SpaceToBatch SpaceToBatchND SpaceToDepth Split
    SplitV Squeeze StridedSlice TensorScatterAdd TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate
    TensorStridedSliceUpdate Tile TopK TopKV2 Transpose Unique UniqueV2 Unpack UpperBound Where ZerosLike
    TensorListConcatV2 TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem TensorListLength
    TensorListPushBack TensorListReserve TensorListResize TensorListScatterV2 TensorListSetItem TensorListSplit
    TensorListStack EmptyTensorList
    """
)

NETWORKS = _names(
    """
    AvgPool AvgPool3D BiasAdd BiasAddV1 Conv Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2
    DepthwiseConv2dNative Dilation2D Elu FractionalAvgPool FractionalMaxPool FusedBatchNorm FusedBatchNormV2
    FusedBatchNormV3 FusedPadConv2D FusedResizeAndPadConv2D L2Loss LRN LeakyRelu LogSoftmax MaxPool MaxPool3D MaxPoolV2
    MaxPoolWithArgmax Relu Relu6 Selu Softmax Softplus Softsign XlaDot XlaConv
    AdjustContrastv2 AdjustHue AdjustSaturation CropAndResize ExtractGlimpse HSVToRGB ImageProjectiveTransformV2
    ImageProjectiveTransformV3 NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5 RGBToHSV
    ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor ScaleAndTranslate
    """
)

OPERATORS = CONTROL | VARIABLES | RANDOM | MATHEMATICS | ARRAYS | NETWORKS
# Operators allowed only in functions that save and restore weights, because inference never calls these functions.
CHECKPOINT = _names("MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch StringJoin")
