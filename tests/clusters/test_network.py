"""What nodes tell their libraries: where it is needed, and a site and a job may say otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from clusters.job import Job, Site
from clusters.network import GANG, HEALTH, environment


def told(nodes: int, gpus: int, site: dict[str, str], **own: str) -> dict[str, str]:
    place = Path("/runs/jobs/try-1")
    job = Job(name="try", command=("true",), folder=place, desk=place, code=place, nodes=nodes, gpus=gpus)
    return dict(environment(Job(**{**vars(job), "environment": own}), Site(environment=site)))


@pytest.mark.parametrize(
    ("nodes", "gpus", "names"), [(1, 0, set()), (1, 8, set()), (2, 0, {*HEALTH}), (2, 8, {*HEALTH, *GANG})]
)
def test_settings_of_a_network_are_of_jobs_that_have_one(nodes: int, gpus: int, names: set[str]) -> None:
    assert told(nodes, gpus, {}).keys() == names


def test_a_site_overrides_them_and_a_job_overrides_both() -> None:
    found = told(2, 8, {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "ib0"}, NCCL_DEBUG="TRACE", A="1")
    assert (found["NCCL_DEBUG"], found["NCCL_SOCKET_IFNAME"], found["A"]) == ("TRACE", "ib0", "1")
    assert list(found) == sorted(found)


def test_every_setting_has_its_reason() -> None:
    assert all(len(reason.split()) > 4 for settings in (HEALTH, GANG) for _, reason in settings.values())


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "A B", "A;id"])
def test_a_site_tells_no_secrets_and_no_shell(name: str) -> None:
    with pytest.raises(ValueError, match=r"looks like a secret|no name of an environment variable"):
        told(1, 0, {name: "abc"})
