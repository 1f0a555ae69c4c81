"""The files of deploy/ fit KubeRay's schema, the shell and our commands."""

import copy
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from curation import config
from pipelines.settings import DEFAULT_CONFIG, Settings
from tests.support.paths import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
SCHEMA = json.loads(Path(__file__).with_name("rayjob_schema.json").read_text())


@pytest.fixture
def job():
    return yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())


def test_ray_job_fits_kuberays_schema(job):
    jsonschema.validate(job, SCHEMA)
    for change in (
        lambda spec: spec.update(entryPoint=""),
        lambda spec: spec.update(backoffLimit="3"),
        lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(volume=[]),
    ):
        wrong = copy.deepcopy(job)
        change(wrong["spec"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_ray_job_runs_our_command_with_valid_settings_on_the_tested_ray(job):
    python, option, module, *given = job["spec"]["entrypoint"].split()
    assert (python, option, module) == ("python", "-m", "pipelines.curate")
    assert config.load(Settings, DEFAULT_CONFIG, given).cluster.address == "auto"
    constraints = (REPOSITORY / "constraints.txt").read_text()
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in constraints


def test_every_pod_has_the_keys_of_the_store_and_mounts_its_volumes(job):
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "longtake-store"}}]
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_slurm_script_is_valid_shell():
    subprocess.run(["bash", "-n", DEPLOY / "slurm.sh"], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", DEPLOY / "slurm.sh"], capture_output=True, text=True)
        assert done.stdout == ""


def test_image_installs_extras_that_the_package_has():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    text = (DEPLOY / "Containerfile").read_text()
    named = re.findall(r"EXTRAS=([\w,]+)", text)
    assert len(named) == 2
    assert {name for names in named for name in names.split(",")} <= {
        *project["optional-dependencies"]
    }
