"""What runs by the clock: the nightly verification of what is published. How to verify does not belong here."""

import dagster as dg

from pipelines.resources import Factory
from pipelines.verify import Problem, verify_model

NIGHTLY = "30 2 * * *"


class VerifyConfig(dg.Config):
    """Which models to verify; all that have a result, without any."""

    models: list[str] = []  # noqa: RUF012


@dg.op
def verify_published(context: dg.OpExecutionContext, config: VerifyConfig, factory: Factory) -> None:
    """Hash everything that was released, and say what is damaged or gone."""
    workshop = factory.workshop()
    found = sorted(path.parent.name for path in workshop.dist.glob("*/model_manifest.yaml"))
    problems: list[Problem] = []
    for model in config.models or found:
        these = verify_model(workshop.dist / model)
        context.log.info("%s: %s", model, f"{len(these)} problems" if these else "intact")
        problems += these
    context.add_output_metadata(
        {"models": len(config.models or found), "problems": dg.MetadataValue.md(told(problems) or "none")}
    )
    if problems:
        raise dg.Failure(description=told(problems), allow_retries=False)


def told(problems: list[Problem]) -> str:
    return "\n".join(f"- {problem.where}: {problem.what}" for problem in problems)


@dg.job(description="Verify what is published")
def verification() -> None:
    verify_published()


nightly_verification = dg.ScheduleDefinition(
    name="nightly_verification",
    job=verification,
    cron_schedule=NIGHTLY,
    description="Verify what is published, each night",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

JOBS = [verification]
SCHEDULES = [nightly_verification]
