"""Choose between PTQ, QAT and float16 by comparing their validation accuracy (method ``auto``)."""

from __future__ import annotations

import logging
from dataclasses import replace

from edgerec.compress.candidate import Candidate, make_candidate
from edgerec.compress.context import CompressionContext
from edgerec.compress.existing_variants import existing, used_differently
from edgerec.compress.variant_report import QuantizeReport
from edgerec.compression_methods import MORE_EPOCHS
from edgerec.errors import GateError, ModelError, OutputExistsError

log = logging.getLogger(__name__)

# PTQ comes first because it requires no training, and float16 comes last because it is not int8.
AUTO_METHODS = ("ptq", "qat", "float16")
# QAT is tried if PTQ loses more than this fraction of the accepted accuracy drop on the validation images.
# A margin is necessary because the test accuracy can be lower than the validation accuracy.
WORTH_QAT = 0.5


def choose_method(context: CompressionContext, *, resume: bool, overwrite: bool) -> QuantizeReport:
    """Choose the best compression method, create its variant, and evaluate the variant on the test images.

    Existing variants are reused.

    Raises:
        GateError: all methods lose more than ``max_drop`` on the validation images. The best variant is saved.
        OutputExistsError: a variant with other settings exists, and ``overwrite`` is not set.
    """
    max_drop, count = context.recipe.compress.max_drop, len(context.split.val)
    sources: dict[str, Candidate | QuantizeReport] = {}
    remarks: list[str] = []

    def loss(name: str) -> float:
        return sources[name].val_drop_points

    def fits(name: str, allowed: float) -> bool:
        return name in sources and loss(name) <= allowed + 1e-9

    def attempt(name: str) -> None:
        try:
            sources[name] = _reused_or_made(context.with_method(name), resume, overwrite)
        except ModelError as error:
            remarks.append(f"{name} cannot be used")
            log.info("auto: %s: %s", remarks[-1], error)
        else:
            remarks.append(f"{name} loses {loss(name):.2f} points")
            log.info("auto: %s on %d validation images", remarks[-1], count)

    def chosen(name: str, reason: str) -> QuantizeReport:
        source = sources[name]
        why = f"{reason}; on {count:,} validation images {', '.join(remarks)}; {max_drop:g} allowed"
        return replace(source.save(overwrite) if isinstance(source, Candidate) else source, why=why)

    attempt("ptq")
    worth = max_drop * WORTH_QAT
    if fits("ptq", worth):
        return chosen("ptq", f"ptq loses so little that qat is not tried (only above {worth:g} points)")
    log.info("auto: trying qat, which trains for %d epochs", context.recipe.compress.epochs)
    attempt("qat")
    int8 = sorted((name for name in AUTO_METHODS if name in sources), key=loss)  # PTQ wins ties
    if int8 and fits(int8[0], max_drop):
        reason = "loses least" if len(int8) > 1 else "is the only int8 method for this model"
        return chosen(int8[0], f"{int8[0]} {reason}")
    attempt("float16")
    if fits("float16", max_drop):
        log.warning(
            "auto chose float16, which is not int8 and does not run on targets that require int8; "
            "for int8, try --method qat with %s, or a higher --max-drop",
            MORE_EPOCHS,
        )
        return chosen("float16", "no int8 method meets --max-drop")
    error = GateError(
        f"no method meets --max-drop {max_drop:g} on {count:,} validation images ({', '.join(remarks)}): "
        f"try --method qat with {MORE_EPOCHS}, or a higher --max-drop"
    )
    if sources:
        error.report = chosen(min(sources, key=loss), "it loses least")
    raise error


def _reused_or_made(context: CompressionContext, resume: bool, overwrite: bool) -> Candidate | QuantizeReport:
    report = None if overwrite else existing(context.run, context.recipe)
    if report is None:
        return make_candidate(context, resume=resume, overwrite=overwrite)
    if other := used_differently(context.run, context.recipe):
        raise OutputExistsError(
            f"{report.variant} already exists, but was created with {other}: add --overwrite to replace it, or choose "
            "a different --method"
        )
    log.info("auto: using the existing variant %s (--overwrite replaces it)", report.variant)
    return report
