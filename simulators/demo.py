"""The whole loop on one machine: export, device processes, a broker, TFF rounds, a test-set curve.

Nothing is imitated: the devices are the daemons of `edge_client`, the broker speaks MQTT, the server side is TFF's.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coordinator.admission import AdmissionPolicy
from coordinator.aggregation import Aggregator
from coordinator.broker_choice import broker_at
from coordinator.private_sum import private_aggregator
from coordinator.private_task import PrivacyWish, least_contributors, made_private
from coordinator.round_loop import RoundLoop, RoundSchedule, RoundSummary
from coordinator.round_policy import RoundPolicy
from coordinator.server import ServerConfig, TaskState, open_task_state, run_rounds, tff_aggregator
from coordinator.task_bundle import TaskBundle, read_task_bundle
from edge_client.example_store import write_examples
from edge_client.litert_trainer import LiteRtTrainer
from edge_client.training import ArrayExamples, TrainingJob
from simulators.curve import draw_curve
from simulators.demo_openers import DemoOpeners
from simulators.demo_report import DemoConfig, DemoReport, DemoRound
from simulators.errors import FleetFailed
from simulators.offline_enrolment import enrol_offline, num_heard
from simulators.process_fleet import ProcessFleet, write_device_config
from simulators.scenario import Scenario, load_scenario
from wire_protocol.messages import RoundKind
from wire_protocol.tensors import Tensors

__all__ = ["run_demo"]

_POPULATION = "demo"
_TEST_DEVICE = "coordinator-test"


def run_demo(
    config: DemoConfig, *, on_progress: Callable[[str], None], on_round: Callable[[DemoRound], None]
) -> DemoReport:
    """Runs the demo and writes curve and report into ``config.out_dir``.

    Args:
        config: What to show.
        on_progress: Told in a few words what is going on.
        on_round: Told of every committed round.

    Raises:
        SimulationError: Data missing, or a device process died.
        CoordinatorError: The broker did not start, or settings make no sense.
    """
    clock = _Stopwatch()
    on_progress(f"loading {config.dataset} and spreading it over the devices")
    scenario = load_scenario(
        config.dataset,
        num_devices=config.num_devices,
        partition=config.partition,
        alpha=config.alpha,
        seed=config.seed,
        data_dir=config.data_dir,
    )
    config.out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="flockwise-demo-") as work, contextlib.ExitStack() as stack:
        root = Path(work)
        url = stack.enter_context(broker_at(config.broker))
        device_ids = [scenario.device_id(index) for index in range(scenario.num_devices)]
        openers = DemoOpeners(config, device_ids, root, population=_POPULATION)
        roster_file = root / "roster.sqlite"
        enrol_offline(roster_file, {name: home for name, (home, _) in openers.homes.items()}, population=_POPULATION)
        openers.enter()
        clock.lap("enrol")
        configs = _write_devices(config, scenario, root, url, openers)
        clock.lap("start")
        stack.enter_context(openers.processes(url, min_contributors=_least_contributors(config)))
        fleet = stack.enter_context(ProcessFleet(configs, num_processes=config.num_processes, log_dir=root / "logs"))
        on_progress("exporting the Keras model to a trainable TFLite file, and proving it equal to Keras")
        bundle, certificate = _export(config, scenario, root / "bundle")
        bundle = openers.confidential(bundle)
        clock.lap("export")
        on_progress("compiling the server side with TensorFlow Federated")
        policy = _round_policy(config)
        aggregator = private_aggregator(tff_aggregator(bundle, config.aggregation), bundle.plan, policy)
        task = open_task_state(root / "state", bundle)
        clock.lap("compile")
        on_progress(f"training on {scenario.num_devices} devices over {url}")
        show = _Show(scenario, bundle, on_round)
        server = _server_config(config, url, roster_file, openers)
        loop = _run(server, fleet, show, bundle=bundle, aggregator=aggregator, task=task)
        clock.lap("rounds")
        num_authenticated = num_heard(roster_file, population=_POPULATION)
    report = DemoReport(
        config=config,
        rounds=tuple(show.rounds),
        evaluation=show.evaluation,
        num_abandoned=show.num_abandoned,
        rejections={reason.value: count for reason, count in loop.rejections.items()},
        num_authenticated=num_authenticated,
        num_parameters=bundle.plan.num_parameters,
        model_bytes=len(bundle.model_bytes),
        op_counts=certificate["op_counts"],
        parity={name: value for name, value in certificate.items() if name.startswith("max_")},
        who_must_be_believed=openers.who_must_be_believed(bundle),
        finished=loop.is_done and not loop.gave_up,
        seconds=clock.total(),
    )
    _write(report)
    return report


def _write_devices(config: DemoConfig, scenario: Scenario, root: Path, url: str, openers: DemoOpeners) -> list[Path]:
    """Writes every device's data and configuration; returns the configurations."""
    configs = []
    for index in range(scenario.num_devices):
        device_id = scenario.device_id(index)
        configs.append(
            write_device_config(
                root,
                device_id=device_id,
                population=_POPULATION,
                broker_url=url,
                num_threads=1,
                privacy=_device_rules(config, openers, device_id),
            )
        )
        x, y = scenario.examples(index)
        write_examples(root / device_id / "data", x=x, y=y)
    return configs


def _device_rules(config: DemoConfig, openers: DemoOpeners, device_id: str) -> str:
    """What the owners of the demo's devices insist on, as sections of their configuration."""
    if config.epsilon is None:
        return ""
    return (
        f"[privacy]\nepsilon = {config.epsilon!r}\ndelta = {config.target_delta!r}\nrequired = true\n"
        f"min_contributors = {_least_contributors(config)}\n" + openers.owners_rules(device_id)
    )


def _export(config: DemoConfig, scenario: Scenario, directory: Path) -> tuple[TaskBundle, dict[str, Any]]:
    from model_export.exporter import export_model
    from simulators.demo_models import demo_model
    from wire_protocol.model_contract import BUNDLE_CERTIFICATE

    model = demo_model(config.dataset, config.model, scenario.dataset, seed=config.seed)
    export_model(
        model,
        out_dir=directory,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        num_epochs=config.num_epochs,
        seed=config.seed,
    )
    certificate: dict[str, Any] = json.loads((directory / BUNDLE_CERTIFICATE).read_text())
    return _made_private(read_task_bundle(directory), config), certificate


class _Show:
    """Collects rounds and tests every committed model on the examples that no device holds."""

    def __init__(self, scenario: Scenario, bundle: TaskBundle, on_round: Callable[[DemoRound], None]) -> None:
        self._bundle = bundle
        self._on_round = on_round
        self._trainer = LiteRtTrainer(num_threads=os.cpu_count() or 1)
        shape = bundle.plan.input_shape
        x = scenario.dataset.x_test.reshape(-1, *shape)
        self._test = ArrayExamples(x=x, y=scenario.dataset.y_test)
        self.rounds: list[DemoRound] = []
        self.evaluation: Mapping[str, float] = {}
        self.num_abandoned = 0

    def add(self, summary: RoundSummary, weights: Tensors) -> None:
        """Takes a round that is over."""
        if summary.abandon_reason is not None:
            self.num_abandoned += 1
        elif summary.kind is RoundKind.EVALUATE:
            self.evaluation = dict(summary.metrics)
        else:
            loss, accuracy = self._measure(weights)
            row = DemoRound(
                round_id=summary.round_id,
                num_reports=summary.num_reports,
                num_assigned=summary.num_assigned,
                training_loss=summary.metrics.get("loss"),
                epsilon=summary.epsilon,
                test_accuracy=accuracy,
                test_loss=loss,
                duration_s=summary.duration_s,
            )
            self.rounds.append(row)
            self._on_round(row)

    def _measure(self, weights: Tensors) -> tuple[float, float]:
        job = TrainingJob(
            kind=RoundKind.EVALUATE,
            plan=self._bundle.plan,
            model=self._bundle.model_bytes,
            checkpoint=weights,
            round_id=1,
            device_id=_TEST_DEVICE,
        )
        metrics = self._trainer.evaluate(job, self._test).metrics
        return metrics.loss_sum / metrics.weight_sum, metrics.num_correct / metrics.weight_sum


def _run(
    server: ServerConfig,
    fleet: ProcessFleet,
    show: _Show,
    *,
    bundle: TaskBundle,
    aggregator: Aggregator,
    task: TaskState,
) -> RoundLoop:
    """Runs the rounds; ends early if a device process dies."""
    loop = run_rounds(
        server,
        bundle=bundle,
        aggregator=aggregator,
        task=task,
        on_round=lambda summary, state: show.add(summary, state.weights),
        stop=fleet.failed,
    )
    if fleet.failed.is_set():
        raise FleetFailed(fleet.problem())
    return loop


def _server_config(config: DemoConfig, url: str, roster_file: Path, openers: DemoOpeners) -> ServerConfig:
    return ServerConfig(
        broker_url=url,
        population=_POPULATION,
        policy=_round_policy(config),
        schedule=RoundSchedule(
            num_commits=config.num_rounds,
            # Figures of an evaluation would be an unpriced release.
            evaluate_every=config.num_rounds if config.epsilon is None else 0,
        ),
        admission=AdmissionPolicy(),
        roster_file=roster_file,
        directory=openers.directory,
        encryption_keys=openers.encryption_keys,
    )


def _round_policy(config: DemoConfig) -> RoundPolicy:
    least = config.num_devices // 2 if config.epsilon is None else _least_contributors(config)
    return RoundPolicy(
        report_goal=config.num_devices,
        min_reports=max(1, least),
        over_selection=1.0,
        report_timeout_s=config.report_timeout_s,
    )


def _least_contributors(config: DemoConfig) -> int:
    return least_contributors(config.num_devices)


def _made_private(bundle: TaskBundle, config: DemoConfig) -> TaskBundle:
    """The same task with distributed differential privacy, its noise calibrated to the demo's rounds."""
    if config.epsilon is None:
        return bundle
    wish = PrivacyWish(
        epsilon=config.epsilon,
        num_rounds=config.num_rounds,
        clipping_norm=config.clipping_norm,
        min_contributors=_least_contributors(config),
        target_delta=config.target_delta,
    )
    return made_private(bundle, wish)


def _write(report: DemoReport) -> None:
    """Writes curve and report, each whole or not at all."""
    out_dir = report.config.out_dir
    text = json.dumps(report.as_dict(), indent=2, sort_keys=True) + "\n"
    partial = out_dir / "report.json.part"
    partial.write_text(text)
    partial.replace(out_dir / "report.json")
    draw_curve(
        out_dir / "curve.png",
        accuracies=[row.test_accuracy for row in report.rounds],
        losses=[row.test_loss for row in report.rounds],
        title=f"{report.config.dataset}, {report.config.num_devices} devices: {report.final_accuracy:.1%}",
    )


class _Stopwatch:
    """Wall time per stage."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends a stage."""
        now = time.monotonic()
        self._laps[name] = round(now - self._last, 2)
        self._last = now

    def total(self) -> dict[str, float]:
        """Seconds per stage, and in total."""
        return self._laps | {"total": round(time.monotonic() - self._started, 2)}
