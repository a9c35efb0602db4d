"""What runs by the clock: the nightly verification of what is released. How to verify does not belong here.

https://docs.dagster.io/guides/automate/schedules
"""

import dagster as dg

from pipelines.dagster.resources import Factory
from pipelines.inspect.verify import Verified, verify_all
from pipelines.publish import last_published

NIGHTLY = "30 2 * * *"


class VerifyConfig(dg.Config):
    """What to verify, as `enginery inspect` takes it; without any, every dist/MODEL and all that was published last."""

    references: list[str] = []  # noqa: RUF012


@dg.op
def verify_released(context: dg.OpExecutionContext, config: VerifyConfig, factory: Factory) -> None:
    """Read and hash everything that was released, here and where it was published, and say what is damaged or gone."""
    project = factory.project()
    built = sorted(str(path.parent) for path in project.dist.glob("*/model_manifest.yaml"))
    published = last_published.references(project.store).values()
    releases = verify_all(config.references or [*built, *published], log=context.log.info)
    if problems := problems_text(releases):
        raise dg.Failure(description=problems, metadata={"verified": releases_table(releases)}, allow_retries=False)
    context.add_output_metadata({"verified": releases_table(releases)})


def problems_of(release: Verified | str) -> tuple[str, ...]:
    """What is wrong with a release; the one reason why it cannot be read at all."""
    return (release,) if isinstance(release, str) else release.problems


def problems_text(releases: dict[str, Verified | str]) -> str:
    return "\n".join(f"- {reference}: {why}" for reference, release in releases.items() for why in problems_of(release))


def releases_table(releases: dict[str, Verified | str]) -> dg.TableMetadataValue:
    """A line for each release: what was read, and how many things are wrong with it."""
    records = [
        dg.TableRecord(
            {
                "release": reference,
                "files": getattr(release, "num_files", 0),
                "bytes": getattr(release, "size_bytes", 0),
                "images": getattr(release, "num_images", 0),
                "problems": len(problems_of(release)),
            }
        )
        for reference, release in releases.items()
    ]
    kinds = {"release": "string", "files": "int", "bytes": "int", "images": "int", "problems": "int"}
    columns = [dg.TableColumn(name, kind) for name, kind in kinds.items()]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


@dg.job(description="Verify what is released, here and where it was published")
def verification() -> None:
    verify_released()


nightly_verification = dg.ScheduleDefinition(
    name="nightly_verification",
    job=verification,
    cron_schedule=NIGHTLY,
    description="Verify what is released, each night",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

JOBS = [verification]
SCHEDULES = [nightly_verification]
