"""`t4p launch`: jobs on a private Ray, or on a cluster over HTTP."""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import Annotated, Any, NoReturn

import typer

from commands.arguments import ConfigArguments, split_arguments
from launch.jobs.client import ADDRESS_VARIABLE, Cluster, JobState
from launch.jobs.jobs import connect, exit_status, follow, our_jobs, plan_job, progress_of, stop, submit
from launch.jobs.spec import METADATA_KEYS, RUN_DIR_KEY, WORKERS_KEY, JobSpec, WorldSizes, world_sizes
from launch.training import launch_training
from t4p.config.files import load_for_command
from t4p.config.tasks import JobConfig
from t4p.errors import ConfigError
from t4p.tasks.afterwards import look_afterwards
from t4p.tasks.beforehand import look_beforehand

app = typer.Typer(help="Start jobs on Ray, here or on a cluster, and look after them.", no_args_is_help=True)

IN_CLUSTER = "auto"

AddressOption = Annotated[
    str | None, typer.Option(help=f"Ray's dashboard, such as http://HOST:8265. Default: {ADDRESS_VARIABLE}.")
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="As `t4p launch list` names it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


WorkersOption = Annotated[
    int | None,
    typer.Option(help="Worker processes, one per GPU or CPU share. Default: what the section `cluster` says."),
]
LaunchAddressOption = Annotated[
    str | None,
    typer.Option(
        help="Submit a job to this cluster (http://HOST:8265). `auto`: run in the Ray cluster this machine is part "
        "of. Default: a private Ray on this machine, which ends with the command."
    ),
]
FollowOption = Annotated[bool, typer.Option("--follow", help="Show the job's log; end with its exit status.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be started; touch no network.")]
ForwardOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Give the job this variable of your environment (repeatable). Nothing else of it is sent, AWS_* "
        "included. Whoever may list the cluster's jobs can read the value.",
    ),
]


def _add_command(name: str, summary: str) -> None:
    """`t4p launch NAME`, for the tasks of that command."""

    @app.command(name, help=summary, epilog=f"Example: t4p launch {name} CONFIG 'data.shards=[DST]' --workers 2")
    def launch(
        arguments: ConfigArguments,
        workers: WorkersOption = None,
        address: LaunchAddressOption = None,
        follow_job: FollowOption = False,
        dry_run: DryRunOption = False,
        forward_env: ForwardOption = None,
        as_json: JsonOption = False,
    ) -> None:
        on_cluster = address not in (None, IN_CLUSTER)
        for given, option in ((follow_job, "--follow"), (forward_env, "--forward-env")):
            if given and not on_cluster:
                raise ConfigError(
                    f"{option} goes with --address http://HOST:8265: only a submitted job has a use for it"
                )
        if as_json and (follow_job or not (on_cluster or dry_run)):
            raise ConfigError("--json goes with --dry-run, or with a job that is submitted without --follow")
        config = load_for_command(
            name,
            *split_arguments(arguments),
            lambda cluster: cluster.num_workers if workers is None else workers,
        )
        assert isinstance(config, JobConfig)
        num_workers = config.cluster.num_workers if workers is None else workers
        if not on_cluster:
            if address is None:  # in a cluster the head may see other files than the workers' nodes
                look_beforehand(config)
            if dry_run:
                _show_plan(None, world_sizes(config, num_workers), as_json)
                return
            if address is None and (elsewhere := os.environ.get(ADDRESS_VARIABLE)):
                typer.echo(f"{ADDRESS_VARIABLE} is set, and this trains here; --address {elsewhere} submits it there")
            launch_training(config, num_workers, address=address)
            for line in look_afterwards(config):
                typer.echo(line)
            if name == "finetune" and address is None:
                from commands.run_report import tell_run_report

                tell_run_report(config)
            return
        spec = plan_job(config, num_workers, forward_env or (), os.environ)
        if dry_run:
            _show_plan(spec, spec.sizes, as_json)
            return
        cluster = connect(address, os.environ)
        submit(cluster, spec)
        if as_json:
            _print_json({"job_id": spec.job_id, "address": cluster.address, "run_dir": config.run.dir})
            return
        typer.echo(f"submitted job {spec.job_id}, run folder {config.run.dir}")
        if follow_job:
            _follow(cluster, spec.job_id)
        _show_next_moves(cluster, spec.job_id)


_add_command("pretrain", "Pre-train with several workers: on a private Ray, or as a job on a cluster.")
_add_command("finetune", "Fine-tune with several workers: on a private Ray, or as a job on a cluster.")


@app.command("list")
def list_jobs(address: AddressOption = None, as_json: JsonOption = False) -> None:
    """The jobs that `t4p launch` submitted to a cluster, the oldest first."""
    jobs = our_jobs(connect(address, os.environ))
    if as_json:
        _print_json({"jobs": [_record(job) for job in jobs]})
        return
    width = max((len(job.job_id) for job in jobs), default=0)
    for job in jobs:
        where = f"{job.metadata.get(WORKERS_KEY, '?')} worker(s)  {job.metadata.get(RUN_DIR_KEY, '')}"
        typer.echo(f"{job.job_id:{width}}  {job.status:9}  {_clock(job.started):19}  {where}")
    if not jobs:
        typer.echo("no jobs", err=True)


@app.command("status")
def status(job_id: JobArgument, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """How one job stands, and how far its training is. Exit status 0 whenever that could be found out."""
    cluster = connect(address, os.environ)
    job = cluster.job(job_id)
    progress = progress_of(cluster, job)
    if as_json:
        _print_json(_record(job) | {"progress": None if progress is None else progress.to_json()})
        return
    for name, value in (_record(job) | {"progress": progress}).items():
        if value not in (None, ""):
            typer.echo(f"{name:13}  {str(value).splitlines()[0]}")  # Ray's message may hold the whole log


@app.command("logs")
def logs(
    job_id: JobArgument,
    address: AddressOption = None,
    follow_job: Annotated[
        bool, typer.Option("--follow", help="Go on until the job is over; end with its exit status.")
    ] = False,
) -> None:
    """What a job has printed. The workers' own output lies in `logs/` of the run folder."""
    cluster = connect(address, os.environ)
    if follow_job:
        _follow(cluster, job_id)
    typer.echo(cluster.log(job_id), nl=False)


@app.command("stop")
def stop_job(job_id: JobArgument, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """End a job and wait until it has ended. Launched again, the run goes on from its last checkpoint."""
    job = stop(connect(address, os.environ), job_id)
    if as_json:
        _print_json(_record(job))
    else:
        typer.echo(f"job {job_id} is {job.status}")


def _follow(cluster: Cluster, job_id: str) -> NoReturn:
    """Show the log of a job to its end; exit with its status. Ctrl-C leaves the job alone."""
    try:
        job = follow(cluster, job_id, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        typer.echo("\nno longer following; the job goes on", err=True)
        _show_next_moves(cluster, job_id)
        raise typer.Exit(130) from None
    how = "" if job.exit_code is None else f", exit status {job.exit_code}"
    typer.echo(f"job {job_id} is {job.status}{how}", err=True)
    if job.exit_code is None and job.status == "FAILED":
        typer.echo(job.message, err=True)  # it never ran, or its node is gone: the log does not say why
    raise typer.Exit(exit_status(job))


def _show_next_moves(cluster: Cluster, job_id: str) -> None:
    for verb in (f"logs {job_id} --follow", f"stop {job_id}"):
        typer.echo(f"  t4p launch {verb} --address {cluster.address}")


def _show_plan(spec: JobSpec | None, sizes: WorldSizes, as_json: bool) -> None:
    """Print what would be started; on a private Ray (no spec) that is the workers alone."""
    plan = ({} if spec is None else _plan_of_job(spec)) | {"workers": _plan_of_workers(sizes)}
    if as_json:
        _print_json(plan)
        return
    for name, value in plan.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            for key, entry in value.items():
                typer.echo(f"  {key}: {_as_text(entry)}")
        else:
            typer.echo(f"{name}: {_as_text(value)}")


def _plan_of_workers(sizes: WorldSizes) -> dict[str, Any]:
    return {
        "num_workers": sizes.num_workers,
        "cpus_per_worker": sizes.resources.num_cpus,
        "gpus_per_worker": sizes.resources.num_gpus,
        "global_batch_size": sizes.global_batch_size,
        "micro_batches_per_step": sizes.micro_batches,
        "frames_per_micro_batch_per_rank": list(sizes.frames_per_micro_batch),
    }


def _plan_of_job(spec: JobSpec) -> dict[str, Any]:
    hidden = "(forwarded from this environment, not shown)"
    return {
        "job_id": spec.job_id,
        "entrypoint": spec.entrypoint,
        "entrypoint_num_cpus": spec.entrypoint_num_cpus,
        "env": {name: hidden if name in spec.forwarded else value for name, value in spec.env.items()},
        "working_dir": {"num_files": len(spec.files), "size_bytes": spec.size_bytes},
        "requirements": list(spec.requirements),
        "metadata": dict(spec.metadata),
    }


def _as_text(value: object) -> str:
    return ", ".join(str(entry) for entry in value) if isinstance(value, list) else str(value)


def _record(job: JobState) -> dict[str, Any]:
    """A job as programs read it."""
    return {
        "job_id": job.job_id,
        "status": job.status,
        "exit_code": job.exit_code,
        "started": None if job.started is None else _clock(job.started),
        "ended": None if job.ended is None else _clock(job.ended),
        **{key: job.metadata.get(key) for key in METADATA_KEYS},
        "message": job.message,
    }


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value))
