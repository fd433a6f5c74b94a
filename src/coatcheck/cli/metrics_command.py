"""``coatcheck metrics``: what a running farm has counted, for Prometheus."""

from __future__ import annotations

import click

from coatcheck.cli.answering import fail
from coatcheck.cli.running_farm import RUN_DIR, ask
from coatcheck.errors import ConfigError


@click.command()
@RUN_DIR
def metrics(run_dir: str | None) -> None:
    """Print the metrics of all processes once, in Prometheus' text format.

    `coatcheck serve --metrics 127.0.0.1:9100` answers Prometheus itself with the same.
    """
    try:
        from coatcheck.farm.metrics.exposition import exposition
    except ModuleNotFoundError as error:
        fail(ConfigError(f"metrics: {error.name} is missing; pip install 'coatcheck[metrics]'"), 2)
    # A farm may give each process a minute.
    counts = ask(run_dir, {"op": "counts"}, timeout_s=75)["counts"]
    click.echo(exposition(counts)[1], nl=False)
