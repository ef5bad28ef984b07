"""One page about a private task that an auditor can read: what was done, what it costs, what was measured, what voids it."""

import dataclasses
import html
from pathlib import Path
from typing import Any, Final

import msgspec

from coordinator.errors import InvalidBundle
from coordinator.privacy_accounting import forecast
from coordinator.privacy_record import RECORD_FILE, RecordedRound, read_privacy_record
from coordinator.question_files import KeptQuestion, read_questions
from coordinator.round_ids import RoundIds
from edge_client.privacy.accountant import cost_of, epsilon_of, no_cost
from simulators.privacy_audit import ShareAudit, audit_shares
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["PrivacyReport", "as_html", "make_report", "task_directory"]

_VOIDS: Final = (
    "somebody reads single updates before they are summed (distributed and central mode trust the coordinator not to)",
    "fewer honest devices report than min_contributors says, less those who collude",
    "a coordinator is put back from a backup taken in the middle of a round and publishes a second sum of it",
    "of correlated noise: any backup is put back, or somebody reads the coordinator's state files, which hold exact sums",
    "a device's ledger and its mark are put back together from an old copy",
    "initial weights, clip, learning rates or the number of rounds were chosen on the private data",
    "one owner has several device ids: the claim is per device",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyReport:
    """What is on the page."""

    spec: PrivacySpec
    num_parameters: int
    rounds: tuple[RecordedRound, ...]
    num_charged: int
    """Rounds that any device can have been charged for: the last round id, abandoned ones included."""
    epsilon_by_rdp: float
    epsilon_by_pld: float
    audit: ShareAudit
    questions: tuple[KeptQuestion, ...]
    """What the fleet was asked beside, answered or not."""
    epsilon_with_questions: float
    """Of all rounds and all questions, by the device's accountant."""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        spec, d = self.spec, self.num_parameters
        parts = spec.num_participations(self.num_charged)
        return {
            "parameters": {
                "unit": "device",
                "neighbours": "one device's update, or zero in its place",
                "mode": spec.mode,
                "noise": spec.noise,
                "clipping": spec.clipping,
                "clipping_norm": spec.clipping_norm,
                "noise_multiplier": spec.noise_multiplier,
                "sensitivity_units": spec.sensitivity_units(d),
                "noise_on_the_sum_units": spec.sum_noise_units(d),
                "noise_per_device_units": spec.share_stddev_units(d),
                "min_contributors": spec.min_contributors,
                "max_colluding_fraction": spec.max_colluding_fraction,
                "num_parameters": d,
                "num_rounds_planned": spec.num_rounds,
                "num_bands": spec.num_bands,
                "clip_follows_quantile": _quantile(spec),
                "epsilon_allowed": spec.target_epsilon,
                "target_delta": spec.target_delta,
                "amplification": "none claimed: devices check in by themselves",
            },
            "spent": {
                "rounds_charged_at_most": self.num_charged,
                "parts_taken_at_most": parts,
                "epsilon_by_rdp": self.epsilon_by_rdp,
                "epsilon_by_pld_of_continuous_noise": self.epsilon_by_pld,
                "epsilon_with_questions_at_most": self.epsilon_with_questions,
            },
            "audit": {
                "games": self.audit.num_games,
                "shares_per_game": self.audit.num_shares,
                "failure_probability": self.audit.failure_probability,
                "claimed_mu_of_a_part": self.audit.claimed_mu,
                "least_mu_of_a_part": self.audit.least_mu,
                "least_epsilon": self.audit.least_epsilon(max(1, parts), spec.target_delta),
                "holds": self.audit.holds,
            },
            "rounds": [
                {
                    "round_id": r.round_id,
                    "state": r.state,
                    "num_reports": r.num_reports,
                    "epsilon_let_through": r.epsilon,
                }
                for r in self.rounds
            ],
            "questions": [
                {
                    "name": kept.query.name,
                    "period": kept.query.period,
                    "kind": kept.query.kind,
                    "of": kept.query.of,
                    "mode": kept.query.mode,
                    "epsilon": kept.query.epsilon,
                    "min_contributors": kept.query.min_contributors,
                    "is_answered": kept.answer is not None,
                }
                for kept in self.questions
            ],
            "voided_by": list(_VOIDS),
        }


def task_directory(run_dir: Path) -> Path:
    """The directory of the one private task in a coordinator's state directory (or ``run_dir`` itself, if it is one).

    Raises:
        InvalidBundle: There is none, or there are several; names them.
    """
    if (run_dir / RECORD_FILE).exists():
        return run_dir
    found = sorted(path.parent for path in run_dir.glob(f"*/{RECORD_FILE}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidBundle(f"{run_dir} holds several private tasks: give one of {', '.join(map(str, found))}")
    raise InvalidBundle(f"{run_dir} holds no private task: run 'flockwise coordinator serve --epsilon' first")


def make_report(run_dir: Path) -> PrivacyReport:
    """Reads a coordinator's state directory, prices its rounds, and audits the mechanism with the devices' own code.

    Raises:
        InvalidBundle: No private task is there, or its record is damaged.
    """
    directory = task_directory(run_dir)
    spec, num_parameters, rounds = read_privacy_record(directory)
    highest = max((known.round_id for known in rounds), default=0)
    num_charged = RoundIds(directory / "last_round_id", start=highest).last_id
    spent = forecast(spec, num_charged) if num_charged else None
    questions = tuple(read_questions(directory.parent))
    return PrivacyReport(
        spec=spec,
        num_parameters=num_parameters,
        rounds=tuple(rounds),
        num_charged=num_charged,
        epsilon_by_rdp=0.0 if spent is None else spent.epsilon_by_rdp,
        epsilon_by_pld=0.0 if spent is None else spent.epsilon_by_pld,
        audit=audit_shares(spec, num_parameters),
        questions=questions,
        epsilon_with_questions=_with_questions(spec, num_parameters, num_charged, questions),
    )


def _with_questions(
    spec: PrivacySpec, num_parameters: int, num_charged: int, questions: tuple[KeptQuestion, ...]
) -> float:
    """What a device has been charged that was in every round and answered every question."""
    rounds = (
        cost_of(spec.event(num_parameters)).times(spec.num_participations(num_charged)) if num_charged else no_cost()
    )
    asked = (cost_of(kept.query.privacy_spec().event(kept.query.num_cells)) for kept in questions)
    return epsilon_of(sum(asked, start=rounds), spec.target_delta)


def as_html(report: PrivacyReport) -> str:
    """The page; it loads nothing."""
    values = report.as_dict()
    spec = report.spec
    claim = (
        f"A filter of epsilon {spec.target_epsilon:g} at delta {spec.target_delta:g} per device. So far it has let through "
        f"epsilon {report.epsilon_by_rdp:.4f}, which is no guarantee of its own: the {spec.target_epsilon:g} is."
    )
    parts = [
        "<h1>Privacy report</h1>",
        f"<p>{html.escape(claim)}</p>",
        "<h2>Mechanism</h2>",
        _table(values["parameters"]),
        "<h2>Spent, by two accountants</h2>",
        _table(values["spent"]),
        "<h2>Audit of the devices' own code</h2>",
        "<p>A lower bound: a claim below it would be false. It says nothing about what it did not try.</p>",
        _table(values["audit"]),
        "<h2>Rounds</h2>",
        _rows(values["rounds"]),
        "<h2>Questions</h2>",
        "<p>Asked of the same fleet, and charged to the same ledgers, beside the epsilon that this task is allowed.</p>",
        _rows(values["questions"]),
        "<h2>What voids it</h2>",
        "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in _VOIDS) + "</ul>",
    ]
    style = "body{font:15px sans-serif;max-width:50em;margin:2em auto}td,th{padding:.1em 1em .1em 0;text-align:left}"
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Privacy report</title><style>{style}</style>"
    return head + "<body>" + "\n".join(parts) + "</body></html>\n"


def _quantile(spec: PrivacySpec) -> float | str:
    """Of a clip that adapts; ``clipping_norm`` is then the first round's."""
    return "none: it is fixed" if spec.adaptive_clip is msgspec.UNSET else spec.adaptive_clip.target_quantile


def _table(values: dict[str, Any]) -> str:
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{_shown(value)}</td></tr>" for name, value in values.items())
    return f"<table>{rows}</table>"


def _rows(rounds: list[dict[str, Any]]) -> str:
    if not rounds:
        return "<p>None yet.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rounds[0])
    rows = "".join("<tr>" + "".join(f"<td>{_shown(value)}</td>" for value in row.values()) + "</tr>" for row in rounds)
    return f"<table><tr>{head}</tr>{rows}</table>"


def _shown(value: object) -> str:
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))
