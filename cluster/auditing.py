"""``job=audit``: serves the page on which people look at a run and label; Ray is not started."""

import threading
from pathlib import Path

from rich.console import Console

from cluster.exporting import alpha_by_task
from configs.audit import AuditConfig
from configs.run import RunConfig
from services.audit import AuditRun
from services.audit_sample import Drawing
from services.audit_server import AuditServer, is_loopback, new_token
from services.stages import read_json


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
