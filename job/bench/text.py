"""What `bench` says to people: its figures as lines of text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]
_MIB, _MB = 1 << 20, 1e6


def bench_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A table of the trainings, and a line for each other part."""
    if rows := found.get("training"):
        yield from _training(rows)
    for part, lines in (("data", _data), ("checkpoint", _checkpoint), ("generation", _generation)):
        if part in found:
            figures = found[part]
            yield f"{part:<12}" + (f"not measured: {figures['error']}" if "error" in figures else lines(figures))


def _training(rows: Sequence[Figures]) -> Iterator[str]:
    names = [", ".join(f"{key}={value}" for key, value in row["settings"].items()) or "as configured" for row in rows]
    width = max(len(name) for name in names)
    yield f"{'training':<{width}}   step s   best s   first s    tokens/s    MFU  of datasheet   peak MiB"
    for name, row in zip(names, rows, strict=True):
        yield f"{name:<{width}} " + (f"  {row['error']}" if "error" in row else _point(row))
    for how in sorted({_how(row) for row in rows if "error" not in row}):
        yield f"  {how}"


def _point(row: Figures) -> str:
    told = "-" if row["datasheet_mfu"] is None else f"{row['datasheet_mfu']:.1%}"
    times = [_seconds(row[f"{which}step_seconds"]) for which in ("", "best_", "first_")]
    return (
        f"{times[0]} {times[1]}  {times[2]} {row['tokens_per_second']:>11,.0f}  {row['mfu']:>5.1%}  {told:>12}  "
        f"{row['peak_memory_bytes'] / _MIB:>9,.0f}"
    )


def _seconds(value: float) -> str:
    return f"{value:>8.4f}" if value < 1 else f"{value:>8.3f}"


def _how(row: Figures) -> str:
    numerics = row["numerics"]
    return (
        f"{row['parameters'] / 1e6:.1f}M parameters, {row['tokens_per_step']:,} tokens a step; {numerics['device']}, "
        f"{numerics['precision']}, {'compiled' if numerics['compile'] else 'eager'}, {numerics['threads']} threads, "
        f"torch {numerics['torch']}; products reach {row['matmul_peak_flops'] / 1e9:,.0f} GFLOP/s at best (MFU 100 %)"
    )


def _data(found: Figures) -> str:
    return (
        f"{found['corpus_bytes'] / _MB:,.1f} MB to {found['corpus_tokens']:,} tokens in {found['cold_seconds']:.2f} s "
        f"({found['bytes_per_second'] / _MB:,.1f} MB/s), cached {found['warm_seconds']:.2f} s; "
        f"first batch {found['first_batch_seconds'] * 1e3:.1f} ms, then {found['batch_seconds'] * 1e3:.3f} ms"
    )


def _checkpoint(found: Figures) -> str:
    return (
        f"{found['bytes'] / _MB:,.1f} MB: training waits {found['wait_seconds']:.3f} s, durable after "
        f"{found['durable_seconds']:.2f} s, restored in {found['restore_seconds']:.2f} s"
    )


def _generation(found: Figures) -> str:
    return (
        f"{found['tokens_per_second']:,.1f} tokens/s in {found['dtype']}, the first after "
        f"{found['first_token_seconds'] * 1e3:.1f} ms ({found['prompt_tokens']} tokens read, "
        f"{found['new_tokens']} written)"
    )
