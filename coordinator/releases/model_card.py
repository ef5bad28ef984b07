"""A model card for each release (Mitchell et al. 2019, "Model Cards for Model Reporting"): Markdown, from what is signed. Pure."""

from wire_protocol.release import GoldenBatch, ReleaseManifest, ReleaseNeeds

__all__ = ["differences", "model_card"]


def model_card(manifest: ReleaseManifest) -> str:
    """The card's text; the same manifest always gives the same card."""
    lineage, golden, needs = manifest.lineage, manifest.golden, manifest.needs
    evaluation = lineage.evaluation
    parts = [
        f"# {manifest.name} {manifest.number}",
        "",
        manifest.note or "(no note)",
        "",
        "## Where it comes from",
        "",
        f"- Task: `{lineage.task_id or 'from outside'}`, round {lineage.round_id or '-'}",
        f"- Plan SHA-256: `{lineage.plan_sha256 or '-'}`; checkpoint SHA-256: `{lineage.checkpoint_sha256 or '-'}`",
        f"- Release before: {lineage.parent or 'none'}",
        "",
        "## Privacy",
        "",
        _privacy(lineage.epsilon),
        "",
        "## How good it is",
        "",
        "Not evaluated by the fleet."
        if evaluation is None
        else f"On the fleet's own examples (federated evaluation, {evaluation.num_examples:.0f} examples): accuracy "
        f"{evaluation.accuracy:.4f}, loss {evaluation.loss:.4f}.",
        "",
        "## What it is",
        "",
        _tensors(manifest),
        f"- File: {manifest.model.num_bytes} bytes, SHA-256 `{manifest.model.sha256.hex()}`",
        _needs(needs),
        f"- Operators: {', '.join(needs.operators) or 'not stated'}",
        "",
        "## How a device checks it",
        "",
        _golden(golden),
    ]
    return "\n".join(parts) + "\n"


def differences(first: ReleaseManifest, second: ReleaseManifest) -> dict[str, tuple[str, str]]:
    """What differs between two releases: field -> (first, second), as text."""
    one, other = _facts(first), _facts(second)
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


def _facts(manifest: ReleaseManifest) -> dict[str, str]:
    lineage = manifest.lineage
    evaluation = lineage.evaluation
    return {
        "number": str(manifest.number),
        "bytes": str(manifest.model.num_bytes),
        "sha256": manifest.model.sha256.hex(),
        "input": f"{manifest.input.dtype} {manifest.input.shape}",
        "output": f"{manifest.output.dtype} {manifest.output.shape}",
        "task": lineage.task_id,
        "round": str(lineage.round_id),
        "plan": lineage.plan_sha256,
        "checkpoint": lineage.checkpoint_sha256,
        "epsilon": "-" if lineage.epsilon is None else f"{lineage.epsilon:.6g}",
        "accuracy": "-" if evaluation is None else f"{evaluation.accuracy:.6f}",
        "loss": "-" if evaluation is None else f"{evaluation.loss:.6f}",
        "parent": str(lineage.parent),
        "min_runtime": manifest.needs.min_runtime,
        "min_memory_mb": str(manifest.needs.min_memory_mb),
        "operators": ", ".join(manifest.needs.operators),
        "note": manifest.note,
    }


def _tensors(manifest: ReleaseManifest) -> str:
    sides = {"Input": manifest.input, "output": manifest.output}
    return "- " + "; ".join(f"{side}: {of.dtype} [n, {', '.join(map(str, of.shape))}]" for side, of in sides.items())


def _needs(needs: ReleaseNeeds) -> str:
    classes = ", ".join(needs.device_classes) or "every hardware class"
    return f"- Needs LiteRT {needs.min_runtime} or later and {needs.min_memory_mb} MB of memory; for {classes}"


def _golden(golden: GoldenBatch) -> str:
    return (
        f"{golden.num_examples} golden examples: no output more than {golden.max_abs_error:g} off, at least "
        f"{golden.min_agreement:.1%} of the answers the same, at most {golden.max_latency_ms:g} ms per example. A device "
        "on which it fails keeps what it had."
    )


def _privacy(epsilon: float | None) -> str:
    if epsilon is None:
        return "No epsilon is stated: take it as trained without differential privacy, so that nothing bounds what it tells about a device's data."
    return (
        f"Trained with device-level differential privacy: a device that took part in every round had been charged epsilon "
        f"= {epsilon:.4g}. The privacy report of the run says under which conditions."
    )
