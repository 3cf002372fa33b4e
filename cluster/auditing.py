"""``job=audit``: serves the page on which people look at a run and label; Ray is not started. And
how their labels come back as the reward model's data."""

import threading
from pathlib import Path

from rich.console import Console

from cluster.context import Context
from cluster.exporting import alpha_by_task
from configs.audit import AuditConfig
from configs.checks import is_loopback
from configs.run import RunConfig
from learners.audited import trainable
from replay.store import ReplayStore
from services.audit import AuditRun
from services.audit_labels import labels_of, read_labels
from services.audit_sample import Drawing
from services.audit_server import AuditServer, new_token
from services.stages import read_json, write_json


def audit(config: RunConfig, folder: Path) -> None:
    """Serve the run in ``folder`` until SIGINT or SIGTERM. The run may go on meanwhile.

    Raises:
        ValueError: no such run, nothing imagined, another audit page of it, or no such address.
    """
    settings, console = config.audit, Console()
    if not (folder / "run.json").exists():
        raise ValueError(f"job=audit: {folder} holds no run. Give out=<folder of a run>")
    if config.dry_run:
        console.print(f"would serve {folder} at {settings.host}:{settings.port}", highlight=False)
        return
    alpha = alpha_by_task(read_json(folder / "run.json")["settings"])
    run = AuditRun(folder, Drawing(settings.n, settings.seed, alpha, settings.redraw))
    try:
        with _server(settings, run) as server:
            console.print(f"audit page of {folder}: {server.uri}", highlight=False, soft_wrap=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            threading.Event().wait()  # until a signal raises
    finally:
        run.close()


def _server(settings: AuditConfig, run: AuditRun) -> AuditServer:
    token = _token(settings)
    try:
        return AuditServer((settings.host, settings.port), run, token)
    except OSError as error:
        raise ValueError(
            f"audit.host={settings.host} audit.port={settings.port}: cannot listen there "
            f"({error.strerror or error}). Give another audit.port; 0 takes a free one"
        ) from error


def _token(settings: AuditConfig) -> str:
    if not settings.key_file:
        return "" if is_loopback(settings.host) else new_token()
    try:
        token = Path(settings.key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"audit.key_file={settings.key_file}: {error}") from error
    if not token:
        raise ValueError(f"audit.key_file={settings.key_file} is empty: put a secret into it")
    return token


def check_audited(config: RunConfig, folder: Path) -> None:
    """Refuse ``reward.audited`` where it names another run in which nothing is labelled.

    In its own folder a run may find labels later, when somebody audits what it has imagined.

    Raises:
        ValueError: no label of that run is a success or a failure.
    """
    other = Path(config.reward.audited).resolve()
    if not config.reward.audited or other == folder:
        return
    if not any(label.success is not None for label in read_labels(labels_of(other)).values()):
        raise ValueError(
            f"reward.audited={config.reward.audited}: no trajectory of {other} is labelled success "
            f"or failure. Label some first: python ray_job.py job=audit out={other}"
        )


def audited_store(run: Context) -> Path:
    """Where the imagined trajectories are that ``reward.audited`` has labels of."""
    return Path(run.config.reward.audited).resolve() / "stores" / "imagined"


def audit_labels(run: Context, iteration: int) -> dict[str, bool]:
    """Answers that an iteration's reward training draws from: those of its beginning, so that
    training which is continued after a crash has the same data."""
    if not run.config.reward.audited:
        return {}
    path = run.folder / "training" / f"{iteration} audit labels.json"
    if not path.exists():
        labels = read_labels(labels_of(Path(run.config.reward.audited).resolve()))
        said = {name: label.success for name, label in labels.items()}
        store = ReplayStore.open(audited_store(run)) if said else None
        write_json(path, trainable(said, store, run.config.reward.holdout) if store else {})
    return read_json(path)
