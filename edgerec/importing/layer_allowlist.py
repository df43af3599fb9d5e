"""Allowlist of layers and operators in third-party Keras models."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODELS = _names("Functional Model Sequential")

# Layers that have the same definition, weights and weight order in Keras 2 and 3.
LAYERS = _names(
    """
    Activation ActivityRegularization Add AlphaDropout Average AveragePooling1D AveragePooling2D BatchNormalization
    Bidirectional CenterCrop Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Cropping1D Cropping2D Dense
    DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU Flatten GRU GaussianDropout GaussianNoise GlobalAveragePooling1D
    GlobalAveragePooling2D GlobalMaxPooling1D GlobalMaxPooling2D GroupNormalization Identity InputLayer LSTM
    LayerNormalization LeakyReLU MaxPooling1D MaxPooling2D Maximum Minimum Multiply Normalization PReLU Permute ReLU
    RepeatVector Rescaling Reshape Resizing SeparableConv1D SeparableConv2D SimpleRNN Softmax SpatialDropout1D
    SpatialDropout2D Subtract ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D
    ZeroPadding1D ZeroPadding2D
    """
)

# Data augmentation layers, which are active only during training.
AUGMENTATION = _names(
    """
    RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomElasticTransform RandomErasing
    RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization
    RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom
    """
)

# Maps Keras 3 activations to the names of identical Keras 2 activations.
ACTIVATIONS = {
    name: name
    for name in _names("elu exponential gelu linear mish relu selu sigmoid softmax softplus softsign swish tanh")
} | {"silu": "swish"}

# Values of layer options that have no effect, so that options which tf_keras does not know can be omitted.
NO_EFFECT = (None, False, "auto", "channels_last")

# Arithmetic operators in a Keras 3 graph, as in ``x / 127.5 - 1``.
ARITHMETIC = frozenset({"Add", "Subtract", "Multiply", "Divide", "TrueDivide"})
# Maps functions in a Keras 3 graph to the equivalent activations.
FUNCTIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "Silu": "silu",
    "Tanh": "tanh",
    "Softmax": "softmax",
}
# Operators that select or reorder channels, or crop an image, as used by Keras' ``preprocess_input``.
INDEXING = frozenset({"Flip", "GetItem", "Stack"})
OPERATORS = ARITHMETIC | FUNCTIONS.keys() | INDEXING

# TensorFlow operators accepted in a Keras 2 graph.
TF_OPERATORS = _names(
    """
    __operators__.add __operators__.getitem __operators__.sub math.add math.subtract math.multiply math.truediv
    math.divide math.sigmoid math.tanh nn.bias_add nn.relu nn.relu6 nn.sigmoid nn.silu nn.softmax nn.tanh reverse
    """
)
