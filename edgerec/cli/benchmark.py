"""Implement the ``edgerec benchmark`` command."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.options import DELEGATE_HELP, AllowedSignersOption, RevokedKeysOption
from edgerec.cli.output import JsonOption, progress, say, show_json, table
from edgerec.utils.secret_references import warn_about_secrets

if TYPE_CHECKING:
    from edgerec.camera import Frame
    from edgerec.camera.sources import Address
    from edgerec.runtime.benchmark import BenchmarkReport

# Maximum time in seconds to wait for a live source's next frame.
GIVE_UP_S = 10.0


def benchmark(
    bundle: Path = typer.Argument(..., metavar="BUNDLE", help="Bundle folder or .zip file."),
    source: str = typer.Option(
        "",
        "--source",
        "-s",
        metavar="SOURCE",
        help="Source of the frames to measure with, such as 0 or a video file. [default: the bundle's golden images]",
    ),
    seconds: float = typer.Option(
        5.0,
        min=0.1,
        metavar="SECONDS",
        help="Duration of the stage measurement in seconds. The operator measurement takes the same time again.",
    ),
    threads: int = typer.Option(
        0, min=0, metavar="N", help="Number of interpreter threads. 0 uses the number specified in the bundle."
    ),
    delegate: str | None = typer.Option(None, metavar="NAME", help=DELEGATE_HELP),
    operators: bool = typer.Option(True, "--operators/--no-operators", help="Measure the latency of each operator."),
    plot: Path | None = typer.Option(None, metavar="PNG", help="Plot the results to this PNG file."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing PNG file."),
    json: bool = JsonOption,
    allowed_signers: Path | None = AllowedSignersOption,
    revoked_keys: Path | None = RevokedKeysOption,
) -> None:
    """Measure a bundle's latency and memory use on this machine.

    The command also times each stage and operator and the cold start, and detects thermal throttling.
    """
    from edgerec.camera.sources import find_source
    from edgerec.runtime.benchmark import benchmark as run_benchmark
    from edgerec.utils.atomic import checked_output, refuse_existing

    address = find_source(source) if source else None
    warn_about_secrets([source])
    if plot is not None:
        refuse_existing(checked_output(plot, [bundle, source], suffixes=(".png",)), overwrite)
    frames = _frames(address) if address else None
    with progress() as listener, closing(frames) if frames else nullcontext():
        report = run_benchmark(
            bundle,
            frames=frames,
            source=address.name if address else "",
            seconds=seconds,
            threads=threads,
            delegate=delegate,
            operators=operators,
            allowed_signers=allowed_signers,
            revoked_keys=revoked_keys,
            listener=listener,
        )
    if plot is not None:
        from edgerec.runtime.benchmark_plot import benchmark_plot

        benchmark_plot(report, plot)
    if json:
        show_json(report.to_dict())
        return
    _show(report)
    if plot is not None:
        say(f"plot     {plot}")


def _frames(address: Address) -> Generator[Frame]:
    """Yield frames from the camera, video or folder at ``address``.

    The source is not opened until the first frame is requested, so that opening it does not count as cold start.
    """
    from edgerec.camera import SourceSupervisor
    from edgerec.camera.reconnection import Timeouts

    with SourceSupervisor([address], Timeouts(give_up_s=GIVE_UP_S)) as feeds:
        yield from feeds.frames()


def _show(report: BenchmarkReport) -> None:
    table(
        ("stage", "p50 ms", "p95 ms", "p99 ms"),
        [(s.name, *(f"{ms:.3f}" for ms in (s.p50_ms, s.p95_ms, s.p99_ms))) for s in report.stages],
    )
    longest = sorted(report.operators, key=lambda operator: -operator.ms)[:10]
    if longest:
        say("")
        table(
            ("operator", "index", "ms", "percentage", "output"),
            [(o.op, o.name, f"{o.ms:.4f}", f"{o.part:.1%}", o.output[-48:]) for o in longest],
            optional=("output",),
        )
        say(
            f"the {len(longest)} slowest of {len(report.operators)} operators (0 ms: fused into an adjacent operator, "
            "whose time includes it)"
        )
    say("")
    runtime = report.runtime
    settings = f"{report.threads or 'automatic'} threads{f', {report.delegate}' if report.delegate else ''}"
    has_source = report.stages[-1].name == "end to end"
    pace = "limited by the source" if has_source else "without pauses"
    say(f"speed    {report.fps:,.1f} images per second, {pace} ({report.images:,} measured)")
    say(f"start    {report.cold_start_s:.2f} s from process start to the first prediction")
    if report.peak_memory_bytes:
        say(f"memory   {report.peak_memory_bytes / 2**20:.0f} MiB peak resident memory until the first prediction")
    say(f"on       {runtime.runtime} {runtime.version}, {runtime.cpu} ({runtime.machine}), {settings}")
    if report.after.temperature_c is not None:
        say(f"heat     {report.after.temperature_c:.0f} degrees Celsius")
    if report.operators_error:
        say(f"warning  the operators were not measured: {report.operators_error}")
    for reason in report.throttled:
        say(f"warning  throttled: {reason}; without throttling, the machine is faster")
